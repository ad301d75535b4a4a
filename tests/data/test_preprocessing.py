"""Resizing and cropping: what each mode does, checked on pictures whose result is known."""

import numpy as np
import pytest

from bench.data import DataError, Preprocessing
from bench.data.preprocessing import FILTERS


def ramp(height, width, channels=3):
    """A picture whose pixels say where they come from: row in the first channel, column in the others."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.dstack([rows, columns, columns][:channels])


def test_by_default_nothing_is_done():
    image = ramp(5, 7)
    assert Preprocessing().apply(image) is image
    assert Preprocessing().description() == "none"


@pytest.mark.parametrize(("shape", "rows", "columns"), [((6, 10), (0, 6), (2, 8)), ((9, 4), (2, 6), (0, 4))])
def test_the_largest_centred_square(shape, rows, columns):
    image = ramp(*shape)
    np.testing.assert_array_equal(
        Preprocessing(crop="center").apply(image), image[rows[0] : rows[1], columns[0] : columns[1]]
    )


def test_box_averages():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    means = image.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    small = Preprocessing(4, filter="box").apply(image)
    # Pillow rounds to a level after each of its two passes: half a level each, the first averaged by the second.
    np.testing.assert_allclose(small, means, atol=1.0)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_filter_keeps_the_mean_of_noise(name, channels):
    """Antialiased filters average: the spread of white noise falls with the ratio of sizes, the mean stays."""
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, channels), dtype=np.uint8)
    small = Preprocessing(8, filter=name).apply(noise)
    assert small.shape == (8, 8, channels)
    assert small.dtype == np.uint8
    # The mean has a standard error of 74 / 64 levels a channel; borders weigh differently, so 5 of them.
    assert abs(small.mean() - noise.mean()) < 5.8
    # Averages of 64 pixels spread by 74 / 8; picking single pixels would leave 74. Lanczos, the sharpest, keeps
    # sum(w^2)^2 = 1.2 times the box's variance a side, so below twice the box's spread for all.
    assert small.std() < 2 * 74 / 8


def test_none_stretches_and_center_does_not():
    image = ramp(40, 20)
    stretched = Preprocessing(10, "none", "bilinear").apply(image)
    cut = Preprocessing(10, "center", "bilinear").apply(image)
    # Each result pixel averages 4 (2) rows about its centre; borders are one-sided, so they are left out.
    np.testing.assert_allclose(stretched[1:-1, 5, 0], 4 * np.arange(10)[1:-1] + 1.5, atol=1.0)
    np.testing.assert_allclose(cut[1:-1, 5, 0], 10 + 2 * np.arange(10)[1:-1] + 0.5, atol=1.0)


def test_guided_halves_by_box_and_cuts_the_centre():
    """At 2^k times the size with nothing left to scale, only the box averages and the cut remain."""
    image = np.random.default_rng(2).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    halved = image.reshape(16, 2, 24, 2, 3).mean(axis=(1, 3))
    halved = halved.reshape(8, 2, 12, 2, 3).mean(axis=(1, 3))
    result = Preprocessing(8, "guided").apply(image)
    # Two halvings of two rounding passes each: at most half a level each.
    np.testing.assert_allclose(result, halved[:, 2:10], atol=2.0)


def test_guided_scales_the_shorter_side_between_powers_of_two():
    result = Preprocessing(10, "guided").apply(ramp(15, 31))
    # 15 < 2 * 10, so bicubic only: 31 columns become round(31 * 10 / 15) = 21, of which 5 to 14 are kept.
    centres = (np.arange(21) + 0.5) * 31 / 21 - 0.5
    np.testing.assert_allclose(result[5, :, 1], centres[5:15], atol=1.0)  # bicubic keeps ramps; rounded to a level
    rows = (np.arange(10) + 0.5) * 1.5 - 0.5
    np.testing.assert_allclose(result[2:-2, 5, 0], rows[2:-2], atol=1.0)


def test_guided_enlarges_too():
    assert Preprocessing(12, "guided").apply(ramp(5, 9, 1)).shape == (12, 12, 1)


def test_a_ribbon_is_refused_rather_than_blown_up():
    ribbon = np.zeros((1, 40_000, 1), np.uint8)
    with pytest.raises(DataError, match=r"40000x1 scaled to 40960000x1024 has more than"):
        Preprocessing(1024, "guided").apply(ribbon)


DESCRIPTIONS = [
    (Preprocessing(64), "resize=64 filter=bicubic"),
    (Preprocessing(64, "none", "bilinear"), "resize=64 filter=bilinear"),
    (Preprocessing(crop="center"), "crop=center"),
    (Preprocessing(32, "center", "box"), "crop=center resize=32 filter=box"),
    (Preprocessing(32, "guided"), "crop=guided resize=32"),
]


@pytest.mark.parametrize(("preprocessing", "text"), DESCRIPTIONS)
def test_descriptions(preprocessing, text):
    assert preprocessing.description() == text


BAD = [
    ({"crop": "left"}, "unknown crop 'left'; known: none, center, guided"),
    ({"resize": 8, "filter": "nearest"}, "unknown resize filter 'nearest'; known: box, bilinear, bicubic, lanczos"),
    ({"resize": 0}, "resize must be 1 to 4096 pixels, not 0"),
    ({"resize": -4}, "resize must be 1 to 4096"),
    ({"resize": 2**40}, "resize must be 1 to 4096"),
    ({"filter": "box"}, "without resize does nothing"),
    ({"crop": "guided"}, "needs resize"),
    ({"crop": "guided", "resize": 8, "filter": "box"}, "brings its own filters"),
]


@pytest.mark.parametrize(("settings", "words"), BAD)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(DataError, match=words):
        Preprocessing(**settings)
