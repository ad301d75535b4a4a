"""Files of a results folder, loose or in its ``records.zip``, read without unpickling or unfolding to any size.

A folder may come from a stranger, and a file from an interrupted copy: each reader raises ``OSError`` where a file
cannot be opened, and else ``ValueError`` with one line that says what is wrong.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ARCHIVE = "records.zip"  # of a published run
RUN = "run.json"
CHECKSUM = "records_sha256"  # of the archive, in run.json
_MOST = 2**28  # bytes of a file without its packing that are harmless, however small the file
_SHARE = 250  # unpacked bytes for a byte on disk; records have below 30
_LARGEST_JSON = 2**24
LARGEST = 1e100  # of anything measured; squares of it are still finite
MOST_COUNTED = 10**12  # of anything counted
_WIDE = (np.float64, np.longdouble)  # the others cannot hold it

Place = Path | zipfile.Path  # of a file or folder


@contextmanager
def _refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors into ``ValueError`` with their first line, without the quotes that some kinds put around it.

    Args:
        kinds: of errors; on damaged bytes numpy, pandas and zipfile raise almost any, ``MemoryError`` included.
    """
    try:
        yield
    except kinds as error:
        text = str(error.args[0]) if len(error.args) == 1 else str(error)
        raise ValueError((text.strip().splitlines() or [type(error).__name__])[0]) from None


def open_records(root: Path) -> Place:
    """Return where the records of a results folder lie: in the folder itself or, without cells there, its archive."""
    path = root / ARCHIVE
    if (root / "cells").is_dir() or not path.is_file():
        return root
    with _refusing(Exception):
        _check_archive(root)
        archive = zipfile.ZipFile(path)
        _refuse_unfolding(archive, path.stat().st_size)
        return zipfile.Path(archive)


def reopen(records: Place | None) -> None:
    """Open the file of an archive anew: a forked process shares its position with the process that it came from."""
    if isinstance(records, zipfile.Path):
        archive = records.root
        if archive.fp is not None:
            archive.fp.close()
        archive.fp = Path(str(archive.filename)).open("rb")  # noqa: SIM115 - the archive closes it


def _check_archive(root: Path) -> None:
    """Compare an archive with its sha256 in ``run.json``, where that has one.

    Raises:
        ValueError: it is another file.
    """
    try:
        account = read_json(root / RUN)
    except (OSError, ValueError):
        return
    digest = account.get(CHECKSUM) if isinstance(account, dict) else None
    if digest is not None and digest != file_hash(root / ARCHIVE):
        raise ValueError(f"it was edited: its sha256 is not the one in {RUN}")


def file_hash(path: Place) -> str:
    """Return the sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def children(folder: Place) -> list[Any]:
    """Return what lies in a folder, by name; nothing where there is no folder."""
    return sorted(folder.iterdir(), key=lambda place: str(place.name)) if folder.is_dir() else []


def size_of(place: Place) -> int:
    """Return the size of a file in bytes."""
    return place.root.getinfo(place.at).file_size if isinstance(place, zipfile.Path) else place.stat().st_size


def read_bytes(place: Place, most: int = -1) -> bytes:
    """Return what a file holds, at most so many bytes; all of it where that is negative."""
    # RuntimeError is zipfile's word for members that are encrypted, or packed in a way that it does not know.
    with _refusing(zipfile.BadZipFile, EOFError, RuntimeError, zlib.error), place.open("rb") as file:
        return bytes(file.read(most))


def _seekable(place: Place) -> IO[bytes]:
    """Open a file to jump about in; one in an archive is read first, for each jump back would unpack it anew."""
    return io.BytesIO(read_bytes(place)) if isinstance(place, zipfile.Path) else place.open("rb")


def read_json(place: Place) -> Any:
    """Return what a JSON file holds."""
    content = read_bytes(place, _LARGEST_JSON + 1)
    if len(content) > _LARGEST_JSON:
        raise ValueError(f"more than {_LARGEST_JSON} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_npz(place: Place, chosen: Callable[[str], bool] | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz file by name, all or those whose names are chosen."""
    with _seekable(place) as file, _refusing(Exception):
        with zipfile.ZipFile(file) as archive:
            _refuse_unfolding(archive, size_of(place))
        file.seek(0)
        with np.load(file, allow_pickle=False) as content:
            arrays = {str(key): content[key] for key in content.files if chosen is None or chosen(key)}
        for key, array in arrays.items():
            if array.dtype in _WIDE and (np.abs(array[np.isfinite(array)]) > LARGEST).any():
                raise ValueError(f"{key} holds numbers beyond {LARGEST:g}")
        return arrays


def npz_names(place: Place) -> list[str]:
    """Return the names of an npz file's arrays, by its index alone."""
    with _seekable(place) as file, _refusing(Exception), zipfile.ZipFile(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_npy(place: Place) -> NDArray[Any]:
    """Return the array of an npy file."""
    content = read_bytes(place)
    with _refusing(Exception):
        array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
        return array[...]  # fails for an npz, which numpy would open as well


def read_table(place: Place, **options: Any) -> pd.DataFrame:
    """Return the table of a CSV file; the options are those of ``pandas.read_csv``."""
    content = read_bytes(place)
    with _refusing(Exception):
        return pd.read_csv(io.BytesIO(content), **options)


def _refuse_unfolding(archive: zipfile.ZipFile, packed: int) -> None:
    if sum(member.file_size for member in archive.infolist()) > max(_MOST, _SHARE * packed):
        raise ValueError(f"it unfolds to over {_SHARE} times its size")
