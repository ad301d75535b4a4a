"""Datasets: uint8 images with a fixed train / held-out split, by name or from a file.

Images are uint8 [N, C, H, W]; networks see them as float32 in [-1, 1] (:func:`to_unit`).
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "DATASETS", "DataError", "Dataset", "coloured", "load", "load_path", "quantize", "stratified_split", "to_unit",
]  # fmt: skip

Pixels: TypeAlias = NDArray[np.uint8]  # [..., H, W, C]

DATASETS = ("digits",)
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_MAX_PIXELS = 2**26  # of one image; larger ones are refused rather than decoded


class DataError(ValueError):
    """A dataset cannot be read; the message says which file and how to mend it."""


@dataclass(frozen=True)
class Dataset:
    """Images in file order with labels and a held-out part.

    Attributes:
        name: how tables call it.
        images: uint8 [N, C, H, W].
        labels: int64 [N], all 0 where there are no classes.
        heldout: bool [N], True for images no recipe trains on.
    """

    name: str
    images: Tensor
    labels: Tensor
    heldout: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def part(self, name: str) -> Tensor:
        """Return the uint8 images of ``train``, ``heldout`` or ``all``."""
        return self.images[self._members(name)]

    def part_labels(self, name: str) -> Tensor:
        """Return the labels of the images that :meth:`part` returns."""
        return self.labels[self._members(name)]

    def _members(self, part: str) -> Tensor:
        return {"train": ~self.heldout, "heldout": self.heldout, "all": torch.ones_like(self.heldout)}[part]

    def content_hash(self) -> str:
        """Return a hash of pixels, shape and split, so that no cached statistic outlives its data."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        digest.update(self.heldout.numpy().tobytes())
        return digest.hexdigest()[:16]


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 [0, 255] to float32 [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1.0


def quantize(x: Tensor, mode: str = "round") -> Tensor:
    """Map float [-1, 1] to uint8; ``round`` is to nearest, ``floor`` what guided-diffusion's scripts do.

    Values outside the range are clamped first: a bare cast would wrap them around.
    """
    scaled = ((x + 1.0) * 127.5).clamp(0.0, 255.0)
    return (scaled.round() if mode == "round" else scaled.floor()).to(torch.uint8)


def coloured(images: Pixels) -> Pixels:
    """Return images [N, H, W, 1 or 3] as [N, H, W, 3], guided-diffusion's format: grey as three equal channels."""
    return np.repeat(images, 4 - images.shape[3], axis=3)[..., :3]


def stratified_split(labels: Tensor, every: int) -> Tensor:
    """Mark every ``every``-th image of each class, in file order, as held out; bool [N]. 0 marks none."""
    heldout = torch.zeros(len(labels), dtype=torch.bool)
    if every:
        for label in labels.unique():
            members = torch.nonzero(labels == label).flatten()
            heldout[members[every - 1 :: every]] = True
    return heldout


def load(name: str) -> Dataset:
    """Load a dataset by its known name.

    Raises:
        DataError: the name is unknown.
    """
    if name == "digits":
        return _digits()
    raise DataError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}")


def _digits() -> Dataset:
    """Scikit-learn's handwritten digits (UCI, Alpaydin & Kaynak 1998): 1797 grey 8x8 images, 17 grey levels."""
    from sklearn.datasets import load_digits  # slow to import: only whoever needs the digits pays

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return Dataset("digits", torch.from_numpy(grey)[:, None], labels, stratified_split(labels, every=5))


def load_path(name: str, path: Path, heldout_every: int = 0) -> Dataset:
    """Load images from an npz (``arr_0`` uint8 NHWC, labels in ``arr_1``), a folder or a zip of images.

    Folders and zips take the class from the name of the image's folder and the order from sorted paths; where every
    image is grey they give one channel, otherwise RGB.

    Raises:
        DataError: nothing there, not images, or images of different sizes.
    """
    if not path.exists():
        raise DataError(f"dataset {name!r}: {path} does not exist; check the path or --data-dir")
    if path.is_dir():
        images, names = _read_folder(path)
    else:
        images, names = _read_npz(path) if path.suffix == ".npz" else _read_zip(path)
    order = {label: k for k, label in enumerate(sorted(set(names)))}
    labels = torch.tensor([order[label] for label in names], dtype=torch.int64)
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return Dataset(name, pixels, labels, stratified_split(labels, heldout_every))


def _read_npz(path: Path) -> tuple[Pixels, list[str]]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it is a single .npy array; write it with numpy.savez")
        with file:
            images = file["arr_0"]
            labels = file["arr_1"] if "arr_1" in file.files else np.zeros(len(images), dtype=np.int64)
    except Exception as error:  # on damaged bytes numpy, zipfile and zlib raise almost any kind
        raise DataError(f"{path} is not an npz of images with the array 'arr_0' ({_reason(error)})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise DataError(f"{path}: 'arr_0' must be uint8 [N, H, W, 1 or 3], not {images.dtype} {images.shape}")
    if labels.shape != (len(images),):
        raise DataError(f"{path}: 'arr_1' must hold one label per image")
    return images, [str(label) for label in labels]


def _read_folder(path: Path) -> tuple[Pixels, list[str]]:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES and p.is_file())
    return _stack(path, [str(file) for file in files], lambda name: Path(name).open("rb"))


def _read_zip(path: Path) -> tuple[Pixels, list[str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            # Members are read, never extracted: a name with '..' or an absolute one can reach nothing.
            found = sorted(m.filename for m in archive.infolist() if not m.is_dir())
            names = [name for name in found if Path(name).suffix.lower() in _IMAGE_SUFFIXES]
            return _stack(path, names, archive.open)
    except DataError:
        raise
    except Exception as error:  # on damaged bytes zipfile raises almost any kind
        raise DataError(f"{path} is neither an npz, a folder nor a zip of images ({_reason(error)})") from None


def _stack(path: Path, names: list[str], opened: Callable[[str], IO[bytes]]) -> tuple[Pixels, list[str]]:
    """Open and decode images one at a time and stack them, grey only if all are, with their folders' names."""
    if not names:
        raise DataError(f"{path} holds no images (looked for {', '.join(sorted(_IMAGE_SUFFIXES))})")
    images = [_decode(path, name, opened) for name in names]
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) > 1:
        raise DataError(f"{path}: images differ in size ({', '.join(map(str, sizes[:3]))}); resize them first")
    if any(image.shape[2] == 3 for image in images):
        images = [image if image.shape[2] == 3 else image.repeat(3, axis=2) for image in images]
    return np.stack(images), [Path(name).parent.name for name in names]


def _decode(path: Path, name: str, opened: Callable[[str], IO[bytes]]) -> Pixels:
    """Decode one image of a folder or zip to uint8 [H, W, 1] if it is grey, else [H, W, 3]."""
    from PIL import Image

    where = name if path.is_dir() else f"{path}: {name}"
    too_large = f"{where} has more than {_MAX_PIXELS} pixels, too many to decode; resize it first"
    try:
        with warnings.catch_warnings():
            # Pillow has a limit of its own, above ours: beyond it nothing is decoded either.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with opened(name) as file, Image.open(file) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise DataError(too_large)
                grey = image.mode in ("1", "L")
                pixels: Pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(too_large) from None
    except Exception as error:  # on damaged bytes Pillow, zipfile and zlib raise almost any kind
        raise DataError(f"{where} cannot be decoded ({_reason(error)})") from None
    return pixels[..., None] if grey else pixels


def _reason(error: Exception) -> str:
    """Return an error's first line, or its kind where it has no words."""
    return (str(error).splitlines() or [type(error).__name__])[0]
