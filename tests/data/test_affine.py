"""Variants of the digits: the maps, their draws, and the dataset made of them."""

import numpy as np
import pytest
import torch

from bench.data import Preprocessing, affine, load
from bench.data.affine import affine_variants

MIDDLE = (0.5, 0.5, 0.5, 0.5)  # draws of no rotation, scaling or shift


def variants(images, *draws):
    return affine._variants(images, np.array(draws))


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)


def test_nothing_drawn_is_nothing_done(noise):
    np.testing.assert_array_equal(variants(noise, *[(*MIDDLE, 1.0)] * 5), noise)


def test_intensity_is_at_least_eight_tenths(noise):
    dark = variants(noise, *[(*MIDDLE, 0.0)] * 5)
    np.testing.assert_array_equal(dark, np.rint(noise * 0.8))


@pytest.mark.parametrize(
    "draw", [(1.0, 0.5, 0.5, 0.5), (0.5, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 0.0), (0.1, 0.9, 0.3, 0.8)]
)
def test_a_plane_stays_the_plane_it_is_mapped_to(draw):
    """The cubic convolution reproduces linear functions: inside, each pixel is the plane where it comes from."""
    rows, columns = np.mgrid[:16, :16] - 7.5
    plane = (128 + 3 * rows + 5 * columns).astype(np.uint8)  # exact: whole and half numbers cancel in steps of 8
    exact = 128 + 3 * rows + 5 * columns
    found = variants(plane[None], (*draw, 1.0))[0].astype(float)
    angle, scale = np.deg2rad(15) * (2 * draw[0] - 1), 1.18 ** (2 * draw[1] - 1)
    y, x = rows - 0.8 * (2 * draw[2] - 1), columns - 0.8 * (2 * draw[3] - 1)
    source = (np.cos(angle) * y - np.sin(angle) * x) / scale, (np.sin(angle) * y + np.cos(angle) * x) / scale
    expected = 128 + 3 * source[0] + 5 * source[1]
    assert (plane == exact).all()
    inside = (abs(source[0]) <= 6.5) & (abs(source[1]) <= 6.5)
    assert inside.sum() > 100
    assert abs(found - expected)[inside].max() <= 0.5  # rounding


def test_beyond_the_edge_it_is_black(noise):
    """Shifted by 0.8 pixels down, the first row is a cubic's weights of 0.8 and 1.8 pixels of the first two rows."""
    bright = np.full((1, 8, 8), 250, dtype=np.uint8)
    found = variants(bright, (0.5, 0.5, 1.0, 0.5, 1.0))[0]
    weights = affine._cubic(np.array([0.8, 1.8]))
    assert (found[0] == round(250 * weights.sum())).all()
    assert (found[4] == 250).all()


def test_variants_repeat_and_come_in_order(noise, monkeypatch):
    found = affine_variants(noise, 12, seed=3)
    assert (found.shape, found.dtype) == ((12, 8, 8), np.uint8)
    np.testing.assert_array_equal(affine_variants(noise, 12, seed=3), found)
    np.testing.assert_array_equal(affine_variants(np.concatenate([noise, noise]), 12, seed=3), found)
    assert (affine_variants(noise, 12, seed=4) != found).any()
    monkeypatch.setattr(affine, "_BLOCK", 5)
    np.testing.assert_array_equal(affine_variants(noise, 12, seed=3), found)


@pytest.mark.ci
def test_the_dataset():
    data = load("digits-affine")
    assert (data.name, data.shape, data.classes, data.preprocessing) == ("digits-affine", (1, 8, 8), 10, "affine")
    assert (data.count("train"), data.count("heldout")) == (120_000, 12_000)
    digits = load("digits")
    for part in ("train", "heldout"):
        labels = digits.part_labels(part)
        assert torch.equal(data.part_labels(part)[: len(labels)], labels)
        # A digit and its variants look alike: each of them is nearer to its own than to most others.
        own, first = digits.part(part)[:300].float().flatten(1), data.part(part)[:300].float().flatten(1)
        apart = torch.cdist(first, own)
        assert ((apart <= apart.diagonal()[:, None]).double().mean(1)).median() < 0.02
    assert data.content_hash() == "30f46ba04bedf8ba"  # the one that embedded weights belong to
    assert len(data.images.flatten(1).unique(dim=0)) == 132_000  # no image is twice in it


def test_its_digits_can_be_preprocessed_and_held_out_otherwise(monkeypatch):
    monkeypatch.setattr("bench.data.dataset._VARIANTS", (30, 20))
    data = load("digits-affine", heldout_every=2, preprocessing=Preprocessing(16, filter="box"))
    assert (data.shape, data.preprocessing) == ((1, 16, 16), "resize=16 filter=box affine")
    assert (data.count("train"), data.count("heldout")) == (30, 20)
