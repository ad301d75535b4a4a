"""Where datasets lie: the known names, the files each is looked for under, and the reader each kind of file needs."""

from __future__ import annotations

import os
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.data.cifar import BATCH_FOLDERS, is_batch_folder, read_batch_folder, read_batch_tar
from bench.data.image_folder import LABELS_FILE, SUFFIXES, read_folder, read_zip
from bench.data.image_stack import Pictures, ReadOptions
from bench.data.npz_images import read_npz, refuse_npy
from bench.files.kinds import placeholder
from bench.runtime.errors import DataError, reason


@dataclass(frozen=True)
class PublishedDataset:
    """A published dataset: side length in pixels, number of classes (1 where there are none), where to get it.

    ``lossless`` tells whether its official files hold pixels as they are. A dataset that is another one made smaller
    has the other's name as ``source``, whose files are read and whose images are then averaged over squares of
    ``source size / size`` pixels a side.
    """

    size: int
    classes: int
    home: str
    lossless: bool = False
    source: str = ""


PUBLISHED: Mapping[str, PublishedDataset] = {
    "cifar10": PublishedDataset(32, 10, "https://www.cs.toronto.edu/~kriz/cifar.html", lossless=True),
    "cifar10-16": PublishedDataset(
        16, 10, "https://www.cs.toronto.edu/~kriz/cifar.html", lossless=True, source="cifar10"
    ),
    "imagenet32": PublishedDataset(32, 1000, "https://image-net.org/download-images.php", lossless=True),
    "lsun-tower64": PublishedDataset(64, 1, "https://github.com/fyu/lsun"),
    "celeba64": PublishedDataset(64, 1, "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"),
    "ffhq128": PublishedDataset(128, 1, "https://github.com/NVlabs/ffhq-dataset"),
    "imagenet64": PublishedDataset(64, 1000, "https://image-net.org/download-images.php"),
    "imagenet128": PublishedDataset(128, 1000, "https://image-net.org/download-images.php"),
}
_ARCHIVES = (".npz", ".zip", ".tar.gz", ".tgz")
_CIFAR_ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
# How files begin that are sometimes given for images, and what they are.
_OTHER_KINDS = {
    b"\x80": "a pickle, which could run programs; write its images with np.savez('images.npz', arr_0=x)",
    b"\x1f\x8b": "a gzip archive; unpack it and give the folder",
    b"BZh": "a bzip2 archive; unpack it and give the folder",
    b"\xfd7zXZ": "an xz archive; unpack it and give the folder",
    b"7z\xbc\xaf": "a 7z archive; unpack it and give the folder",
    b"Rar!": "a rar archive; unpack it and give the folder",
    b"\x89HDF": "an HDF5 file; write its images with np.savez('images.npz', arr_0=x)",
    b"PAR1": "a parquet file; write its images with np.savez('images.npz', arr_0=x)",
    b"\x89PNG": "a single image; give its folder",
    b"\xff\xd8\xff": "a single image; give its folder",
    b"RIFF": "a single image; give its folder",
    b"GIF8": "a single image; give a folder of PNG files",
    b"BM": "a single image; give its folder",
}
_TAR, _TAR_MARK = b"ustar", 257  # where a tar archive says so
_CIFAR_NAME = re.compile(r"cifar10([^0-9].*)?", re.DOTALL)  # but not cifar100


def read_source(path: Path, options: ReadOptions) -> Pictures:
    """Read a folder of images or of CIFAR-10's batches, or an npz, a zip, or CIFAR-10's tar.gz, told by its suffix.

    Raises:
        DataError: nothing is there, or not what its name says.
    """
    status = _status(path)
    if status is None:
        raise DataError(f"{path} does not exist; check the path or --data-dir")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries remark on damage that is either refused or not in the pixels
        try:
            return _read(path, status.st_mode, options)
        except OSError as error:
            raise _unreadable(path, error) from None


def _read(path: Path, mode: int, options: ReadOptions) -> Pictures:
    if stat.S_ISDIR(mode):
        return read_batch_folder(path, options) if is_batch_folder(path) else read_folder(path, options)
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is neither a file nor a folder; check the path or --data-dir")
    if other := placeholder(path):
        raise DataError(f"{path} {other}")
    if path.name.lower().endswith((".tar.gz", ".tgz")):
        return read_batch_tar(path, options)
    if path.suffix.lower() == ".npz":
        return read_npz(path, options)
    _refuse_other_kinds(path)
    return read_zip(path, options)


def _refuse_other_kinds(path: Path) -> None:
    """Refuse a file that is known and no source of images, by its first bytes."""
    refuse_npy(path)
    with path.open("rb") as file:
        start = file.read(_TAR_MARK + len(_TAR))
    kinds = [kind for mark, kind in _OTHER_KINDS.items() if start.startswith(mark)]
    if start[_TAR_MARK:] == _TAR:
        kinds = ["a tar archive; unpack it and give the folder"]
    if not kinds and zipfile.is_zipfile(path):
        kinds = list(_kinds_of_zip(path))
    if kinds:
        raise DataError(f"{path} is {kinds[0]}")


def _kinds_of_zip(path: Path) -> Iterator[str]:
    """Yield what a zip is that holds no images but arrays, by the names in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # on damaged bytes zipfile raises almost any kind; whoever reads the images will say it
        return
    if any(name.endswith("/data.pkl") for name in names):
        yield "a file of torch.save; write its images with np.savez('images.npz', arr_0=x)"
    if names and all(name.endswith(".npy") for name in names):
        yield f"an npz under another name; rename it to {path.name}.npz"


def locate(name: str, data_dir: Path | None) -> Path:
    """Return where a known dataset lies, or the one it is made of: ``data_dir`` itself, or a folder or file in it.

    Raises:
        DataError: it is not there, or several are; the message lists the names looked for.
    """
    asked, name = name, PUBLISHED[name].source or name
    names = [*_CIFAR_ARCHIVES, *BATCH_FOLDERS] if name == "cifar10" else []
    names += [name, f"{name}.zip", f"{name}.npz"]
    home = f"get it from {PUBLISHED[name].home}"
    if data_dir is None:
        raise DataError(f"dataset {asked!r} needs --data-dir DIR, where DIR holds {' or '.join(names)}; {home}")
    status = _status(data_dir)
    if status is None:
        raise DataError(f"--data-dir {data_dir} does not exist; dataset {asked!r}: {home}")
    if not stat.S_ISDIR(status.st_mode):
        return data_dir
    try:
        path = next(_candidates(name, data_dir, names), None)
    except OSError as error:
        raise _unreadable(data_dir, error) from None
    if path is None:
        others = ", or a folder, zip or npz named cifar10..." if name == "cifar10" else ""
        raise DataError(f"dataset {asked!r}: {data_dir} holds none of {', '.join(names)}{others}; {home}")
    return path


def _candidates(name: str, folder: Path, names: list[str]) -> Iterator[Path]:
    if name == "cifar10" and is_batch_folder(folder):
        yield folder
    yield from (folder / entry for entry in names if (folder / entry).exists())
    if name == "cifar10":
        yield from _cifar_by_another_name(folder)
    folder_name = folder.absolute().name
    if folder_name == name or (name == "cifar10" and (_CIFAR_NAME.fullmatch(folder_name) or _has_cifar_layout(folder))):
        yield folder


def _cifar_by_another_name(folder: Path) -> list[Path]:
    paths = sorted(
        path
        for path in folder.iterdir()
        if _CIFAR_NAME.fullmatch(path.name) and (path.name.endswith(_ARCHIVES) or path.is_dir())
    )
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"dataset 'cifar10': {folder} holds several ({names}); give one of them as --data-dir")
    return paths


def _has_cifar_layout(folder: Path) -> bool:
    """Tell a folder of classes by its train and test parts, its file of labels, or ten folders that hold an image."""
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if {"train", "test"} <= {path.name for path in inside} or (folder / LABELS_FILE).is_file():
        return True
    classes = [path for path in inside if any(Path(entry).suffix.lower() in SUFFIXES for entry in os.listdir(path))]
    return len(classes) == PUBLISHED["cifar10"].classes


def _status(path: Path) -> os.stat_result | None:
    """Return what the system knows of a path, None where nothing is there or nothing can be of that name."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read ({reason(error)}); check the path and its permissions")
