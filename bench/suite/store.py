"""The results folder: cells and their shards, written so that a half-written one is never read.

Files are written beside their place and renamed into it; a shard is a folder renamed into place, and a cell is
complete when its ``metrics.json``, written last, is there.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.suite.config import ConfigError
from bench.suite.plan import Cell, Unit

__all__ = ["Store", "write_atomic", "write_json"]

Arrays = Mapping[str, NDArray[Any]]


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` on a temporary file of the same suffix, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    write(partial)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, default=str, allow_nan=False) + "\n"
    write_atomic(path, lambda partial: _write_text(partial, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def _save(path: Path, arrays: Arrays) -> None:
    np.savez(path, allow_pickle=False, **arrays)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


class Store:
    """A run's folder.

    Args:
        root: the folder; created when the first thing is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, cell: Cell) -> Path:
        """Return a cell's folder."""
        return self.root / "cells" / cell.name

    def metrics(self, cell: Cell) -> dict[str, Any] | None:
        """Return a complete cell's metrics, None while it is not complete."""
        return _read_json(self.folder(cell) / "metrics.json")

    def is_sampled(self, cell: Cell) -> bool:
        """Tell whether the cell's sampling is complete (its features may still differ from those wanted)."""
        metrics = self.metrics(cell)
        return metrics is not None and metrics.get("key") == cell.key()

    def check(self, cell: Cell) -> None:
        """Refuse a folder that holds this cell's name under another configuration.

        Raises:
            ConfigError: naming what differs.
        """
        for found in (self.metrics(cell), _read_json(self.folder(cell) / "cell.json")):
            if found is None or found.get("key") == cell.key():
                continue
            old, new = found.get("cell", {}), cell.description()
            differing = [name for name in new if old.get(name) != new[name]] or ["record"]
            raise ConfigError(
                f"{self.folder(cell)} was made with another {differing[0]}"
                f" ({old.get(differing[0])!r}, now {new.get(differing[0])!r}); choose another --out or delete it"
            )

    def begin(self, cell: Cell) -> None:
        """Claim the cell's folder for its configuration."""
        write_json(self.folder(cell) / "cell.json", {"key": cell.key(), "cell": cell.description()})

    def has_shard(self, cell: Cell, unit: Unit) -> bool:
        """Tell whether a unit's shard is complete."""
        return (self.folder(cell) / unit.name).is_dir()

    def put_shard(self, cell: Cell, unit: Unit, arrays: Arrays) -> None:
        """Write a unit's arrays as one folder, atomically."""
        final = self.folder(cell) / unit.name
        partial = final.with_name(f".{unit.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _save(partial / "arrays.npz", arrays)
        (partial / "unit.json").write_text(json.dumps(asdict(unit)))
        os.replace(partial, final)

    def get_shard(self, cell: Cell, unit: Unit) -> dict[str, NDArray[Any]]:
        """Read a unit's arrays.

        Raises:
            ConfigError: the shard is damaged.
        """
        path = self.folder(cell) / unit.name
        try:
            with np.load(path / "arrays.npz", allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise ConfigError(f"{path} is damaged; delete it and run again") from None

    def put_arrays(self, cell: Cell, name: str, arrays: Arrays) -> None:
        """Write an npz of the cell."""
        write_atomic(self.folder(cell) / name, lambda partial: _save(partial, arrays))

    def put_array(self, cell: Cell, name: str, array: NDArray[Any]) -> None:
        """Write an npy of the cell."""
        write_atomic(self.folder(cell) / name, lambda partial: np.save(partial, array))

    def samples(self, cell: Cell) -> NDArray[np.uint8]:
        """Return a complete cell's samples, uint8 [N, H, W, 3].

        Raises:
            ConfigError: the file is missing or damaged.
        """
        path = self.folder(cell) / "samples.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                samples: NDArray[np.uint8] = file["arr_0"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise ConfigError(f"{path} is missing or damaged; delete {path.parent} and run again") from None
        return samples

    def finish(self, cell: Cell, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``, which completes the cell, and drop its shards."""
        write_json(self.folder(cell) / "metrics.json", {"key": cell.key(), "cell": cell.description(), **metrics})
        for leftover in self.folder(cell).glob("*shard-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        (self.folder(cell) / "cell.json").unlink(missing_ok=True)
