"""CIFAR-10 as its authors publish it: python or binary batches, in a folder or a tar.gz (Krizhevsky 2009).

Nothing is extracted, and the pickles of the python batches are read without executing anything.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data.image_stack import Pictures, ReadOptions, gather_arrays
from bench.files.pickles import restricted_load
from bench.runtime.errors import DataError, reason

_STEMS = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
_SIDE, _CLASSES = 32, 10
_PIXELS = 3 * _SIDE * _SIDE
_MAX_BATCH = 2**26  # bytes; the published batches have 31e6, pickled by Python 3 as protocol 2 up to 46e6
_MAX_TAR = 2**29

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]  # pixels [n, 3072] as channel, row, column; labels [n]


def read_batch_folder(path: Path, options: ReadOptions) -> Pictures:
    """Read ``data_batch_1`` to ``5`` and, held out, ``test_batch``, each with or without ``.bin``.

    Raises:
        DataError: a batch is missing, damaged or not of 32x32 images in 10 classes.
    """
    kind = _kind_of_folder(path) or _PYTHON

    def read(name: str) -> bytes | None:
        if not (path / name).is_file():
            return None
        with (path / name).open("rb") as file:
            return file.read(_MAX_BATCH + 1)

    return _read(str(path), kind, read, options)


def read_batch_tar(path: Path, options: ReadOptions) -> Pictures:
    """Read ``cifar-10-python.tar.gz`` or ``cifar-10-binary.tar.gz`` as :func:`read_batch_folder` reads their content.

    Raises:
        DataError: not such an archive, or as there.
    """
    try:
        with gzip.open(path) as packed:
            content = packed.read(_MAX_TAR + 1)
        if len(content) > _MAX_TAR:
            raise DataError(f"{path} unpacks to more than {_MAX_TAR} bytes, which CIFAR-10 does not; get it again")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            return _read_members(path, archive, options)
    except DataError:
        raise
    except Exception as error:  # on damaged bytes gzip, zlib and tarfile raise almost any kind
        raise DataError(
            f"{path} is no tar.gz of CIFAR-10 ({reason(error)}); get it again, or give other images as a folder"
        ) from None


def is_batch_folder(path: Path) -> bool:
    """Tell whether a folder holds batches of CIFAR-10."""
    return _kind_of_folder(path) is not None


def _kind_of_folder(path: Path) -> _Kind | None:
    return next((kind for kind in (_PYTHON, _BINARY) if (path / kind.names()[0]).is_file()), None)


def _read_members(path: Path, archive: tarfile.TarFile, options: ReadOptions) -> Pictures:
    # Links, devices and sparse files, whose size is only declared, are as good as absent.
    members = {m.name.removeprefix("./"): m for m in archive if m.isreg() and not m.issparse()}
    for kind in (_PYTHON, _BINARY):
        if any(f"{kind.folder}/{name}" in members for name in kind.names()):

            def read(name: str, folder: str = kind.folder) -> bytes | None:
                member = members.get(f"{folder}/{name}")
                file = archive.extractfile(member) if member else None
                return file.read(_MAX_BATCH + 1) if file else None

            return _read(str(path), kind, read, options)
    raise DataError(
        f"{path} holds neither {_PYTHON.folder} nor {_BINARY.folder}, CIFAR-10's folders; unpack other"
        " images and give the folder"
    )


def _read(source: str, kind: _Kind, read: Callable[[str], bytes | None], options: ReadOptions) -> Pictures:
    batches = [_batch(source, kind, name, read) for name in kind.names()]
    labels = np.concatenate([labels for _, labels in batches])
    heldout = np.zeros(len(labels), dtype=np.bool_)
    heldout[-len(batches[-1][1]) :] = True
    images = [pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1) for pixels, _ in batches]
    return Pictures(gather_arrays(source, images, options), labels, heldout)


def _batch(source: str, kind: _Kind, name: str, read: Callable[[str], bytes | None]) -> Batch:
    try:
        content = read(name)
        if content is not None:
            if len(content) > _MAX_BATCH:
                raise ValueError(f"more than {_MAX_BATCH} bytes")
            return _checked(*kind.parse(content))
    except Exception as error:  # on damaged bytes pickle and tarfile raise almost any kind
        raise DataError(f"{source}: {name} is no batch of CIFAR-10 ({reason(error)}); get it again") from None
    raise DataError(f"{source} lacks {name}; get the archive of CIFAR-10 again")


def _checked(pixels: NDArray[Any], labels: NDArray[Any]) -> Batch:
    if pixels.dtype != np.uint8 or pixels.shape != (len(pixels), _PIXELS) or not len(pixels):
        raise ValueError(f"its data must be uint8 [n, {_PIXELS}], not {pixels.dtype} {pixels.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != (len(pixels),):
        raise ValueError(f"it must hold one whole number per image as label, not {labels.dtype} {labels.shape}")
    if not 0 <= labels.min() <= labels.max() < _CLASSES:
        raise ValueError(f"its labels must be 0 to {_CLASSES - 1}, not {labels.min()} to {labels.max()}")
    return pixels, labels.astype(np.int64)


def _parse_binary(content: bytes) -> Batch:
    if len(content) % (1 + _PIXELS):
        raise ValueError(f"its size is no multiple of {1 + _PIXELS} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _parse_python(content: bytes) -> Batch:
    batch = restricted_load(io.BytesIO(content), _allowed(len(content)), encoding="bytes")
    if not isinstance(batch, dict):
        raise ValueError("its pickle is no dictionary")
    entries = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    if not isinstance(entries.get("data"), _Array) or "labels" not in entries:
        raise ValueError("its pickle lacks the array 'data' or 'labels'")
    return entries["data"].values(), _labels(entries["labels"])


def _labels(entry: Any) -> NDArray[Any]:
    if isinstance(entry, _Array):
        return entry.values()
    # Lists of lists that share their elements would grow without bounds as an array.
    if not isinstance(entry, list) or not all(isinstance(label, int) for label in entry):
        raise ValueError("its labels are no list of whole numbers")
    return np.array(entry)


class _Dtype:
    """Stands for numpy.dtype in a pickle."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1].decode() if isinstance(state[1], bytes) else state[1]

    def real(self) -> np.dtype[Any]:
        code = self.code.decode() if isinstance(self.code, bytes) else self.code
        if code not in ("u1", "u2", "u4", "i1", "i2", "i4", "i8"):
            raise ValueError(f"an array of {code!r}, not of whole numbers")
        return np.dtype(code).newbyteorder(">" if self.order == ">" else "<")


class _Array:
    """Stands for numpy.ndarray in a pickle."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def values(self) -> NDArray[Any]:
        """Return the array; reshape refuses shapes that are not those of its bytes."""
        flat = np.frombuffer(self.raw, self.dtype.real())
        return flat.reshape([int(n) for n in self.shape], order="F" if self.fortran else "C")


def _reconstructed(*_: object) -> _Array:
    return _Array()


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str, *_: object) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", raw))
    return array


def _scalar(dtype: _Dtype, raw: bytes) -> int:
    return int(np.frombuffer(raw, dtype.real())[0])


def _allowed(size: int) -> Mapping[tuple[str, str], Any]:
    """Return the names that batches use, each with what stands for it in a pickle of ``size`` bytes."""
    left = size

    def encode(text: str, *_: object) -> bytes:
        """Stand for codecs.encode, which writes the bytes of pickle protocols 0 to 2 as a latin-1 text."""
        nonlocal left
        left -= len(text)
        if left < 0:
            raise ValueError("it repeats its bytes")
        return text.encode("latin-1")

    return {
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        ("_codecs", "encode"): encode,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstructed for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    }


@dataclass(frozen=True)
class _Kind:
    folder: str
    suffix: str
    parse: Callable[[bytes], Batch]

    def names(self) -> list[str]:
        return [stem + self.suffix for stem in _STEMS]


_PYTHON = _Kind("cifar-10-batches-py", "", _parse_python)
_BINARY = _Kind("cifar-10-batches-bin", ".bin", _parse_binary)
BATCH_FOLDERS = (_PYTHON.folder, _BINARY.folder)
