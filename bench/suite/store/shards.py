"""Shards: what a unit of work leaves behind, read whole and unchanged or not at all.

A shard is a folder of ``arrays.npz`` and ``SHA256SUMS``, which ``sha256sum -c`` understands. It is written beside its
place and renamed into it.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.files.writing import partial_path

ARRAYS, SUMS = "arrays.npz", "SHA256SUMS"

Arrays = Mapping[str, NDArray[Any]]


class DamagedShard(ValueError):
    """A shard is not what was written; the message names it."""


def write_shard(folder: Path, arrays: Arrays) -> None:
    """Write arrays as a shard, in the place of a damaged one if there is one."""

    def fill(partial: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        (partial / ARRAYS).write_bytes(buffer.getbuffer())
        (partial / SUMS).write_bytes(_sums(buffer.getbuffer()))

    write_folder(folder, fill)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Have a folder filled beside its place, then rename it into it; an intact shard that is there already stays."""
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        fill(partial)
        try:
            os.replace(partial, folder)
        except OSError:  # the place is taken, perhaps by another process with the same, or the file system refuses
            if is_intact(folder):
                shutil.rmtree(partial)
                return
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room
        raise


def read_shard(folder: Path) -> dict[str, NDArray[Any]]:
    """Return a shard's arrays.

    Raises:
        DamagedShard: a byte differs from what was written, or it is not there.
    """
    try:
        content = (folder / ARRAYS).read_bytes()
        if (folder / SUMS).read_bytes() != _sums(content):
            raise DamagedShard(f"{folder} is damaged: its checksum is another")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except DamagedShard:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedShard(f"{folder} is damaged ({type(error).__name__})") from None


def is_intact(folder: Path) -> bool:
    """Tell whether a shard is there and every byte of it is what was written."""
    try:
        return (folder / SUMS).read_bytes() == _sums((folder / ARRAYS).read_bytes())
    except OSError:
        return False


def _sums(content: bytes | memoryview) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {ARRAYS}\n".encode()
