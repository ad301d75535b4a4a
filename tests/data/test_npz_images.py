"""Npz files: labels, layouts, options, and headers that lie."""

import io
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from numpy.lib import format as npy
from pictures import zipped
from sklearn.datasets import load_sample_images

from bench.data import Preprocessing, load, load_path
from bench.files import limits


def header(shape, descr="|u1", fortran=False, version=(1, 0)):
    file = io.BytesIO()
    entries = {"descr": descr, "fortran_order": fortran, "shape": shape}
    (npy.write_array_header_1_0 if version == (1, 0) else npy.write_array_header_2_0)(file, entries)
    return file.getvalue()


LABELS = [
    ([0, 2, 1, 2], [0, 2, 1, 2]),
    (np.array([700, 5, 5, 30], np.uint16), [2, 0, 0, 1]),
    (np.array([-1, 0, 2**62, 0], ">i8"), [0, 1, 2, 1]),
    (np.array([2**64 - 1, 0, 0, 0], np.uint64), [0, 1, 1, 1]),
    ([True, False, True, False], [1, 0, 1, 0]),
    (["dog", "cat", "cat", "dög"], [1, 0, 0, 2]),
    (["10", "9", "9", "8"], [2, 1, 1, 0]),
    (np.array([b"b", b"a", b"\xff", b"a"]), [1, 0, 2, 0]),
]


@pytest.mark.parametrize(("labels", "expected"), LABELS)
def test_labels_are_numbered_in_order_of_their_values(tmp_path, images, labels, expected):
    np.savez(tmp_path / "x.npz", arr_0=images(4), arr_1=np.asarray(labels))
    data = load_path("mine", tmp_path / "x.npz")
    assert (data.labels.tolist(), data.classes) == (expected, len(set(expected)))


def test_labels_of_a_known_dataset_stay_as_they_are(tmp_path, images, refusal):
    path = tmp_path / "imagenet32.npz"
    np.savez(path, arr_0=images(3), arr_1=np.array([999, 0, 7]))
    assert load("imagenet32", tmp_path).labels.tolist() == [999, 0, 7]
    for outside in (-1, 1000, 2**63 + 5):
        np.savez(path, arr_0=images(3), arr_1=np.array([outside, 0, 7], np.uint64 if outside > 2**62 else np.int64))
        assert "those of imagenet32 0 to 999" in refusal(tmp_path, "imagenet32")


def test_labels_of_a_dataset_without_classes_do_not_matter(tmp_path, images):
    np.savez(tmp_path / "celeba64.npz", arr_0=images(3, 64), arr_1=np.array([4, -4, 77]))
    assert load("celeba64", tmp_path).labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("block", [2**24, 2 * 72 + 1])  # all at a time, or two images, the last alone
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_layouts(tmp_path, images, monkeypatch, block, order, channels, save):
    monkeypatch.setattr("bench.data.npz_images._BLOCK", block)
    pixels = images(5, 6, channels)[:, :4]  # higher than wide would go unnoticed in squares
    save(tmp_path / "x.npz", arr_0=np.asarray(pixels, order=order))
    np.testing.assert_array_equal(load_path("mine", tmp_path / "x.npz").images, pixels.transpose(0, 3, 1, 2))


def test_preprocessing_is_applied_and_recorded(tmp_path, images):
    np.savez(tmp_path / "x.npz", arr_0=images(5, 8))
    preprocessing = Preprocessing(4, "none", "box")
    data = load_path("mine", tmp_path / "x.npz", preprocessing=preprocessing)
    assert data.preprocessing == "resize=4 filter=box"
    np.testing.assert_array_equal(data.images[2].permute(1, 2, 0), preprocessing.apply(images(5, 8)[2]))


def test_known_datasets_have_a_size_and_colour(tmp_path, images, refusal):
    np.savez(tmp_path / "celeba64.npz", arr_0=images(2, 32, 1))
    message = refusal(tmp_path, "celeba64")
    assert message.endswith("images are 32x32, those of celeba64 64x64; set the option resize to 64")
    assert load("celeba64", tmp_path, preprocessing=Preprocessing(64)).shape == (3, 64, 64)


LYING = {
    "more than the member holds": (header((3, 4, 4, 3)) + bytes(100), "ends before its declared size"),
    "less than the member holds": (header((3, 4, 4, 3)) + bytes(145), "goes on beyond"),
    "pixels of one image": (header((1, 2**20, 2**20, 3)), "too many to decode"),
    "all memory": (header((2**40, 4, 4, 3)), "more than 17179869184; keep fewer"),
    "a bomb": (header((2**20, 32, 32, 3)), "unfolds to over 250 times"),
    "negative": (header((-1, 4, 4, 3)), "must be uint8 .N, H, W, 1 or 3., not uint8 .-1"),
    "no numbers": (header(("a", 4, 4, 3)), "not an npz of images"),
    "objects": (header((1,), "|O") + pickle.dumps([1]), "not object"),
    "fields": (header((1,), [("a", "|u1")], version=(2, 0)) + b"\0", "must be uint8"),
    "unknown version": (b"\x93NUMPY\x09\x00", "9, 0"),
    "a header of code": (b"\x93NUMPY\x01\x00\x20\x00__import__('os').getpid()      \n", "not an npz of images"),
    "a long header": (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 100, "not an npz of images"),
    "nothing": (b"", "not an npz of images"),
}


@pytest.mark.parametrize(("content", "words"), LYING.values(), ids=LYING)
def test_headers_that_lie(tmp_path, refusal, content, words):
    zipped(tmp_path / "x.npz", {"arr_0.npy": content})
    assert re.search(words, refusal(tmp_path / "x.npz"))


IMAGES = np.zeros((3, 4, 4, 3), np.uint8)
BAD = {
    "floats": {"arr_0": np.zeros((3, 4, 4, 3))},
    "flat": {"arr_0": np.zeros((3, 48), np.uint8)},
    "channels first": {"arr_0": np.zeros((3, 3, 4, 4), np.uint8)},
    "empty": {"arr_0": IMAGES[:0]},
    "another name": {"images": IMAGES},
    "object images": {"arr_0": np.array([{}, {}], dtype=object)},
    "fractional labels": {"arr_0": IMAGES, "arr_1": np.array([0.5, 1, 2])},
    "labels that are no numbers": {"arr_0": IMAGES, "arr_1": np.array([np.nan, 1, 2])},
    "dates as labels": {"arr_0": IMAGES, "arr_1": np.array(["2020-01-01"] * 3, "M8[D]")},
    "two labels a picture": {"arr_0": IMAGES, "arr_1": np.zeros((3, 2), int)},
    "no labels": {"arr_0": IMAGES, "arr_1": np.zeros(0, int)},
    "a single label": {"arr_0": IMAGES, "arr_1": np.array(3)},
    "object labels": {"arr_0": IMAGES, "arr_1": np.array([{}, {}, {}], dtype=object)},
}


@pytest.mark.parametrize("arrays", BAD.values(), ids=BAD)
def test_bad_arrays(tmp_path, refusal, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    assert f"'{'arr_1' if 'arr_1' in arrays else 'arr_0'}'" in refusal(tmp_path / "x.npz")


AS_GIVEN = {
    "0 to 1": lambda x: x / 255,
    "-1 to 1": lambda x: (x / 127.5 - 1).astype("f4"),
    "0 to 255 in floats": lambda x: x.astype("f8"),
    "wide numbers": lambda x: x.astype("i8"),
    "channels first": lambda x: x.transpose(0, 3, 1, 2),
    "channels first, -1 to 1": lambda x: (x / 127.5 - 1).transpose(0, 3, 1, 2),
    "rows": lambda x: x.transpose(0, 3, 1, 2).reshape(len(x), -1),
    "alpha": lambda x: np.concatenate([x, x[..., :1]], axis=3),
}


@pytest.mark.parametrize("key", ["arr_0", "samples", None])
@pytest.mark.parametrize("given", AS_GIVEN.values(), ids=AS_GIVEN)
def test_the_line_that_mends_an_array_of_another_kind_works(tmp_path, images, refusal, given, key):
    array = given(images(5, 6))
    if key == "samples" and array.ndim == 2:
        pytest.skip("rows of numbers under any name are no images")
    path = tmp_path / ("x.npz" if key else "x.npy")
    np.savez(path, **{key: array}) if key else np.save(path, array)
    message = refusal(path)
    assert f"{array.dtype} " in message
    expression, source = re.search(r"arr_0=(.*)\) with x = (.*)", message).groups()
    x = eval(source, {"np": np, "FILE": path})
    np.testing.assert_array_equal(eval(expression, {"np": np, "x": x}), images(5, 6))


@pytest.mark.parametrize(
    "array", [np.full((3, 4, 4, 3), np.nan), np.full((3, 4, 4, 3), 1e6), -np.ones((3, 4, 4, 3), int)]
)
def test_values_that_are_no_grey_levels_have_no_such_line(tmp_path, refusal, array):
    np.savez(tmp_path / "x.npz", arr_0=array)
    assert refusal(tmp_path / "x.npz").endswith("(3, 4, 4, 3)")


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_floats_a_little_outside_have_a_line_that_clips(tmp_path, refusal, low):
    array = np.linspace(low - 0.01, 1.01, 3 * 4 * 4 * 3).reshape(3, 4, 4, 3)
    np.savez(tmp_path / "x.npz", arr_0=array)
    line = refusal(tmp_path / "x.npz")
    assert f".clip({low:g}, 1)" in line
    x = array
    pixels = eval(re.search(r"arr_0=(.*)\) with", line)[1], {"np": np, "x": x})
    assert (pixels.dtype, pixels.min(), pixels.max()) == (np.uint8, 0, 255)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04cut"])
def test_a_file_that_is_no_archive(tmp_path, refusal, content):
    (tmp_path / "x.npz").write_bytes(content)
    assert "x.npz is truncated or no npz" in refusal(tmp_path / "x.npz")


def test_arrays_under_other_suffixes(tmp_path, refusal, images):
    np.savez(tmp_path / "x.npz", arr_0=images(3, 4))
    path = (tmp_path / "x.npz").rename(tmp_path / "samples")
    assert refusal(path).endswith("is an npz under another name; rename it to samples.npz")
    torch.save(torch.zeros(2), tmp_path / "samples.pt")
    assert "is a file of torch.save; write its images with np.savez" in refusal(tmp_path / "samples.pt")


def test_arrays_that_are_no_images_are_named(tmp_path, refusal):
    np.savez(tmp_path / "x.npz", pool_3=np.zeros((10, 2048)), names=np.array(["a"]))
    assert "holds 'pool_3' float64 [10, 2048], 'names' <U1 [1] and no images" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize("first", [0, 1])
def test_downsampled_imagenet_as_published(tmp_path, images, first):
    """Rows of 3072 bytes by channel; classes count from 1."""
    pixels = images(6)
    rows = pixels.transpose(0, 3, 1, 2).reshape(6, -1)
    np.savez(tmp_path / "imagenet32.npz", data=rows, labels=np.arange(6) + first, mean=np.zeros(3072))
    data = load("imagenet32", tmp_path)
    np.testing.assert_array_equal(data.images, pixels.transpose(0, 3, 1, 2))
    assert data.labels.tolist() == list(range(6))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rows_are_read_in_the_order_in_which_they_are_smooth(tmp_path, grey, interleaved):
    """A photograph's crops as rows by channel, as ImageNet is published, or pixel by pixel as a reshape makes them."""
    photo = np.asarray(load_sample_images().images[0])  # [427, 640, 3]
    pixels = np.stack([photo[k * 30 : k * 30 + 32, k * 40 : k * 40 + 32] for k in range(12)])
    if grey:
        pixels = np.repeat(pixels[..., :1], 3, axis=3)
    rows = pixels.reshape(12, -1) if interleaved else pixels.transpose(0, 3, 1, 2).reshape(12, -1)
    np.savez(tmp_path / "x.npz", data=rows)
    data = load_path("mine", tmp_path / "x.npz")
    np.testing.assert_array_equal(data.images, pixels.transpose(0, 3, 1, 2)[:, : data.images.shape[1]])
    assert ("channels of each pixel side by side" in data.note) == interleaved


def test_labels_that_nobody_needs_are_not_read(tmp_path, images, refusal):
    np.savez(tmp_path / "x.npz", arr_0=images(4), arr_1=np.eye(4))
    assert refusal(tmp_path / "x.npz").endswith("of one-hot labels write y.argmax(1)")
    assert load_path("mine", tmp_path / "x.npz", classes=False).labels.tolist() == [0] * 4


def test_labels_of_enormous_texts(tmp_path, images, refusal):
    np.savez(tmp_path / "x.npz", arr_0=images(3, 4))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("arr_1.npy", header((3,), "<U100000000"))
    assert "'arr_1' has 1200000000 bytes" in refusal(tmp_path / "x.npz")


def test_a_small_file_of_many_equal_pixels(tmp_path, refusal, monkeypatch):
    """Deflate packs zeros 1000 times: below the limit on the total, out of proportion once it is no small set."""
    np.savez_compressed(tmp_path / "x.npz", arr_0=np.zeros((100, 64, 64, 3), np.uint8))
    assert len(load_path("mine", tmp_path / "x.npz").images) == 100
    monkeypatch.setitem(limits._SMALL, "pixels", 2**20)
    assert "unfolds to over 250 times its size on disk" in refusal(tmp_path / "x.npz")


def test_checksums_are_compared(tmp_path, images, refusal):
    np.savez(tmp_path / "x.npz", arr_0=images(3, 4))
    content = (tmp_path / "x.npz").read_bytes()
    at = content.index(images(3, 4)[1].tobytes())
    (tmp_path / "x.npz").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert "Bad CRC-32" in refusal(tmp_path / "x.npz")


def test_labels_are_optional_and_a_part_is_held_out_by_class(tmp_path, images):
    np.savez(tmp_path / "x.npz", arr_0=images(6), arr_1=[3, 1, 3, 1, 2, 2])
    assert load_path("mine", tmp_path / "x.npz", heldout_every=2).heldout.nonzero().flatten().tolist() == [2, 3, 5]
    np.savez(tmp_path / "x.npz", arr_0=images(5))
    data = load_path("mine", tmp_path / "x.npz")
    assert data.labels.tolist() == [0] * 5
    assert not data.heldout.any()


def test_an_npy_by_another_name_is_refused(tmp_path, images, refusal):
    np.save(tmp_path / "x.npy", images(3))
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    assert "it is a single .npy array" in refusal(tmp_path / "x.npz")
