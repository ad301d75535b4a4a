"""Files of a results folder, read without unpickling anything and without unfolding to any size.

A folder may come from a stranger, and a file from an interrupted copy: each reader raises ``OSError`` where a file
cannot be opened, and else ``ValueError`` with one line that says what is wrong.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_MOST = 2**28  # bytes of a file without its packing that are harmless, however small the file
_SHARE = 250  # unpacked bytes for a byte on disk; records have below 30
_LARGEST_JSON = 2**24
_LARGEST = 1e100  # of anything measured; squares of it are still finite
_WIDE = (np.float64, np.longdouble)  # the others cannot hold it


def read_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    with path.open("rb") as file:
        content = file.read(_LARGEST_JSON + 1)
    if len(content) > _LARGEST_JSON:
        raise ValueError(f"more than {_LARGEST_JSON} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return all arrays of an npz file by name."""
    path.open("rb").close()
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_unfolding(sum(member.file_size for member in archive.infolist()), path)
        with np.load(path, allow_pickle=False) as content:
            arrays = {str(key): content[key] for key in content.files}
        for key, array in arrays.items():
            if array.dtype in _WIDE and (np.isfinite(array) & (np.abs(array) > _LARGEST)).any():
                raise ValueError(f"{key} holds numbers beyond {_LARGEST:g}")
        return arrays
    except Exception as error:  # on damaged bytes numpy, zipfile and zlib raise almost any kind, MemoryError included
        raise ValueError(_reason(error)) from None


def read_npy(path: Path) -> NDArray[Any]:
    """Return the array of an npy file."""
    path.open("rb").close()
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
        return array[...]  # fails for an npz, which numpy would open as well
    except Exception as error:  # as above
        raise ValueError(_reason(error)) from None


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """Return the table of a CSV file, packed if it is called ``.gz``; the options are those of ``pandas.read_csv``."""
    with path.open("rb") as file:
        packed = path.suffix == ".gz"
        most = max(_MOST, _SHARE * path.stat().st_size) if packed else path.stat().st_size
        try:
            content = gzip.GzipFile(fileobj=file).read(most + 1) if packed else file.read(most)
            _refuse_unfolding(len(content), path)
            return pd.read_csv(io.BytesIO(content), **options)
        except Exception as error:  # on damaged bytes zlib and pandas raise almost any kind
            raise ValueError(_reason(error)) from None


def _refuse_unfolding(size: int, path: Path) -> None:
    if size > max(_MOST, _SHARE * path.stat().st_size):
        raise ValueError(f"it unfolds to over {_SHARE} times its size")


def _reason(error: Exception) -> str:
    """Return the first line of an error without the quotes that some kinds put around it."""
    text = str(error.args[0]) if len(error.args) == 1 else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
