"""Single pictures: bits a channel, channels, loss told by content, and what a viewer shows otherwise."""

import struct
import zlib

import numpy as np
import pytest
from pictures import encoded
from PIL import Image

from bench.data import DataError, load
from bench.data.decoder import decode

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def read(content):
    return decode("a.png", content, len(content))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_sixteen_bits_are_refused_rather_than_cut(colour, channels):
    """Pillow gives the upper 8 bits of all but grey ones."""
    rows = (b"\0" + np.full((8, channels), 0x12FF, ">u2").tobytes()) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 16, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    with pytest.raises(DataError, match="more than 8 bits a channel; convert it to 8 bits"):
        read(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize("alpha", [0, 255])
def test_grey_with_alpha_stays_one_channel_and_hidden_colour_is_told(alpha):
    image = Image.merge("LA", [Image.fromarray(PIXELS[..., 0]), Image.new("L", (8, 8), alpha)])
    picture = read(encoded(image, "PNG"))
    np.testing.assert_array_equal(picture.pixels, PIXELS[..., :1])
    assert picture.remarks == (() if alpha else ("with pixels of alpha 0, whose hidden colour is read",))


def test_a_palette_of_grey_levels_stays_one_channel():
    image = Image.fromarray(PIXELS[..., 0])
    image.putpalette([level for level in range(256) for _ in range(3)])
    assert image.mode == "P"
    np.testing.assert_array_equal(read(encoded(image, "PNG")).pixels, PIXELS[..., :1])
    assert read(encoded(Image.fromarray(PIXELS).quantize(64), "PNG")).pixels.shape == (8, 8, 3)


def test_a_transparent_entry_of_a_palette_is_told():
    image = Image.fromarray(PIXELS).quantize(8)
    assert read(encoded(image, "PNG", transparency=0)).remarks == (
        "with pixels of alpha 0, whose hidden colour is read",
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_rotation_by_exif_is_told(kind):
    exif = Image.Exif()
    for orientation, told in ((1, ()), (6, ("rotated by EXIF, which is ignored",))):
        exif[0x0112] = orientation
        assert read(encoded(Image.fromarray(PIXELS), kind, exif=exif, lossless=True)).remarks == told


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_further_frames_are_told(kind):
    frames = [Image.fromarray(np.roll(PIXELS, k, 0)) for k in range(3)]
    picture = read(encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    assert picture.remarks == ("of several frames, of which the first is read",)


LOSS = [
    ("JPEG", {}, "jpeg"), ("PNG", {}, ""), ("BMP", {}, ""), ("WEBP", {"lossless": True}, ""), ("WEBP", {}, "webp"),
    ("WEBP", {"exif": Image.Exif()}, "webp"),
    ("WEBP", {"save_all": True, "append_images": [Image.fromarray(255 - PIXELS)]}, "webp"),
    ("WEBP", {"save_all": True, "append_images": [Image.fromarray(255 - PIXELS)], "lossless": True}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "lossy"), LOSS)
def test_loss_is_told_by_content(kind, options, lossy):
    assert read(encoded(Image.fromarray(PIXELS), kind, **options)).lossy == lossy


@pytest.mark.parametrize(("kind", "suffix", "name"), [("JPEG", "png", "cifar10-jpeg"), ("PNG", "jpg", "cifar10")])
def test_a_wrong_suffix_does_not_decide_what_a_dataset_is_called(tmp_path, kind, suffix, name):
    (tmp_path / "cifar10").mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    (tmp_path / "cifar10" / f"0.{suffix}").write_bytes(encoded(image, kind))
    assert load("cifar10", tmp_path).name == name
