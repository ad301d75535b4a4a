"""Arrays of npz files that nobody vouches for: headers are checked before any data is read, nothing is unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bench.runtime.errors import FeatureError, quoted, reason

Shape = tuple[int, ...]
_MOST_LISTED = 6  # arrays that a message names
_MOST_HEADER = 2**12  # bytes of an npy file beside its numbers
_KINDS = {"f": "float32 or float64", "iu": "a whole number", "U": "text"}


@dataclass(frozen=True)
class Header:
    """What an npy file declares about its array."""

    shape: Shape
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Return the bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> Header:
    """Read the header of an npy file.

    Raises:
        ValueError: it is damaged, or of an array with fields.
    """
    version = npy.read_magic(file)
    if version == (1, 0):
        return Header(*npy.read_array_header_1_0(file))
    if version == (2, 0):
        return Header(*npy.read_array_header_2_0(file))
    raise ValueError(f"its format version {version} is of arrays with fields")


def array_list(archive: zipfile.ZipFile) -> str:
    """Return the names, kinds and shapes of an npz's arrays in words, e.g. ``'mu' float64 [2048]``.

    Raises:
        Exception: almost any kind, on damaged bytes.
    """
    words = []
    for member in archive.infolist()[:_MOST_LISTED]:
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            words.append(quoted(name))
            continue
        with archive.open(member) as file:
            header = read_header(file)
        words.append(f"{quoted(name)} {header.dtype} {list(header.shape)}")
    return ", ".join([*words, *(["..."] if len(archive.infolist()) > _MOST_LISTED else [])]) or "nothing"


class CheckedNpz:
    """An npz opened for reading, a context manager.

    A deflated array can be a thousand times the file, and a header can declare any size. So an array's shape and kind
    are compared with the expected ones before anything is allocated.

    Raises:
        FeatureError: inside the context, for whatever is wrong with the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> CheckedNpz:
        try:
            self._archive = zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise FeatureError(f"there is no file {self.path}; check the path") from None
        except OSError as error:
            raise FeatureError(f"{self.path} cannot be read ({reason(error)}); check its permissions") from None
        except Exception as error:  # on damaged bytes zipfile raises almost any kind
            raise self._damaged(error) from None
        self.names = {member.filename.removesuffix(".npy") for member in self._archive.infolist()}
        return self

    def __exit__(self, *exception: object) -> None:
        self._archive.close()

    def read(self, name: str, fits: Callable[[Shape], bool], expected: str, kinds: str = "f") -> NDArray[Any]:
        """Return an array.

        Args:
            name: its name.
            fits: tells whether a shape is acceptable, in size too.
            expected: that shape in words.
            kinds: acceptable kinds of numpy's dtypes: ``f``, ``iu`` or ``U``.
        """
        try:
            size = self._archive.getinfo(f"{name}.npy").file_size
            with self._archive.open(f"{name}.npy") as file:
                header = read_header(file)
        except Exception as error:  # on damaged bytes zipfile, zlib and numpy raise almost any kind
            raise self._damaged(error) from None
        shape, dtype = header.shape, header.dtype
        if dtype.hasobject or dtype.kind not in kinds or (kinds == "f" and dtype.itemsize < 4):
            raise FeatureError(f"{self.path}: '{name}' is {dtype}, not {_KINDS[kinds]}; write it as that")
        if not fits(shape):
            raise FeatureError(f"{self.path}: '{name}' is {list(shape)}, not {expected}")
        if not 0 <= size - header.nbytes <= _MOST_HEADER:
            raise FeatureError(f"{self.path}: '{name}' declares {list(shape)} but holds {size} bytes; get it again")
        try:
            with self._archive.open(f"{name}.npy") as file:
                array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        except Exception as error:  # as above
            raise self._damaged(error) from None
        if kinds == "f" and not np.isfinite(array).all():
            raise FeatureError(f"{self.path}: '{name}' holds values that are not finite; get the file again")
        return array

    def listed(self) -> str:
        """Return what the file holds, in words."""
        try:
            return array_list(self._archive)
        except Exception as error:  # as for an array
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> FeatureError:
        return FeatureError(f"{self.path} is damaged or no npz of statistics ({reason(error)}); get the file again")
