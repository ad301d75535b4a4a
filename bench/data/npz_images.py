"""Npz files of images: headers are checked before any data is read, and objects are never unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bench.data.pictures import Picture, Pictures, ReadOptions, class_indices, gather
from bench.data.preprocessing import Pixels
from bench.files.limits import refuse_large_file, refuse_large_picture, refuse_total, refuse_unfolding
from bench.files.npz import Header, read_header
from bench.runtime.errors import DataError, reason

_IMAGES, _LABELS = "arr_0.npy", "arr_1.npy"
_BLOCK = 2**22  # bytes read at a time


def read_npz(path: Path, options: ReadOptions) -> Pictures:
    """Read ``arr_0``, uint8 [N, H, W, 1 or 3], and ``arr_1``, N whole numbers or texts; without it all labels are 0.

    Labels that are numbers stay as they are; texts are numbered in order.

    Raises:
        DataError: not such a file, or arrays of another kind.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                raise ValueError("it is a single .npy array; write it with numpy.savez")
        with zipfile.ZipFile(path) as archive:
            pixels = _read_images(path, archive, options)
            labels = _read_labels(path, archive, len(pixels))
    except DataError:
        raise
    except Exception as error:  # on damaged bytes numpy, zipfile and zlib raise almost any kind
        raise DataError(f"{path} is not an npz of images with the array 'arr_0' ({reason(error)})") from None
    return Pictures(pixels, labels)


def _read_images(path: Path, archive: zipfile.ZipFile, options: ReadOptions) -> NDArray[np.uint8]:
    info = archive.getinfo(_IMAGES)
    with archive.open(info) as file:
        header = read_header(file)
        shape = header.shape
        if header.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or min(shape) < 1:
            raise DataError(f"{path}: 'arr_0' must be uint8 [N, H, W, 1 or 3], not {header.dtype} {shape}")
        refuse_large_picture(f"each image of {path}", shape[2], shape[1])
        refuse_total(str(path), header.nbytes)
        refuse_unfolding(str(path), "pixels", header.nbytes, info.compress_size)
        return gather(str(path), shape[0], _images(path, file, header), options)


def _images(path: Path, file: IO[bytes], header: Header) -> Iterator[Picture]:
    for k, image in enumerate(_arrays(file, header)):
        # The archive as a whole has passed the test that compares this number with the pixels.
        yield Picture(f"{path}[{k}]", image, stored=image.nbytes)
    _refuse_rest(file)


def _arrays(file: IO[bytes], header: Header) -> Iterator[Pixels]:
    """Yield uint8 images [H, W, C], a block in memory at a time; an array in Fortran's order is read whole."""
    shape = header.shape
    if header.fortran:
        yield from np.frombuffer(_exactly(file, header.nbytes), np.uint8).reshape(shape, order="F")
        return
    step = max(1, _BLOCK // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        block = (min(step, shape[0] - start), *shape[1:])
        yield from np.frombuffer(_exactly(file, math.prod(block)), np.uint8).reshape(block)


def _read_labels(path: Path, archive: zipfile.ZipFile, count: int) -> NDArray[np.int64]:
    if _LABELS not in archive.namelist():
        return np.zeros(count, dtype=np.int64)
    info = archive.getinfo(_LABELS)
    with archive.open(info) as file:
        header = read_header(file)
        if header.shape != (count,):
            raise DataError(f"{path}: 'arr_1' must hold one label per image, {count}, not {header.shape}")
        if header.dtype.kind not in "biuSU":
            raise DataError(f"{path}: 'arr_1' must hold whole numbers or texts, not {header.dtype}")
        refuse_large_file(f"{path}: 'arr_1'", header.nbytes, info.compress_size)
        labels = np.frombuffer(_exactly(file, header.nbytes), header.dtype)
        _refuse_rest(file)
    if header.dtype.kind == "S":
        return class_indices([label.decode("latin-1") for label in labels])
    return class_indices([str(label) for label in labels]) if header.dtype.kind == "U" else labels.astype(np.int64)


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError("an array ends before its declared size")
    return data


def _refuse_rest(file: IO[bytes]) -> None:
    """Read to the end, where zipfile compares checksums."""
    if file.read(1):
        raise ValueError("an array goes on beyond its declared size")
