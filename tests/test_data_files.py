"""Datasets from npz files, folders and zips, sound and damaged."""

import io
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data import DataError, load_path
from bench.files import limits


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


def pack(target, folder, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(target, "w", compression) as archive:
        for path in sorted(folder.rglob("*.*"), reverse=True):
            archive.write(path, path.relative_to(folder))


def test_zip_equals_its_folder(tmp_path):
    write_folder(tmp_path / "set", pictures(5))
    pack(tmp_path / "set.zip", tmp_path / "set")
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


@pytest.mark.parametrize("mode", ["L", "1"])
def test_pictures_that_are_all_grey_keep_one_channel(tmp_path, mode):
    (tmp_path / "set").mkdir()
    grey = [Image.fromarray(image[..., 0], "L").convert(mode) for image in pictures(2, 1)]
    for k, image in enumerate(grey):
        image.save(tmp_path / "set" / f"{k}.png")
    pack(tmp_path / "set.zip", tmp_path / "set")
    for path in (tmp_path / "set", tmp_path / "set.zip"):
        data = load_path("mine", path)
        assert data.shape == (1, 4, 4)
        np.testing.assert_array_equal(data.images[:, 0], [np.asarray(image.convert("L")) for image in grey])


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


def refusal(path):
    """Return the one-line message of the DataError."""
    with pytest.raises(DataError) as caught:
        load_path("mine", path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.count(str(path)) == 1
    return message


def test_an_npy_by_another_name_is_refused(tmp_path):
    np.save(tmp_path / "data.npy", pictures(3))
    (tmp_path / "data.npy").rename(tmp_path / "data.npz")
    assert "it is a single .npy array" in refusal(tmp_path / "data.npz")


def spoil(path, offset, value):
    """Overwrite two bytes of every record of a zip: the local headers and, 2 bytes on, the central directory."""
    data = bytearray(path.read_bytes())
    for magic, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset + shift : at + offset + shift + 2] = value.to_bytes(2, "little")
            at = data.find(magic, at + 4)
    path.write_bytes(data)


def write_packed(path):
    if path.suffix == ".npz":
        np.savez_compressed(path, arr_0=pictures(3, size=32))
    else:
        write_folder(path.parent / "set", pictures(3, size=32))
        pack(path, path.parent / "set", zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("name", ["data.npz", "data.zip"])
@pytest.mark.parametrize(("offset", "value", "words"), [(6, 1, "encrypted"), (8, 99, "compression")])
def test_zips_that_are_encrypted_or_strangely_compressed_are_refused(tmp_path, name, offset, value, words):
    write_packed(tmp_path / name)
    spoil(tmp_path / name, offset, value)
    assert words in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["data.npz", "data.zip"])
def test_zips_damaged_anywhere_are_refused_or_read(tmp_path, name):
    """A few bytes of rubbish at many places: zlib, zipfile, numpy and Pillow each complain in their own way."""
    path = tmp_path / name
    write_packed(path)
    data, messages = path.read_bytes(), []
    for at in range(0, len(data) - 4, len(data) // 60):
        path.write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
        try:
            load_path("mine", path)
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert not any("\n" in message for message in messages)


def test_members_are_opened_one_at_a_time(tmp_path, monkeypatch):
    write_folder(tmp_path / "set", pictures(5))
    pack(tmp_path / "set.zip", tmp_path / "set")
    opened, most = [], []

    def spy(self, name, whole=zipfile.ZipFile.open):
        opened.append(whole(self, name))
        most.append(sum(not member.closed for member in opened))
        return opened[-1]

    monkeypatch.setattr(zipfile.ZipFile, "open", spy)
    load_path("mine", tmp_path / "set.zip")
    assert most == [1] * 5


@pytest.mark.parametrize("name", ["a.png", "a.png/", "../escaped.png", "/absolute/a.png", "a/../../b.png", "../b.txt"])
def test_names_that_leave_the_zip_are_refused(tmp_path, name):
    image = io.BytesIO()
    Image.fromarray(pictures(1)[0]).save(image, "png")
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "set.zip", "w") as archive:
        archive.writestr("first.png", image.getvalue())
        archive.writestr(name, b"" if name.endswith("/") else image.getvalue())
    if name.startswith("a.png"):
        assert len(load_path("mine", tmp_path / "in" / "set.zip").images) == (1 if name.endswith("/") else 2)
    else:
        with pytest.raises(DataError, match="leads out of the archive; pack it anew"):
            load_path("mine", tmp_path / "in" / "set.zip")
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "set.zip"]


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
    monkeypatch.setattr(limits, "MAX_PIXELS", 15)
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png has more than 15 pixels, too many to decode; resize it first"):
        load_path("mine", tmp_path)


@pytest.mark.parametrize("size", [(10000, 9500), (30000, 30000)])
def test_a_picture_beyond_pillows_own_limits(tmp_path, size):
    """Pillow warns above 89 million pixels and raises above twice that; only the header says so here."""
    width, height = (n.to_bytes(4, "big") for n in size)
    header = b"IHDR" + width + height + b"\x08\x02\x00\x00\x00"
    data = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data + (0).to_bytes(4, "big") + b"IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"a\.png has more than 67108864 pixels") as caught:
            load_path("mine", tmp_path)
    assert "\n" not in str(caught.value)
