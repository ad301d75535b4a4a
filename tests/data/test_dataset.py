from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.data import DataError, Dataset, Preprocessing, load, quantize, stratified_split, to_unit
from bench.data import dataset as bench_data


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_the_digits(digits):
    assert (digits.name, digits.shape, len(digits.images)) == ("digits", (1, 8, 8), 1797)
    assert (digits.images.dtype, digits.images.min(), digits.images.max()) == (torch.uint8, 0, 255)
    assert len(digits.images.unique()) == 17  # grey levels 0 to 16
    assert digits.labels.unique().tolist() == list(range(10))
    assert digits.content_hash() == "d098b4f8d249af34"  # the ones that embedded weights and results belong to


def test_the_digits_with_options(digits):
    data = load("digits", Path("nowhere"), heldout_every=10, preprocessing=Preprocessing(16, filter="box"))
    assert (data.shape, data.preprocessing) == ((1, 16, 16), "resize=16 filter=box")
    assert torch.equal(data.images[:, :, ::2, ::2], digits.images)  # box enlarges by repeating
    assert data.heldout.sum() == sum((digits.labels == label).sum() // 10 for label in range(10))


def test_a_dataset_of_four_parts():
    labels = torch.tensor([4, 2, 4])
    data = Dataset("mine", torch.zeros(3, 1, 2, 2, dtype=torch.uint8), labels, torch.zeros(3, dtype=torch.bool))
    assert (data.classes, data.preprocessing) == (2, "none")


def test_the_digits_split_is_stratified(digits):
    assert (len(digits.part("train")), len(digits.part("heldout"))) == (1442, 355)
    for label in range(10):
        members = digits.labels == label
        assert digits.heldout[members].sum() == members.sum() // 5


def test_parts_cover_the_data_once(digits):
    train, heldout, everything = (digits.part(name) for name in ("train", "heldout", "all"))
    assert len(train) + len(heldout) == len(everything) == 1797
    assert torch.equal(train, digits.images[~digits.heldout])
    assert torch.equal(digits.part_labels("heldout"), digits.labels[digits.heldout])
    with pytest.raises(KeyError):
        digits.part("test")


def test_the_content_hash_follows_pixels_shape_and_split(digits):
    changed = digits.images.clone()
    changed[7, 0, 3, 3] ^= 1
    others = [
        digits,
        replace(digits, images=changed),
        replace(digits, heldout=~digits.heldout),
        replace(digits, images=digits.images.reshape(1797, 1, 4, 16)),
    ]
    assert len({data.content_hash() for data in others}) == 4
    assert replace(digits, images=digits.images.clone(), name="other").content_hash() == digits.content_hash()


@pytest.mark.parametrize("part", ["train", "heldout", "all"])
def test_picked_images_are_the_parts_and_wrap_around(digits, part):
    n = digits.count(part)
    assert n == len(digits.part(part)) == len(digits.part_labels(part))
    rows = torch.tensor([0, n - 1, 7, n, 3 * n + 7])
    assert torch.equal(digits.pick(part, rows), digits.part(part)[rows % n])
    assert torch.equal(digits.pick_labels(part, rows), digits.part_labels(part)[rows % n])
    assert digits.pick(part, rows[:0]).shape == (0, 1, 8, 8)


def test_picking_leaves_the_other_images_alone(digits, monkeypatch):
    taken = []
    take = torch.Tensor.__getitem__
    monkeypatch.setattr(torch.Tensor, "__getitem__", lambda self, key: taken.append(found := take(self, key)) or found)
    digits.pick("train", torch.tensor([5, 6, 1441]))
    assert max(len(found) for found in taken) == 3


def test_a_part_of_everything_is_no_copy(digits):
    whole = replace(digits, heldout=digits.heldout & False)
    for data, part in ((digits, "all"), (whole, "all"), (whole, "train")):
        assert data.part(part).data_ptr() == data.images.data_ptr()
        assert data.part_labels(part).data_ptr() == data.labels.data_ptr()
    assert whole.count("heldout") == len(whole.part("heldout")) == 0


def test_pixels_are_hashed_in_place_and_once(digits, monkeypatch):
    data, seen = replace(digits), []
    taken = bench_data._bytes
    monkeypatch.setattr(bench_data, "_bytes", lambda values: seen.append(found := taken(values)) or found)
    monkeypatch.setattr(bench_data, "_BLOCK", 700)
    assert data.content_hash() == data.content_hash() == digits.content_hash()
    assert len(seen) == 4  # three blocks and the split
    assert np.shares_memory(np.asarray(seen[1]), data.images.numpy())


def test_the_content_hash_is_of_pixels_in_any_memory_layout(digits):
    other = digits.images.movedim(1, -1).contiguous().movedim(-1, 1).transpose(2, 3).contiguous().transpose(2, 3)
    assert not other.is_contiguous()
    assert replace(digits, images=other).content_hash() == digits.content_hash()


def test_the_labels_have_a_hash_of_their_own(digits):
    other = replace(digits, labels=digits.labels.roll(1))
    assert other.content_hash() == digits.content_hash()
    assert other.labels_hash() != digits.labels_hash() == replace(digits, images=digits.images.clone()).labels_hash()
    assert len(digits.labels_hash()) == 16
    assert "_labels_hash" in vars(digits)  # kept


@pytest.mark.parametrize(("mode", "last"), [("round", 11), ("floor", 10)])
def test_quantising_inverts_the_unit_range_and_clamps_what_is_outside(mode, last):
    every = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(every)
    assert (unit[0], unit[-1], unit.dtype) == (-1.0, 1.0, torch.float32)
    # Half a level up, so that flooring is not at the mercy of a rounding.
    assert torch.equal(quantize(unit + (0.5 / 127.5 if mode == "floor" else 0), mode), every)
    assert quantize(torch.tensor([10.4, 10.6]) / 127.5 - 1, mode).tolist() == [10, last]
    assert quantize(torch.tensor([-3.0, -1.01, 1.01, 3.0]), mode).tolist() == [0, 0, 255, 255]


def test_stratified_split_takes_every_kth_of_each_class_in_file_order():
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0])
    assert stratified_split(labels, 2).nonzero().flatten().tolist() == [2, 4, 5]
    assert not stratified_split(labels, 0).any()
    assert not stratified_split(labels, 6).any()


def test_unknown_name():
    with pytest.raises(DataError, match="unknown dataset 'mnist'; known: digits"):
        load("mnist")
