"""Datasets: uint8 images with a fixed train / held-out split, by name or from a file.

Images are uint8 [N, C, H, W]; networks see them as float32 in [-1, 1] (:func:`to_unit`).
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["DATASETS", "DataError", "Dataset", "load", "load_path", "quantize", "stratified_split", "to_unit"]

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
        chosen = {"train": ~self.heldout, "heldout": self.heldout, "all": torch.ones_like(self.heldout)}
        return self.images[chosen[name]]

    def part_labels(self, name: str) -> Tensor:
        """Return the labels of the images that :meth:`part` returns."""
        chosen = {"train": ~self.heldout, "heldout": self.heldout, "all": torch.ones_like(self.heldout)}
        return self.labels[chosen[name]]

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


def stratified_split(labels: Tensor, every: int) -> Tensor:
    """Mark every ``every``-th image of each class, in file order, as held out; bool [N]. 0 marks none."""
    heldout = torch.zeros(len(labels), dtype=torch.bool)
    if every:
        for label in labels.unique():
            members = torch.nonzero(labels == label).flatten()
            heldout[members[every - 1 :: every]] = True
    return heldout


def load(name: str, data_dir: Path | None = None) -> Dataset:
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

    Folders and zips take the class from the name of the image's folder and the order from sorted paths.

    Raises:
        DataError: nothing there, not images, or images of different sizes.
    """
    if not path.exists():
        raise DataError(f"dataset {name!r}: {path} does not exist; check the path or --data-dir")
    if path.suffix == ".npz":
        arrays = _read_npz(path)
    elif path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES)
        arrays = _stack(path, [(p.parent.name, p) for p in files])
    else:
        arrays = _read_zip(path)
    images, names = arrays
    order = {label: k for k, label in enumerate(sorted(set(names)))}
    labels = torch.tensor([order[label] for label in names], dtype=torch.int64)
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return Dataset(name, pixels, labels, stratified_split(labels, heldout_every))


def _read_npz(path: Path) -> tuple[NDArray[np.uint8], list[str]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["arr_0"]
            labels = file["arr_1"] if "arr_1" in file.files else np.zeros(len(images), dtype=np.int64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not an npz of images with the array 'arr_0' ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise DataError(f"{path}: 'arr_0' must be uint8 [N, H, W, 1 or 3], not {images.dtype} {images.shape}")
    if labels.shape != (len(images),):
        raise DataError(f"{path}: 'arr_1' must hold one label per image")
    return images, [str(label) for label in labels]


def _read_zip(path: Path) -> tuple[NDArray[np.uint8], list[str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if Path(n).suffix.lower() in _IMAGE_SUFFIXES)
            return _stack(path, [(Path(n).parent.name, archive.open(n)) for n in names])
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is neither an npz, a folder nor a zip of images ({error})") from None


def _stack(path: Path, files: list[tuple[str, object]]) -> tuple[NDArray[np.uint8], list[str]]:
    """Decode images to RGB and stack them."""
    from PIL import Image

    images = []
    for _, file in files:
        try:
            with Image.open(file) as image:  # type: ignore[arg-type]  # a path or an open member of a zip
                if image.width * image.height > _MAX_PIXELS:
                    raise DataError(f"{path}: an image of {image.width}x{image.height} pixels is too large")
                images.append(np.asarray(image.convert("RGB")))
        except OSError as error:
            raise DataError(f"{path}: {file} cannot be decoded ({error})") from None
    if not images:
        raise DataError(f"{path} holds no images (looked for {', '.join(sorted(_IMAGE_SUFFIXES))})")
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise DataError(f"{path}: images differ in size ({', '.join(map(str, sorted(shapes)[:3]))}); resize them first")
    return np.stack(images), [label for label, _ in files]
