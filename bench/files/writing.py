"""Files written beside their place and renamed into it, so that a half-written one is never read."""

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

__all__ = [
    "drop_partials", "partial_path", "partials", "read_json", "read_record", "sha256_of", "unchanged", "write_array",
    "write_arrays", "write_atomic", "write_blocks", "write_json", "write_record",
]  # fmt: skip

_PARTIAL = ".*.partial-*"
_OWN = secrets.token_hex(4)  # processes of two machines may have one number

Arrays = Mapping[str, NDArray[Any]]


def partial_path(path: Path) -> Path:
    """Return where this process writes what will be renamed to ``path``; the suffix stays."""
    return path.with_name(f".{path.stem}.partial-{_OWN}-{os.getpid()}{path.suffix}")


def partials(root: Path) -> Iterator[Path]:
    """Yield the files and folders below a folder that are half written."""
    for folder, folders, files in os.walk(root):
        yield from (Path(folder, name) for name in fnmatch.filter((*folders, *files), _PARTIAL))
        folders[:] = [name for name in folders if not fnmatch.fnmatch(name, _PARTIAL)]


def drop_partials(root: Path) -> None:
    """Delete what is half written below a folder, where nobody is at work: it is of a process that died."""
    for leftover in list(partials(root)):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` on a temporary file of the same suffix, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        write(partial)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)  # a full disk needs the room
        raise


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, default=str, allow_nan=False) + "\n"
    write_atomic(path, lambda partial: _write_text(partial, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Write indented JSON with its own checksum, atomically; NaN and infinity are refused."""
    plain = json.loads(json.dumps(value, default=str, allow_nan=False))
    plain.pop("checksum", None)
    write_json(path, {**plain, "checksum": _checksum(plain)})


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an npy, atomically."""
    content = io.BytesIO()  # numpy's own writing to a file does not say why it failed
    np.save(content, array, allow_pickle=False)
    write_atomic(path, lambda partial: _write_bytes(partial, content.getbuffer()))


def _write_bytes(path: Path, content: memoryview) -> None:
    path.write_bytes(content)


def write_arrays(path: Path, arrays: Arrays, compressed: bool = False) -> None:
    """Write an npz, atomically."""
    save = np.savez_compressed if compressed else np.savez
    write_atomic(path, lambda partial: save(partial, allow_pickle=False, **arrays))


def write_blocks(path: Path, name: str, rows: int, blocks: Iterable[NDArray[Any]], others: Arrays) -> None:
    """Write an npz, atomically, whose first array comes in blocks, so that it need not fit the memory.

    Args:
        path: of the file.
        name: of the first array.
        rows: how many rows the blocks have in all.
        blocks: [b, ...] each, of one dtype and shape.
        others: what else it holds.
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
    """Return a JSON object, None where there is none, it is damaged, or holds what :func:`write_json` refuses."""
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
    """Return what :func:`write_record` wrote, None where there is nothing or a byte of it has changed.

    Records of version 0.1 have no checksum and are taken as they are.
    """
    found = read_json(path)
    if found is None:
        return None
    checksum = found.pop("checksum", None)
    try:
        return found if checksum is None or checksum == _checksum(found) else None
    except RecursionError:  # writing nests less deeply than reading
        return None


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unchanged(folder: Path, sizes: Mapping[str, int], sums: Mapping[str, str] | None = None) -> bool:
    """Tell whether files of a folder still have the size, and where it is known the sha256, they were written with."""
    files = {name: folder / name for name in sizes}
    try:
        if not all(path.is_file() and path.stat().st_size == sizes[name] for name, path in files.items()):
            return False
        return all(sums.get(name) in (None, sha256_of(path)) for name, path in files.items()) if sums else True
    except OSError:  # a name no file can have, or a file that cannot be read
        return False
