import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data import DataError, load, load_path, quantize, stratified_split, to_unit


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_the_digits(digits):
    assert (digits.name, digits.shape, len(digits.images)) == ("digits", (1, 8, 8), 1797)
    assert digits.images.dtype == torch.uint8
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert len(digits.images.unique()) == 17  # grey levels 0 to 16
    assert digits.labels.unique().tolist() == list(range(10))


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
    from dataclasses import replace

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


def test_unit_range():
    values = to_unit(torch.tensor([0, 255], dtype=torch.uint8))
    assert values.tolist() == [-1.0, 1.0]
    assert values.dtype == torch.float32


@pytest.mark.parametrize("mode", ["round", "floor"])
def test_quantising_inverts_the_unit_range(mode):
    every = torch.arange(256, dtype=torch.uint8)
    # Half a level up, so that flooring is not at the mercy of a rounding.
    x = to_unit(every) + (0.5 / 127.5 if mode == "floor" else 0)
    assert torch.equal(quantize(x, mode), every)


def test_rounding_modes():
    x = torch.tensor([10.4, 10.6]) / 127.5 - 1
    assert quantize(x).tolist() == [10, 11]
    assert quantize(x, "floor").tolist() == [10, 10]


@pytest.mark.parametrize("mode", ["round", "floor"])
def test_values_outside_the_range_are_clamped_not_wrapped(mode):
    assert quantize(torch.tensor([-3.0, -1.01, 1.01, 3.0]), mode).tolist() == [0, 0, 255, 255]


def test_stratified_split_takes_every_kth_of_each_class_in_file_order():
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0])
    assert stratified_split(labels, 2).nonzero().flatten().tolist() == [2, 4, 5]
    assert not stratified_split(labels, 0).any()
    assert not stratified_split(labels, 6).any()


def pictures(count, channels=3, size=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_npz(tmp_path, channels):
    images, labels = pictures(6, channels), np.array([3, 1, 3, 1, 2, 2])
    np.savez(tmp_path / "data.npz", arr_0=images, arr_1=labels)
    data = load_path("mine", tmp_path / "data.npz", heldout_every=2)
    assert (data.name, data.shape) == ("mine", (channels, 4, 4))
    np.testing.assert_array_equal(data.images, images.transpose(0, 3, 1, 2))
    assert data.labels.tolist() == [2, 0, 2, 0, 1, 1]
    assert data.heldout.nonzero().flatten().tolist() == [2, 3, 5]


def test_npz_without_labels_is_one_class(tmp_path):
    np.savez(tmp_path / "data.npz", arr_0=pictures(5))
    data = load_path("mine", tmp_path / "data.npz")
    assert data.labels.tolist() == [0] * 5
    assert not data.heldout.any()


def write_folder(root, images):
    for k, image in enumerate(images):
        folder = root / ("a" if k % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{k}.png")
    (root / "notes.txt").write_text("not an image")


def test_folder_takes_classes_from_names_and_order_from_paths(tmp_path):
    images = pictures(5)
    write_folder(tmp_path / "set", images)
    data = load_path("mine", tmp_path / "set")
    np.testing.assert_array_equal(data.images, images[[1, 3, 0, 2, 4]].transpose(0, 3, 1, 2))
    assert data.labels.tolist() == [0, 0, 1, 1, 1]


def test_zip_equals_its_folder(tmp_path):
    write_folder(tmp_path / "set", pictures(5))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted((tmp_path / "set").rglob("*.*"), reverse=True):
            archive.write(path, path.relative_to(tmp_path / "set"))
    folder, packed = load_path("x", tmp_path / "set"), load_path("x", tmp_path / "set.zip")
    assert folder.content_hash() == packed.content_hash()
    assert torch.equal(folder.labels, packed.labels)


def test_grey_and_transparent_pictures_become_rgb(tmp_path):
    (tmp_path / "set").mkdir()
    grey = pictures(1, 1)[0, ..., 0]
    Image.fromarray(grey, "L").save(tmp_path / "set" / "a.png")
    Image.fromarray(np.dstack([grey, grey, grey, grey]), "RGBA").save(tmp_path / "set" / "b.png")
    data = load_path("mine", tmp_path / "set")
    for image in data.images:
        np.testing.assert_array_equal(image, np.stack([grey] * 3))


def test_unknown_name():
    with pytest.raises(DataError, match="unknown dataset 'mnist'; known: digits"):
        load("mnist")


def test_missing_path(tmp_path):
    with pytest.raises(DataError, match=r"absent\.npz does not exist; check the path or --data-dir"):
        load_path("mine", tmp_path / "absent.npz")


BAD_ARRAYS = {
    "float": {"arr_0": np.zeros((3, 4, 4, 3))},
    "flat": {"arr_0": np.zeros((3, 48), np.uint8)},
    "channels first": {"arr_0": np.zeros((3, 3, 4, 4), np.uint8)},
    "empty": {"arr_0": np.zeros((0, 4, 4, 3), np.uint8)},
    "labels": {"arr_0": np.zeros((3, 4, 4, 3), np.uint8), "arr_1": np.zeros(2, int)},
    "name": {"images": np.zeros((3, 4, 4, 3), np.uint8)},
    "objects": {"arr_0": np.array([{}, {}], dtype=object)},
}


@pytest.mark.parametrize("arrays", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays(tmp_path, arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"data\.npz.*'arr_[01]'") as caught:
        load_path("mine", path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04 half a zip"])
@pytest.mark.parametrize("name", ["data.npz", "data.zip"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name) as caught:
        load_path("mine", tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_without_images(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError, match="holds no images"):
        load_path("mine", tmp_path)


def test_pictures_of_different_sizes(tmp_path):
    for size in (4, 5):
        Image.fromarray(pictures(1, size=size)[0]).save(tmp_path / f"{size}.png")
    with pytest.raises(DataError, match=r"differ in size.*resize them first"):
        load_path("mine", tmp_path)


def test_a_picture_that_cannot_be_decoded(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG rubbish")
    with pytest.raises(DataError, match=r"broken\.png cannot be decoded"):
        load_path("mine", tmp_path)


def test_a_picture_too_large_to_decode(tmp_path, monkeypatch):
    from bench import data

    monkeypatch.setattr(data, "_MAX_PIXELS", 15)
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="4x4 pixels is too large"):
        load_path("mine", tmp_path)
