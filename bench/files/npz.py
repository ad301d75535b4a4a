"""Arrays of an npz that nobody vouches for: looked at before they are read, and never unpickled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bench.runtime.errors import FeatureError, reason

__all__ = ["CheckedNpz"]

Shape = tuple[int, ...]
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_HEADER_BYTES = 2**12  # more than an npy file has beside its numbers
_KINDS = {"f": "float32 or float64", "iu": "a whole number", "U": "text"}


class CheckedNpz:
    """An npz opened for reading, a context manager.

    A deflated array can be a thousand times the file, and a header can declare any size. So an array's shape and kind
    are compared with what is wanted before anything is allocated.

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
            raise FeatureError(
                f"{self.path} cannot be read ({error.strerror or error}); check its permissions"
            ) from None
        except Exception as error:  # on damaged bytes zipfile raises almost any kind
            raise self._damaged(error) from None
        self.names = {member.filename.removesuffix(".npy") for member in self._archive.infolist()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._archive.close()

    def read(self, name: str, fits: Callable[[Shape], bool], wanted: str, kinds: str = "f") -> NDArray[Any]:
        """Return an array.

        Args:
            name: its name.
            fits: tells whether a shape is acceptable, in size too.
            wanted: that shape in words.
            kinds: numpy's kinds of number that are: ``f``, ``iu`` or ``U``.
        """
        try:
            shape, dtype, size = self._declared(name)
        except Exception as error:  # on damaged bytes zipfile, zlib and numpy raise almost any kind
            raise self._damaged(error) from None
        if dtype.hasobject or dtype.kind not in kinds or (kinds == "f" and dtype.itemsize < 4):
            raise FeatureError(f"{self.path}: '{name}' is {dtype}, not {_KINDS[kinds]}; get the file again")
        if not fits(shape):
            raise FeatureError(f"{self.path}: '{name}' is {list(shape)}, not {wanted}")
        if not 0 <= size - math.prod(shape) * dtype.itemsize <= _HEADER_BYTES:
            raise FeatureError(f"{self.path}: '{name}' declares {list(shape)} but holds {size} bytes; get it again")
        try:
            with self._archive.open(f"{name}.npy") as file:
                array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        except Exception as error:  # as above
            raise self._damaged(error) from None
        if kinds == "f" and not np.isfinite(array).all():
            raise FeatureError(f"{self.path}: '{name}' holds values that are not finite; get the file again")
        return array

    def _declared(self, name: str) -> tuple[Shape, np.dtype[Any], int]:
        size = self._archive.getinfo(f"{name}.npy").file_size
        with self._archive.open(f"{name}.npy") as file:
            version = npy.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"'{name}' has npy version {version}")
            shape, _, dtype = _HEADERS[version](file)
        return shape, dtype, size

    def _damaged(self, error: Exception) -> FeatureError:
        return FeatureError(f"{self.path} is damaged or no npz of statistics ({reason(error)}); get the file again")
