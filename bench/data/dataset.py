"""Datasets: uint8 images with a fixed train / held-out split, by name or from a file.

Images are uint8 [N, C, H, W]; networks see them as float32 in [-1, 1] (:func:`to_unit`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data.affine import affine_variants
from bench.data.image_stack import Pictures, ReadOptions, gather_arrays
from bench.data.preprocessing import Preprocessing
from bench.data.sources import PUBLISHED, locate, read_source
from bench.runtime.errors import DataError

Pixels: TypeAlias = NDArray[np.uint8]  # [..., H, W, C]

EMBEDDED_DATASETS = ("digits", "digits-affine")  # made from scikit-learn's files
DATASETS = (*EMBEDDED_DATASETS, *PUBLISHED)
_VARIANTS = (120_000, 12_000)  # of training and held-out digits
_AS_IS = Preprocessing()
_BLOCK = 4096  # images hashed at a time


@dataclass(frozen=True)
class Dataset:
    """Images in file order with labels and a held-out part.

    Attributes:
        name: how tables call it.
        images: uint8 [N, C, H, W].
        labels: int64 [N], all 0 where there are no classes.
        heldout: bool [N], True for images no recipe trains on.
        preprocessing: how files became these pixels, a description of :class:`Preprocessing`.
        note: what of the files was passed over, in one line, empty where nothing was.
    """

    name: str
    images: Tensor
    labels: Tensor
    heldout: Tensor
    preprocessing: str = "none"
    note: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def training_name(self) -> str:
        """Return how tables call the training part, which is all where nothing is held out."""
        part = "train" if self.heldout.any() else "all"
        return f"{self.name}-{part} ({self.count('train')})"

    @property
    def classes(self) -> int:
        """Return the number of distinct labels."""
        return len(self.labels.unique())

    def count(self, part: str) -> int:
        """Return the number of images of ``train``, ``heldout`` or ``all``."""
        return len(self._members[part])

    def part(self, name: str) -> Tensor:
        """Return the uint8 images [M, C, H, W] of ``train``, ``heldout`` or ``all``; a copy, unless all are."""
        return self._whole_or(self.images, name)

    def part_labels(self, name: str) -> Tensor:
        """Return the labels, int64 [M], of the images that :meth:`part` returns."""
        return self._whole_or(self.labels, name)

    def pick(self, part: str, rows: Tensor) -> Tensor:
        """Return some images of a part on the host, uint8 [B, C, H, W], without copying the others.

        Args:
            part: ``train``, ``heldout`` or ``all``; not empty.
            rows: numbers within the part, int64 [B] on any device; those beyond its end wrap around.
        """
        return self.images[self._numbers(part, rows)]

    def pick_labels(self, part: str, rows: Tensor) -> Tensor:
        """Return the labels on the host, int64 [B], of the images that :meth:`pick` returns."""
        return self.labels[self._numbers(part, rows)]

    def _numbers(self, part: str, rows: Tensor) -> Tensor:
        members = self._members[part]
        return members[rows.cpu() % len(members)]

    def _whole_or(self, values: Tensor, part: str) -> Tensor:
        members = self._members[part]
        return values if len(members) == len(values) else values[members]

    @cached_property
    def _members(self) -> dict[str, Tensor]:
        """Each part's numbers among all images."""
        parts = {"train": ~self.heldout, "heldout": self.heldout, "all": torch.ones_like(self.heldout)}
        return {name: torch.nonzero(mask).flatten() for name, mask in parts.items()}

    def content_hash(self) -> str:
        """Return a hash of pixels, shape and split, so that no cached statistic outlives its data."""
        return self._content_hash

    def labels_hash(self) -> str:
        """Return a hash of the labels, which :meth:`content_hash` leaves out."""
        return self._labels_hash

    @cached_property
    def _content_hash(self) -> str:
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for block in self.images.split(_BLOCK):  # images that are not contiguous are copied, so few at a time
            digest.update(_bytes(block))
        digest.update(_bytes(self.heldout))
        return digest.hexdigest()[:16]

    @cached_property
    def _labels_hash(self) -> str:
        return hashlib.sha256(_bytes(self.labels)).hexdigest()[:16]


def _bytes(values: Tensor) -> memoryview:
    """Return a tensor's bytes in row-major order, without a copy where it is contiguous."""
    return values.contiguous().flatten().numpy().data


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 [0, 255] to float32 [-1, 1]; float32 latents stay as they are."""
    if images.is_floating_point():
        return images
    return images.to(torch.float32) / 127.5 - 1.0


def quantize(x: Tensor, mode: str = "round") -> Tensor:
    """Map float [-1, 1] to uint8; ``round`` is to nearest, ``floor`` what guided-diffusion's scripts do.

    Values outside the range are clamped first: a bare cast would wrap them around.
    """
    scaled = ((x + 1.0) * 127.5).clamp(0.0, 255.0)
    return (scaled.round() if mode == "round" else scaled.floor()).to(torch.uint8)


def coloured(images: Pixels) -> Pixels:
    """Return images [N, H, W, 1 or 3] as [N, H, W, 3], guided-diffusion's format: grey as three equal channels."""
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def reduced(images: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Average images over squares of ``factor`` x ``factor`` pixels, halves upwards: ``PIL.Image.reduce``, bit for bit.

    Args:
        images: uint8 [N, C, H, W], H and W multiples of ``factor``.
        factor: 1, 2 or 4.

    Returns:
        uint8 [N, C, H / factor, W / factor].
    """
    rows, columns = images.shape[2] // factor, images.shape[3] // factor
    squares = images.reshape(*images.shape[:2], rows, factor, columns, factor)
    sums = squares.sum(axis=(3, 5), dtype=np.uint16)
    return ((sums + factor**2 // 2) // factor**2).astype(np.uint8)


def stratified_split(labels: Tensor, every: int) -> Tensor:
    """Mark every ``every``-th image of each class, in file order, as held out; bool [N]. 0 marks none."""
    heldout = torch.zeros(len(labels), dtype=torch.bool)
    if every:
        for label in labels.unique():
            members = torch.nonzero(labels == label).flatten()
            heldout[members[every - 1 :: every]] = True
    return heldout


def load(
    name: str, data_dir: Path | None = None, *, heldout_every: int = 0, preprocessing: Preprocessing = _AS_IS
) -> Dataset:
    """Load a dataset by its known name.

    Args:
        name: one of DATASETS. ``cifar10-16`` is CIFAR-10 averaged over squares of 2 x 2 pixels (:func:`reduced`), from
            any of CIFAR-10's files. ``digits-affine`` is 120,000 variants of the training digits and 12,000 of the
            held-out ones (:func:`affine_variants`).
        data_dir: where the files of all but the digits lie: the dataset itself, or the folder that holds it.
        heldout_every: hold out every so-manieth image of each class instead of what the source holds out; 0 keeps that.
        preprocessing: done to each picture first; its result must have the size that the name stands for.

    Returns:
        The dataset, called ``<name>-jpeg`` or ``<name>-webp`` where its images were compressed with loss and the
        official ones are not.

    Raises:
        DataError: the name is unknown, the files are missing or damaged, or their images are of another size.
    """
    if name == "digits":
        return _digits(heldout_every or 5, preprocessing)
    if name == "digits-affine":
        return _digits_affine(_digits(heldout_every or 5, preprocessing))
    if name not in PUBLISHED:
        raise DataError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}")
    published = PUBLISHED[name]
    path = locate(name, data_dir)
    source = published.source or name
    pictures = read_source(path, ReadOptions(preprocessing, source, PUBLISHED[source].size))
    factor = PUBLISHED[source].size // published.size
    if factor > 1:
        pictures = replace(pictures, pixels=reduced(pictures.pixels, factor))
    labels = pictures.labels if published.classes > 1 else np.zeros_like(pictures.labels)
    if not 0 <= labels.min() <= labels.max() < published.classes:
        extent = f"{labels.min()} to {labels.max()}"
        raise DataError(f"{path}: labels are {extent}, those of {name} 0 to {published.classes - 1}; check its classes")
    data = _dataset(name, pictures, torch.from_numpy(labels), heldout_every, preprocessing)
    if factor > 1:
        description = f"reduce={factor}" if preprocessing == _AS_IS else f"{data.preprocessing} reduce={factor}"
        data = replace(data, preprocessing=description)
    return data


def load_path(
    name: str, path: Path, heldout_every: int = 0, preprocessing: Preprocessing = _AS_IS, *, classes: bool = True
) -> Dataset:
    """Load images from an npz (``arr_0`` uint8 NHWC, labels in ``arr_1``), a folder or a zip of images.

    Folders and zips take the class from ``dataset.json`` or the name of the image's folder, and the order from sorted
    paths; where every image is grey they give one channel, otherwise RGB. Where all their images lie below ``train`` or
    ``test``, the latter are held out, unless ``heldout_every`` says otherwise; CIFAR-10's own archives are read too.
    Without ``classes`` no labels are read, whatever is there instead of them.

    Raises:
        DataError: nothing there, not images, or images of different sizes.
    """
    pictures = read_source(path, ReadOptions(preprocessing, labels=classes))
    labels = torch.from_numpy(np.unique(pictures.labels, return_inverse=True)[1].astype(np.int64))
    return _dataset(name, pictures, labels, heldout_every, preprocessing)


def _dataset(name: str, pictures: Pictures, labels: Tensor, every: int, preprocessing: Preprocessing) -> Dataset:
    # Another encoding makes other pixels: what was published of the dataset does not hold for them.
    if name in PUBLISHED and PUBLISHED[name].lossless and pictures.lossy:
        name = f"{name}-{pictures.lossy}"
    if every or pictures.heldout is None:
        heldout = stratified_split(labels, every)
    else:
        heldout = torch.from_numpy(pictures.heldout)
    pixels = torch.from_numpy(pictures.pixels)
    return Dataset(name, pixels, labels, heldout, preprocessing.description(), pictures.note)


def _digits(every: int, preprocessing: Preprocessing) -> Dataset:
    """Scikit-learn's handwritten digits (UCI, Alpaydin & Kaynak 1998): 1797 grey 8x8 images, 17 grey levels."""
    spec = find_spec("sklearn")  # importing the package for one of its files takes a second
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the digits are scikit-learn's, which is not installed; pip install scikit-learn")
    # A row has 64 pixels, 0 to 16, and the label.
    table = np.loadtxt(Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz"), delimiter=",")
    grey = np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None]
    pixels, digits = gather_arrays("digits", [grey], ReadOptions(preprocessing)), table[:, 64].astype(np.int64)
    return _dataset("digits", Pictures(pixels, digits), torch.from_numpy(digits), every, preprocessing)


def _digits_affine(digits: Dataset) -> Dataset:
    """Variants of the digits, those of the training digits first; the two parts share no digit."""
    parts = {part: (digits.part(part)[:, 0].numpy(), digits.part_labels(part)) for part in ("train", "heldout")}
    images, labels = [], []
    for seed, (count, (originals, classes)) in enumerate(zip(_VARIANTS, parts.values(), strict=True)):
        images.append(torch.from_numpy(affine_variants(originals, count, seed)))
        labels.append(classes[torch.arange(count) % len(classes)])
    heldout = torch.arange(sum(_VARIANTS)) >= _VARIANTS[0]
    done = "affine" if digits.preprocessing == "none" else f"{digits.preprocessing} affine"
    return Dataset("digits-affine", torch.cat(images)[:, None], torch.cat(labels), heldout, done)
