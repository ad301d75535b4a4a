"""Files written beside their place, then renamed into it, so that no reader meets half of one.

Every file of the suite is written here. JSON records carry their own checksum.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PARTIAL = ".*.partial-*"
_PROCESS = f"{secrets.token_hex(4)}-{os.getpid()}"  # processes of two machines may have one number

Arrays = Mapping[str, NDArray[Any]]


def partial_path(path: Path) -> Path:
    """Return where this process writes what is then renamed to ``path``; the suffix stays."""
    return path.with_name(f".{path.stem}.partial-{_PROCESS}{path.suffix}")


def partials(root: Path) -> Iterator[Path]:
    """Yield the half-written files and folders below a folder."""
    for folder, folders, files in os.walk(root):
        yield from (Path(folder, name) for name in fnmatch.filter((*folders, *files), _PARTIAL))
        folders[:] = [name for name in folders if not fnmatch.fnmatch(name, _PARTIAL)]


def drop_partials(root: Path) -> None:
    """Delete half-written files below a folder in which no process works: their writers died."""
    for leftover in list(partials(root)):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary file of the same suffix, then rename it into place.

    Raises:
        OSError: the file cannot be written; a file that was there before is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        write(partial)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)  # a full disk needs the room
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write bytes, atomically."""
    write_atomic(path, lambda partial: partial.write_bytes(content))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, default=str, allow_nan=False) + "\n"
    write_atomic(path, lambda partial: partial.write_text(text))


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Write indented JSON with its own checksum, atomically; NaN and infinity are refused."""
    plain = json.loads(json.dumps(value, default=str, allow_nan=False))
    plain.pop("checksum", None)
    write_json(path, {**plain, "checksum": _checksum(plain)})


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an npy, atomically."""
    content = io.BytesIO()  # numpy's own writing to a file does not say why it failed
    np.save(content, array, allow_pickle=False)
    write_bytes(path, content.getbuffer())


def write_arrays(path: Path, arrays: Arrays, compressed: bool = False) -> None:
    """Write an npz, atomically."""
    save = np.savez_compressed if compressed else np.savez
    write_atomic(path, lambda partial: save(partial, allow_pickle=False, **arrays))


def write_blocks(path: Path, name: str, rows: int, blocks: Iterable[NDArray[Any]], others: Arrays) -> None:
    """Write an npz, atomically, whose first array comes in blocks, so that it need not fit the memory.

    Args:
        path: of the file.
        name: of the first array.
        rows: of all blocks together.
        blocks: [b, ...] each, of one dtype and shape.
        others: the other arrays.
    """

    def write(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w", allowZip64=True) as archive:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                for number, block in enumerate(blocks):
                    if number == 0:
                        header = np.lib.format.header_data_from_array_1_0(block)
                        np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows, *block.shape[1:])})
                    file.write(np.ascontiguousarray(block).data)
            for other, array in others.items():
                with archive.open(f"{other}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)

    write_atomic(path, write)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, None if it is absent, damaged, or holds what :func:`write_json` refuses."""
    try:
        value = json.loads(path.read_text(), parse_float=_finite, parse_constant=_finite)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what :func:`write_record` wrote, None if it is absent or any byte of it has changed.

    A record without a checksum, as published runs have, is taken as it is.
    """
    record = read_json(path)
    if record is None:
        return None
    checksum = record.pop("checksum", None)
    try:
        return record if checksum is None or checksum == _checksum(record) else None
    except RecursionError:  # json writes less deeply nested values than it reads
        return None


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return a file's sha256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unchanged(folder: Path, sizes: Mapping[str, int], sums: Mapping[str, str] | None = None) -> bool:
    """Tell whether files have the size, and the sha256 if it is recorded, that they were written with.

    Args:
        folder: holds the files.
        sizes: bytes by file name.
        sums: sha256 by file name, None to compare sizes alone.
    """
    try:
        for name, size in sizes.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                return False
        return all(sums.get(name) in (None, sha256_of(folder / name)) for name in sizes) if sums else True
    except OSError:  # a name no file can have, or a file that cannot be read
        return False
