"""Npz files of images: headers are checked before any data is read, and objects are never unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bench.data.image_stack import Picture, Pictures, ReadOptions, class_indices, gather
from bench.data.preprocessing import Pixels
from bench.files.limits import refuse_large_file, refuse_large_picture, refuse_total, refuse_unfolding
from bench.files.npz import Header, array_list, read_header
from bench.runtime.errors import DataError, reason

_IMAGES, _LABELS = "arr_0.npy", "arr_1.npy"
_ROWS, _ROW_LABELS = "data.npy", "labels.npy"  # of ImageNet at 32x32 and 64x64 as published
_INTERLEAVED = "{}: its rows are smoother with the channels of each pixel side by side, and are read so"
_LAYOUT_IMAGES = 64  # of which the order of the channels is told
_SMOOTHER = 0.9  # times the roughness of the other order
_BLOCK = 2**22  # bytes read at a time
_OUTSIDE = 0.05  # beyond 0 and 1, or -1 and 1, that floats of images may lie
_RANGE = 2**28  # bytes of which smallest and largest value are told


def read_npz(path: Path, options: ReadOptions) -> Pictures:
    """Read ``arr_0``, uint8 [N, H, W, 1 or 3], and ``arr_1``, N whole numbers or texts; without it all labels are 0.

    Downsampled ImageNet's ``data``, uint8 [N, 3 H H], and ``labels`` are read too; the latter count from 1, unless
    there is a 0. Its rows hold the channels one after another; rows of images that are clearly smoother with the
    channels of a pixel side by side are read so, and a note says it. Labels that are numbers stay as they are; texts
    are numbered in order.

    Raises:
        DataError: not such a file, or arrays of another kind.
    """
    refuse_npy(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            has_rows = _IMAGES not in names and _ROWS in names
            interleaved = has_rows and _is_interleaved(archive)
            pixels = _read_images(path, archive, _ROWS if has_rows else _IMAGES, options, interleaved)
            note = _INTERLEAVED.format(path) if interleaved else ""
            labels_file = _ROW_LABELS if has_rows else _LABELS
            if not options.labels or labels_file not in names:
                return Pictures(pixels, np.zeros(len(pixels), dtype=np.int64), note=note)
            labels = _read_labels(path, archive, labels_file, len(pixels))
    except DataError:
        raise
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path} is truncated or no npz ({reason(error)}); write it with np.savez, or copy it again"
        ) from None
    except Exception as error:  # on damaged bytes numpy, zipfile and zlib raise almost any kind
        raise DataError(f"{path} is not an npz of images with the array 'arr_0' ({reason(error)})") from None
    return Pictures(pixels, labels - (1 if has_rows and labels.min() > 0 else 0), note=note)


def refuse_npy(path: Path) -> None:
    """Refuse a file that holds a single array, whatever its suffix.

    Raises:
        DataError: it does; with the line that makes an npz of it.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
                return
            file.seek(0)
            header = read_header(file)
            advice = _advice(header, file, "np.load(FILE)") or "write it with np.savez(..., arr_0=x)"
    except Exception as error:  # as above
        raise DataError(f"{path} cannot be read ({reason(error)}); get it again") from None
    raise DataError(f"{path}: it is a single .npy array, {header.dtype} {list(header.shape)}; {advice}")


def _is_interleaved(archive: zipfile.ZipFile) -> bool:
    """Tell whether rows of images hold the channels of a pixel side by side: neighbours differ less then."""
    with archive.open(_ROWS) as file:
        header = read_header(file)
        side = _side(header.shape)
        if header.dtype != np.uint8 or header.fortran or side < 2 or header.shape[0] < 1:
            return False
        count = min(header.shape[0], _LAYOUT_IMAGES, max(1, _BLOCK // header.shape[1]))
        rows = np.frombuffer(_exactly(file, count * header.shape[1]), np.uint8).reshape(count, -1).astype(np.int16)
    planes, pixels = rows.reshape(-1, 3, side, side), rows.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
    return _roughness(pixels) < _SMOOTHER * _roughness(planes)


def _roughness(images: NDArray[np.int16]) -> float:
    """Return the mean absolute difference of pixels one above the other, of [N, C, H, W].

    Read in the other order these lie three pixels apart, or a third of the width.
    """
    return float(np.abs(np.diff(images, axis=2)).mean())


def _read_images(
    path: Path, archive: zipfile.ZipFile, name: str, options: ReadOptions, interleaved: bool = False
) -> NDArray[np.uint8]:
    if name not in archive.namelist():
        raise DataError(_without_images(path, archive))
    info = archive.getinfo(name)
    with archive.open(info) as file:
        header = read_header(file)
        shape = header.shape
        side = _side(shape) if name == _ROWS else 0
        image = (side, side, 3) if side else shape[1:]
        if header.dtype != np.uint8 or len(image) != 3 or image[2] not in (1, 3) or min(shape) < 1:
            expected = "[N, H, W, 1 or 3]" if name == _IMAGES else "[N, 3 H H]"
            advice = _advice(header, file, f"np.load(FILE)[{name.removesuffix('.npy')!r}]")
            wrong = f"{path}: {name.removesuffix('.npy')!r} must be uint8 {expected}, not {header.dtype} {shape}"
            raise DataError(f"{wrong}; {advice}" if advice else wrong)
        refuse_large_picture(f"each image of {path}", image[1], image[0])
        refuse_total(str(path), header.nbytes)
        refuse_unfolding(str(path), "pixels", header.nbytes, info.compress_size)
        return gather(str(path), shape[0], _images(path, file, header, 0 if interleaved else side, image), options)


def _side(shape: Sequence[int]) -> int:
    """Return the side length of square colour images that are rows [N, 3 H H], 0 where they are not."""
    side = math.isqrt(shape[1] // 3) if len(shape) == 2 and shape[1] > 0 else 0
    return side if side and 3 * side**2 == shape[1] else 0


def _without_images(path: Path, archive: zipfile.ZipFile) -> str:
    """Return what a file without ``arr_0`` holds, and how to make images of it."""
    for name in archive.namelist():
        with archive.open(name) as file:
            header = read_header(file)
            advice = _advice(header, file, f"np.load(FILE)[{name.removesuffix('.npy')!r}]") if header.shape else ""
        if advice and len(header.shape) > 2:
            return f"{path} holds {array_list(archive)} and no 'arr_0'; {advice}"
    return f"{path} holds {array_list(archive)} and no images; give them as 'arr_0', uint8 [N, H, W, 1 or 3]"


def _advice(header: Header, file: IO[bytes], source: str) -> str:
    """Return the line that makes an npz of images of an array, empty where it cannot be one.

    Args:
        header: of the array.
        file: that stands behind the header.
        source: Python expression of the array.
    """
    layout = _layout(header.shape)
    values = _values(header, file) if layout else ""
    return f"write np.savez('images.npz', arr_0={values.format(layout)}) with x = {source}" if layout and values else ""


def _layout(shape: Sequence[int]) -> str:
    """Return the expression that brings an array ``x`` to [N, H, W, 1 or 3], empty where none is known."""
    if not shape or min(shape) < 1:
        return ""
    if len(shape) == 4:
        channels, moved = shape[3], "x"
        if channels > 4 >= shape[1]:
            channels, moved = shape[1], "x.transpose(0, 2, 3, 1)"
        return {1: moved, 2: f"{moved}[..., :1]", 3: moved, 4: f"{moved}[..., :3]"}.get(channels, "")
    if len(shape) == 3:
        return {1: "x[None]", 3: "x[None]", 4: "x[None, ..., :3]"}.get(shape[2], "x[..., None]")
    side = _side(shape)
    return f"x.reshape(-1, 3, {side}, {side}).transpose(0, 2, 3, 1)" if side else ""


def _values(header: Header, file: IO[bytes]) -> str:
    """Return the expression that makes uint8 of the array ``{}``, empty where its values are no grey levels."""
    if header.dtype == np.uint8:
        return "{}"
    if header.dtype == np.bool_:
        return "255 * {}.astype('uint8')"
    if header.dtype.kind not in "iuf" or header.dtype.itemsize > 8:
        return ""
    low, high = _range(header, file)
    if not (math.isfinite(low) and math.isfinite(high)) or low < -1 - _OUTSIDE or high > 255:
        return ""
    if header.dtype.kind in "iu":
        return "{}.astype('uint8')" if low >= 0 else ""
    # What a network gave without a clamp lies a little outside.
    if low >= -_OUTSIDE and high <= 1 + _OUTSIDE:
        return f"np.round(255 * {{}}{'' if low >= 0 and high <= 1 else '.clip(0, 1)'}).astype('uint8')"
    if low >= -1 - _OUTSIDE and high <= 1 + _OUTSIDE:
        return f"np.round(127.5 * ({{}}{'' if low >= -1 and high <= 1 else '.clip(-1, 1)'} + 1)).astype('uint8')"
    return "np.round({}).astype('uint8')" if low >= 0 else ""


def _range(header: Header, file: IO[bytes]) -> tuple[float, float]:
    """Return the smallest and largest value of an array, of a large one those of its beginning."""
    low, high, left = math.inf, -math.inf, min(header.nbytes, _RANGE)
    while left > 0:
        block = np.frombuffer(_exactly(file, min(left, _BLOCK)), header.dtype)
        low, high, left = min(low, float(block.min())), max(high, float(block.max())), left - _BLOCK
    return low, high


def _images(path: Path, file: IO[bytes], header: Header, side: int, shape: tuple[int, ...]) -> Iterator[Picture]:
    """Yield the images of an array, of shape [H, W, C], or planes of channels with this many pixels a side."""
    for k, image in enumerate(_arrays(file, header)):
        pixels = image.reshape(3, side, side).transpose(1, 2, 0) if side else image.reshape(shape)
        # The archive as a whole has passed the test that compares this number with the pixels.
        yield Picture(f"{path}[{k}]", pixels, stored=image.nbytes)
    _refuse_rest(file)


def _arrays(file: IO[bytes], header: Header) -> Iterator[Pixels]:
    """Yield uint8 images of the array's shape, a block in memory at a time; Fortran's order is read whole."""
    shape = header.shape
    if header.fortran:
        yield from np.frombuffer(_exactly(file, header.nbytes), np.uint8).reshape(shape, order="F")
        return
    step = max(1, _BLOCK // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        block = (min(step, shape[0] - start), *shape[1:])
        yield from np.frombuffer(_exactly(file, math.prod(block)), np.uint8).reshape(block)


def _read_labels(path: Path, archive: zipfile.ZipFile, name: str, count: int) -> NDArray[np.int64]:
    info, what = archive.getinfo(name), f"{path}: {name.removesuffix('.npy')!r}"
    with archive.open(info) as file:
        header = read_header(file)
        if header.shape != (count,):
            advice = "; of one-hot labels write y.argmax(1)" if header.shape[:1] == (count,) else ""
            raise DataError(f"{what} must hold one label per image, {count}, not {header.shape}{advice}")
        if header.dtype.kind not in "biuSU":
            raise DataError(f"{what} must hold whole numbers or texts, not {header.dtype}")
        refuse_large_file(what, header.nbytes, info.compress_size)
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
