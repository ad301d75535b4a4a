"""The result of every reader of datasets, and the one loop that stacks single pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bench.data.preprocessing import Pixels, Preprocessing
from bench.files.limits import refuse_total, refuse_unfolding
from bench.runtime.errors import DataError


@dataclass(frozen=True)
class ReadOptions:
    """How the pictures of a dataset are read.

    Attributes:
        preprocessing: what is done to each.
        name: of a published dataset, empty for any other.
        size: side length of that dataset's images in pixels, which are in colour; None for any other.
        labels: whether classes are read; without, every label is 0.
    """

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    name: str = ""
    size: int | None = None
    labels: bool = True


@dataclass(frozen=True)
class Picture:
    """One decoded picture.

    Attributes:
        name: for messages.
        pixels: uint8 [H, W, 1 or 3].
        stored: bytes on disk.
        lossy: ``jpeg`` or ``webp`` where its file was compressed with loss, else empty.
        remarks: what of the file is not in the pixels.
    """

    name: str
    pixels: Pixels
    stored: int
    lossy: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pictures:
    """A dataset as read: pixels uint8 [N, C, H, W], labels int64 [N], heldout bool [N] or None without a split.

    ``lossy`` names the compression with loss of the pictures' files, empty where none has any. ``note`` counts in one
    line what was passed over.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    heldout: NDArray[np.bool_] | None = None
    lossy: str = ""
    note: str = ""


def class_indices(names: Sequence[str]) -> NDArray[np.int64]:
    """Number classes from 0 in the order of their names, or of their values where all names are numbers; int64 [N]."""
    distinct = set(names)
    numbers = all(name.isascii() and name.isdecimal() for name in distinct)
    ordered = sorted(distinct, key=lambda name: (int(name), name)) if numbers else sorted(distinct)
    index = {name: k for k, name in enumerate(ordered)}
    return np.array([index[name] for name in names], dtype=np.int64)


def gather(source: str, count: int, pictures: Iterable[Picture], options: ReadOptions) -> NDArray[np.uint8]:
    """Preprocess ``count`` pictures one at a time and stack them as uint8 [count, C, H, W], grey only if all are.

    Memory is the result's and one picture's.

    Raises:
        DataError: sizes differ or are not those of the dataset, or the pixels are too many.
    """
    stack = np.empty((0, 0, 0, 0), dtype=np.uint8)
    unfolded = stored = 0
    for k, picture in enumerate(pictures):
        unfolded, stored = unfolded + picture.pixels.nbytes, stored + picture.stored
        refuse_unfolding(source, "pixels", unfolded, stored)
        image = options.preprocessing.apply(picture.pixels)
        height, width, channels = image.shape
        if k == 0:
            _refuse_size(source, height, width, options)
            stack = _empty(source, (count, 3 if options.size else channels, height, width))
        if (height, width) != stack.shape[2:]:
            sizes = f"{stack.shape[2]}x{stack.shape[3]} and {height}x{width} of {picture.name}"
            raise DataError(f"{source}: images differ in size ({sizes}); resize them first, or use --resize")
        if channels > stack.shape[1]:
            grey, stack = stack, _empty(source, (count, 3, height, width))
            stack[:k] = grey[:k]
        stack[k] = image.transpose(2, 0, 1)
    return stack


def gather_arrays(source: str, arrays: Sequence[NDArray[np.uint8]], options: ReadOptions) -> NDArray[np.uint8]:
    """Preprocess and stack the pictures of uint8 arrays [n, H, W, 1 or 3] that are in memory already.

    Raises:
        DataError: as :func:`gather`.
    """
    pictures = (Picture(source, image, stored=image.nbytes) for array in arrays for image in array)
    return gather(source, sum(len(array) for array in arrays), pictures, options)


def _empty(source: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    refuse_total(source, math.prod(shape))
    try:
        return np.empty(shape, dtype=np.uint8)
    except MemoryError:
        raise DataError(f"{source} needs {math.prod(shape)} bytes, more than there are; keep fewer images") from None


def _refuse_size(source: str, height: int, width: int, options: ReadOptions) -> None:
    if options.size and (height, width) != (options.size, options.size):
        right = f"those of {options.name} {options.size}x{options.size}; set the option resize to {options.size}"
        raise DataError(f"{source}: images are {height}x{width}, {right}")
