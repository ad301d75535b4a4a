"""Known datasets: every place each is looked for, and what is said where it is not."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
from pictures import class_folders, zipped

from bench.data import DATASETS, load, load_path
from bench.data.sources import PUBLISHED


@pytest.fixture
def classes(images):
    """A function that writes the ten classes, one image each."""
    return lambda root: class_folders(root, images(10))


def test_the_known_names():
    assert ("digits", "digits-affine", *PUBLISHED) == DATASETS
    assert {name: known.size for name, known in PUBLISHED.items()} == {
        "cifar10": 32, "cifar10-16": 16, "imagenet32": 32, "lsun-tower64": 64, "celeba64": 64, "ffhq128": 128,
        "imagenet64": 64, "imagenet128": 128,
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name, known in PUBLISHED.items() if not known.source])
@pytest.mark.parametrize("kind", ["folder", "folder itself", "zip", "npz", "npz itself"])
def test_each_is_found_as_folder_zip_or_npz(tmp_path, images, encoded, name, kind):
    size = PUBLISHED[name].size
    pixels, data_dir = images(2, size), tmp_path
    if kind.startswith("npz"):
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels)
        data_dir = tmp_path / f"{name}.npz" if "itself" in kind else tmp_path
    elif kind == "zip":
        zipped(tmp_path / f"{name}.zip", {f"{k}.png": encoded(image) for k, image in enumerate(pixels)})
    else:
        (tmp_path / name).mkdir()
        for k, image in enumerate(pixels):
            (tmp_path / name / f"{k}.png").write_bytes(encoded(image))
        data_dir = tmp_path / name if "itself" in kind else tmp_path
    data = load(name, data_dir)
    np.testing.assert_array_equal(data.images, pixels.transpose(0, 3, 1, 2))
    assert (data.name, data.shape, data.heldout.any()) == (name, (3, size, size), False)


@pytest.mark.parametrize("root", ["cifar10", "cifar10_png", "cifar10-images", "elsewhere"])
def test_cifar_as_class_folders(tmp_path, classes, root):
    classes(tmp_path / root)
    data = load("cifar10", tmp_path / root if root == "elsewhere" else tmp_path, heldout_every=1)
    assert data.labels.tolist() == list(range(10))
    assert data.heldout.all()


@pytest.mark.parametrize("root", ["cifar10", "elsewhere"])
def test_cifar_as_train_and_test(tmp_path, classes, root):
    classes(tmp_path / root / "train")
    classes(tmp_path / root / "test")
    data = load("cifar10", tmp_path / root if root == "elsewhere" else tmp_path)
    assert (data.labels.tolist(), data.heldout.tolist()) == (2 * list(range(10)), 10 * [True] + 10 * [False])


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG"])
@pytest.mark.parametrize(("name", "called"), [("cifar10", "cifar10-jpeg"), ("lsun-tower64", "lsun-tower64")])
def test_lossy_copies_of_lossless_datasets_are_called_so(tmp_path, images, encoded, name, called, suffix):
    """LSUN's own images are compressed with loss."""
    (tmp_path / name).mkdir()
    for k, image in enumerate(images(3, PUBLISHED[name].size)):
        kind, ending = ("JPEG", suffix) if k == 1 else ("PNG", "png")  # one is enough
        (tmp_path / name / f"{k}.{ending}").write_bytes(encoded(image, kind))
    data = load(name, tmp_path)
    assert data.name == load_path(name, tmp_path / name).name == called
    assert data.training_name == f"{called}-all (3)"


@pytest.mark.parametrize("name", ["cifar100", "cifar100.npz", "cifar10.txt", "my-cifar10.npz", "pictures"])
def test_what_is_not_cifar(tmp_path, images, refusal, name):
    if name.endswith("npz"):
        np.savez(tmp_path / name, arr_0=images(1))
    else:
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("text")
    assert "holds none of" in refusal(tmp_path, "cifar10")


def test_eleven_classes_are_not_cifar(tmp_path, classes, refusal):
    classes(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "zebra").mkdir()
    (tmp_path / "cifar10" / "zebra" / "0.png").write_bytes((tmp_path / "cifar10" / "ship" / "0.png").read_bytes())
    assert refusal(tmp_path, "cifar10").endswith("labels are 0 to 10, those of cifar10 0 to 9; check its classes")


def test_several_of_another_name(tmp_path, images, refusal):
    for name in ("cifar10_a.npz", "cifar10_b.npz"):
        np.savez(tmp_path / name, arr_0=images(1))
    assert "holds several (cifar10_a.npz, cifar10_b.npz); give one of them as --data-dir" in refusal(
        tmp_path, "cifar10"
    )
    assert len(load("cifar10", tmp_path / "cifar10_b.npz").images) == 1
    np.savez(tmp_path / "cifar10.npz", arr_0=images(2))
    assert len(load("cifar10", tmp_path).images) == 2


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("given", ["nothing", "empty folder", "no folder"])
def test_missing(tmp_path, refusal, name, given):
    data_dir = {"nothing": None, "empty folder": tmp_path, "no folder": tmp_path / "absent"}[given]
    message = refusal(data_dir, name)
    assert PUBLISHED[name].home in message
    assert f"dataset {name!r}" in message
    if given != "no folder":
        source = PUBLISHED[name].source or name
        looked = [source, f"{source}.zip", f"{source}.npz"]
        if source == "cifar10":
            looked += [f"cifar-10-{form}" for form in ("python.tar.gz", "batches-py", "binary.tar.gz", "batches-bin")]
        assert all(entry in message for entry in looked)


@pytest.mark.parametrize("data_dir", ["a\0b", "x" * 5000])
def test_paths_that_cannot_be(refusal, data_dir):
    assert "cannot be read" in (message := refusal(Path(data_dir), "cifar10")) or "does not exist" in message
    assert "cannot be read" in (message := refusal(Path(data_dir))) or "does not exist" in message


KINDS = {
    "x.pkl": (pickle.dumps([1], 4), "is a pickle, which could run programs; write its images with np.savez"),
    "x.gz": (gzip.compress(b"x"), "is a gzip archive; unpack it and give the folder"),
    "x.h5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file; write its images with np.savez"),
    "x.tar": (bytes(257) + b"ustar\x0000", "is a tar archive; unpack it and give the folder"),
    "x.png": (b"\x89PNG\r\n\x1a\n", "is a single image; give its folder"),
    "x.tar.gz": (gzip.compress(bytes(1024)), "CIFAR-10's folders; unpack other images and give the folder"),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_kinds_of_files_are_named(tmp_path, refusal, name):
    content, words = KINDS[name]
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["X.NPZ", "x.ZIP"])
def test_suffixes_in_capitals(tmp_path, images, encoded, name):
    if name == "X.NPZ":
        with (tmp_path / name).open("wb") as file:
            np.savez(file, arr_0=images(3))
    else:
        zipped(tmp_path / name, {"0.PNG": encoded(images(1)[0])})
    assert load_path("mine", tmp_path / name).shape == (3, 32, 32)
