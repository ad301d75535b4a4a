"""CIFAR-10's python and binary archives: sound, damaged and hostile."""

import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest
from hostile import touch
from PIL import Image

from bench.data import Preprocessing, load, load_path
from bench.data.dataset import reduced

FOLDERS = {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}


@pytest.fixture
def contents(batches, python_batch, python_2_batch, binary_batch):
    return {
        "python": batches(python_batch),
        "python 2": batches(python_2_batch),
        "binary": batches(binary_batch, ".bin"),
    }


def write(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def whole(data, images):
    """Tell whether a dataset is the twelve pictures, with their labels and the split of the archives."""
    return (
        np.array_equal(data.images, images(12).transpose(0, 3, 1, 2))
        and data.labels.tolist() == [*range(10), 0, 1]
        and data.heldout.tolist() == [False] * 10 + [True] * 2
        and (data.name, data.classes, data.preprocessing) == ("cifar10", 10, "none")
    )


@pytest.mark.parametrize("kind", ["python", "python 2", "binary"])
def test_archives_and_folders_give_the_same(tmp_path, contents, packed, images, kind):
    """Every archive lies in a folder, is the folder's content, or is itself what --data-dir names."""
    folder = FOLDERS[kind.split()[0]]
    write(tmp_path / "unpacked" / folder, contents[kind])
    (tmp_path / "packed").mkdir()
    archive = tmp_path / "packed" / f"cifar-10-{kind.split()[0]}.tar.gz"
    packed(archive, {f"{folder}/{name}": content for name, content in contents[kind].items()})
    for data_dir in (tmp_path / "unpacked", tmp_path / "unpacked" / folder, tmp_path / "packed", archive):
        assert whole(load("cifar10", data_dir), images)
    assert not [path for path in (tmp_path / "packed").iterdir() if path != archive]
    by_path = load_path("cifar10", archive)
    assert by_path.content_hash() == load("cifar10", archive).content_hash()


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol(tmp_path, batches, python_batch, images, protocol):
    def encode(pixels, labels):
        return python_batch(pixels, np.array(labels) if labels[0] % 4 else list(np.array(labels)), protocol)

    write(tmp_path / FOLDERS["python"], batches(encode))
    assert whole(load("cifar10", tmp_path), images)


def test_names_of_either_numpy(tmp_path, contents, images):
    swap = (b"numpy._core", b"numpy.core") if b"numpy._core" in contents["python"]["test_batch"] else ()
    files = {name: content.replace(*swap) if swap else content for name, content in contents["python"].items()}
    write(tmp_path / FOLDERS["python"], files)
    assert whole(load("cifar10", tmp_path), images)


def test_arrays_in_fortrans_order(tmp_path, batches, images):
    def encode(pixels, labels):
        data = np.asfortranarray(pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1))
        return pickle.dumps({"data": data, "labels": labels})

    write(tmp_path / FOLDERS["python"], batches(encode))
    assert whole(load("cifar10", tmp_path), images)


def test_options(tmp_path, contents, refusal):
    write(tmp_path / FOLDERS["binary"], contents["binary"])
    every = load("cifar10", tmp_path, heldout_every=2)
    assert every.heldout.nonzero().flatten().tolist() == [10, 11]  # the second of each class that has one
    assert "set the option resize to 32" in refusal(tmp_path, "cifar10", preprocessing=Preprocessing(resize=16))
    assert load_path("small", tmp_path / FOLDERS["binary"], preprocessing=Preprocessing(16)).shape == (3, 16, 16)


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_a_missing_batch(tmp_path, contents, packed, refusal, kind):
    suffix = ".bin" if kind == "binary" else ""
    files = {name: content for name, content in contents[kind].items() if name != f"data_batch_3{suffix}"}
    write(tmp_path / FOLDERS[kind], files)
    packed(tmp_path / "c.tar.gz", {f"{FOLDERS[kind]}/{name}": content for name, content in files.items()})
    for path in (tmp_path, tmp_path / "c.tar.gz"):
        assert f"lacks data_batch_3{suffix}; get the archive of CIFAR-10 again" in refusal(path, "cifar10")


def test_a_pickle_that_would_run_a_command(tmp_path, contents, refusal):
    touched = tmp_path / "touched"
    hostile = pickle.dumps({b"data": touch(touched), b"labels": [0]})
    write(tmp_path / FOLDERS["python"], contents["python"] | {"data_batch_2": hostile})
    assert "data_batch_2 is no batch of CIFAR-10 (it asks for 'posix.system'" in refusal(tmp_path, "cifar10")
    assert not touched.exists()
    pickle.loads(hostile)  # the same bytes, read the usual way
    assert touched.exists()


def shared_lists(depth):
    """A list of 10 ** depth elements, as an array, that takes a few hundred bytes."""
    here = [0] * 10
    for _ in range(depth):
        here = [here] * 10
    return here


GOOD = np.zeros((2, 3072), np.uint8)
BAD_ENTRIES = {
    "no dictionary": [1, 2],
    "no data": {"labels": [0, 1]},
    "no labels": {"data": GOOD},
    "data is a list": {"data": [0], "labels": [0, 1]},
    "floats": {"data": GOOD.astype(np.float32), "labels": [0, 1]},
    "signed": {"data": GOOD.astype(np.int8), "labels": [0, 1]},
    "objects": {"data": GOOD.astype(object), "labels": [0, 1]},
    "shape": {"data": GOOD.reshape(2, 3, 32, 32), "labels": [0, 1]},
    "columns": {"data": GOOD[:, :3000].copy(), "labels": [0, 1]},
    "empty": {"data": GOOD[:0], "labels": []},
    "label below": {"data": GOOD, "labels": [0, -1]},
    "label above": {"data": GOOD, "labels": [0, 10]},
    "label far above": {"data": GOOD, "labels": [0, 2**80]},
    "labels too few": {"data": GOOD, "labels": [0]},
    "labels as texts": {"data": GOOD, "labels": ["a", "b"]},
    "fractional labels": {"data": GOOD, "labels": [0.5, 1.0]},
    "labels that grow": {"data": GOOD, "labels": shared_lists(12)},
}


@pytest.mark.parametrize("entries", BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_bad_entries(tmp_path, contents, refusal, entries):
    write(tmp_path / FOLDERS["python"], contents["python"] | {"data_batch_4": pickle.dumps(entries)})
    assert "data_batch_4 is no batch of CIFAR-10 (" in refusal(tmp_path, "cifar10")


def test_shapes_that_are_only_declared(tmp_path, contents, python_2_batch, images, refusal):
    batch = python_2_batch(images(2), [0, 1])
    huge = batch.replace(b"J\x02\x00\x00\x00", b"J\xff\xff\xff\x7f")
    assert huge != batch
    write(tmp_path / FOLDERS["python"], contents["python"] | {"data_batch_1": huge})
    assert "cannot reshape" in refusal(tmp_path, "cifar10")


BAD_BINARY = {"label": lambda good: b"\x0a" + good[1:], "cut": lambda good: good[:-1], "empty": lambda good: b""}


@pytest.mark.parametrize("spoil", BAD_BINARY.values(), ids=BAD_BINARY)
def test_bad_binary_batches(tmp_path, contents, refusal, spoil):
    files = contents["binary"]
    write(tmp_path / FOLDERS["binary"], files | {"test_batch.bin": spoil(files["test_batch.bin"])})
    assert "test_batch.bin is no batch of CIFAR-10 (" in refusal(tmp_path, "cifar10")


def test_a_batch_larger_than_any(tmp_path, contents, refusal):
    write(tmp_path / FOLDERS["binary"], contents["binary"])
    with (tmp_path / FOLDERS["binary"] / "data_batch_5.bin").open("wb") as file:
        file.truncate(2**40)  # takes no space on disk
    assert "more than 67108864 bytes" in refusal(tmp_path, "cifar10")


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_members_that_are_no_files_are_as_good_as_absent(tmp_path, contents, refusal, kind):
    (tmp_path / "secret").write_bytes(contents["python"]["test_batch"])
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        for name, content in contents["python"].items():
            info = member(f"{FOLDERS['python']}/{name}")
            if name == "test_batch":
                archive.addfile(member(info.name, kind, str(tmp_path / "secret")))
                continue
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert "lacks test_batch" in refusal(tmp_path / "c.tar.gz", "cifar10")


@pytest.mark.parametrize("prefix", ["../", "/", "x/../", "other/"])
def test_members_elsewhere_are_not_taken(tmp_path, contents, packed, refusal, prefix):
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / "c.tar.gz"
    packed(archive, {f"{prefix}{FOLDERS['python']}/{name}": x for name, x in contents["python"].items()})
    assert "holds neither cifar-10-batches-py nor cifar-10-batches-bin" in refusal(archive, "cifar10")
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "c.tar.gz"]


def test_sparse_members_that_declare_any_size(tmp_path, contents, refusal):
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name in contents["python"]:
            info = member(f"{FOLDERS['python']}/{name}")
            info.pax_headers = {"GNU.sparse.map": f"0,0,{2**40},0", "GNU.sparse.size": str(2**40)}
            archive.addfile(info)
    assert "holds neither" in refusal(tmp_path / "c.tar.gz", "cifar10")


def test_a_tar_that_unpacks_to_far_more(tmp_path, refusal, monkeypatch):
    monkeypatch.setattr("bench.data.cifar._MAX_TAR", 2**20)
    with gzip.open(tmp_path / "c.tar.gz", "wb", compresslevel=1) as file:
        file.write(bytes(2**20 + 1))
    assert "unpacks to more than 1048576 bytes" in refusal(tmp_path / "c.tar.gz", "cifar10")


def test_at_16_pixels_it_is_what_pillow_reduces(tmp_path, contents, packed, images):
    """From any of CIFAR-10's files, with its labels and its split."""
    archive = tmp_path / "cifar-10-python.tar.gz"
    packed(archive, {f"{FOLDERS['python']}/{name}": content for name, content in contents["python"].items()})
    write(tmp_path / "unpacked" / FOLDERS["binary"], contents["binary"])
    pixels = np.stack([np.asarray(Image.fromarray(image).reduce(2)) for image in images(12)]).transpose(0, 3, 1, 2)
    for data_dir in (tmp_path, tmp_path / "unpacked"):
        data, large = load("cifar10-16", data_dir), load("cifar10", data_dir)
        np.testing.assert_array_equal(data.images, pixels)
        assert (data.labels.equal(large.labels), data.heldout.equal(large.heldout)) == (True, True)
        assert (data.name, data.shape, data.preprocessing) == ("cifar10-16", (3, 16, 16), "reduce=2")


def test_at_16_pixels_it_says_what_it_lacks_and_what_it_is(tmp_path, images, encoded, refusal):
    message = refusal(tmp_path, "cifar10-16")
    assert message.startswith("dataset 'cifar10-16': ")
    assert "cifar-10-python.tar.gz" in message
    (tmp_path / "cifar10" / "cat").mkdir(parents=True)
    (tmp_path / "cifar10" / "cat" / "0.jpg").write_bytes(encoded(images(1)[0], "jpeg"))
    data = load("cifar10-16", tmp_path, preprocessing=Preprocessing(32, filter="box"))
    assert (data.name, data.preprocessing) == ("cifar10-16-jpeg", "resize=32 filter=box reduce=2")


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_reduced_is_pillows_bit_for_bit(images, factor):
    pixels = images(50)
    expected = np.stack([np.asarray(Image.fromarray(image).reduce(factor)) for image in pixels])
    np.testing.assert_array_equal(reduced(pixels.transpose(0, 3, 1, 2), factor), expected.transpose(0, 3, 1, 2))
