"""The results folder: cells and their shards, written so that a half-written one is never read.

Files are written beside their place and renamed into it; a shard is a folder renamed into place, and a cell is
complete when its ``metrics.json``, written last, is there.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.suite.config import ConfigError
from bench.suite.plan import IN_CELLS, Cell, Unit

__all__ = ["Store", "read_json", "unchanged", "write_arrays", "write_atomic", "write_json"]

_SAMPLED = ("samples.npz", "steps.csv", "moments.npz", "errors.npz")
_SCORED = ("features.npz", "kernel.npy")
_SHARED = ("version", "spacing", "clip", "quantize", "samples", "data")
_SAMPLING = ("eta", "variance", "churn", "classifier", "classifier_scale")  # of cells with the same sampler
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)

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


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write an npz, atomically."""
    write_atomic(path, lambda partial: _save(partial, arrays))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, None where there is none or it is damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def unchanged(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Tell whether files of a folder still have the size they were written with."""
    files = {folder / name: size for name, size in sizes.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())


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
        return read_json(self.folder(cell) / "metrics.json")

    def is_sampled(self, cell: Cell) -> bool:
        """Tell whether the cell's sampling is complete (its features may still differ from those wanted)."""
        metrics = self.metrics(cell)
        if metrics is None or not self._intact(cell, metrics, _SAMPLED):
            return False
        return metrics.get("key") == self.extended(cell).key() and set(cell.measure) <= set(self._measured(cell))

    def extended(self, cell: Cell) -> Cell:
        """Return the cell with the measurements its folder already has added, so that measuring more loses nothing."""
        return replace(cell, measure=tuple(name for name in IN_CELLS if name in (*cell.measure, *self._measured(cell))))

    def _measured(self, cell: Cell) -> list[str]:
        found = (self.metrics(cell) or {}).get("cell")
        names = found.get("measure") if isinstance(found, dict) else None
        return names if isinstance(names, list) else []

    def is_scored(self, cell: Cell, features: str) -> bool:
        """Tell whether a sampled cell's scores are those of these features, and their files are there."""
        metrics = self.metrics(cell) or {}
        return metrics.get("features") == features and self._intact(cell, metrics, _SCORED)

    def _intact(self, cell: Cell, metrics: Mapping[str, Any], names: Sequence[str]) -> bool:
        """Tell whether those files of a complete cell still have the size they were written with."""
        sizes = metrics.get("files")
        if not isinstance(sizes, dict):
            return False
        return unchanged(self.folder(cell), {name: sizes[name] for name in names if name in sizes})

    def check(self, cell: Cell) -> None:
        """Refuse a folder whose cells were made under settings that this cell does not share.

        Cells of one folder go into one table, so they must agree in everything but model, sampler, steps and seed; a
        cell of the same name must agree in everything.

        Raises:
            ConfigError: naming what differs.
        """
        new = cell.description()
        for folder in sorted(path for path in (self.root / "cells").glob("*") if path.is_dir()):
            found = read_json(folder / "metrics.json") or read_json(folder / "cell.json") or {}
            old = found.get("cell")
            if found.get("published"):
                raise ConfigError(f"{folder} is a small copy for publication; choose another --out")
            if not isinstance(old, dict):
                continue
            names = _SHARED + (_SAMPLING if old.get("sampler") == new["sampler"] else ())
            for name in {**old, **new} if folder.name == cell.name else names:
                if name != "measure" and old.get(name) != new.get(name):
                    raise ConfigError(
                        f"{folder} was made with another {name} ({old.get(name)!r}, now {new.get(name)!r});"
                        " choose another --out or delete it"
                    )

    def check_features(self, cells: Sequence[Cell], features: str) -> None:
        """Refuse a folder with other cells that were scored with other features, which would share a table.

        Args:
            cells: those of the run, which are scored anew where they must be.
            features: what the run's distances depend on, ``none`` without any.

        Raises:
            ConfigError: naming a cell.
        """
        own = {cell.name for cell in cells}
        for folder in sorted((self.root / "cells").glob("*")):
            found = (read_json(folder / "metrics.json") or {}).get("features")
            if folder.name in own or not isinstance(found, str):
                continue
            other = found.rsplit("-scores", 1)[0]
            if "none" not in (other, features) and other != features:
                raise ConfigError(
                    f"{folder} was scored with other features or another reference; run it too, so that it is scored"
                    " anew, or choose another --out"
                )

    def refuse_links(self) -> None:
        """Refuse links below the folder, through which files of others would be overwritten.

        Raises:
            ConfigError: naming the first.
        """
        for path in sorted(self.root.rglob("*")):
            if path.is_symlink():
                raise ConfigError(
                    f"{path} is a link, and nothing is written through it; delete it or choose another --out"
                )

    def begin(self, cell: Cell) -> None:
        """Claim the cell's folder for its configuration; shards of other measurements are dropped."""
        found = read_json(self.folder(cell) / "cell.json")
        if found is None or found.get("key") != cell.key():
            self._drop_shards(cell)
        write_json(self.folder(cell) / "cell.json", {"key": cell.key(), "cell": cell.description()})

    def has_shard(self, cell: Cell, unit: Unit) -> bool:
        """Tell whether a unit's shard is complete."""
        return (self.folder(cell) / unit.name).is_dir()

    def put_shard(self, cell: Cell, unit: Unit, arrays: Arrays, seconds: float) -> None:
        """Write a unit's arrays, and how long they took, as one folder, atomically."""
        final = self.folder(cell) / unit.name
        partial = final.with_name(f".{unit.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _save(partial / "arrays.npz", arrays)
        (partial / "unit.json").write_text(json.dumps({**asdict(unit), "seconds": seconds}))
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
        except _DAMAGE:
            raise ConfigError(f"{path} is damaged; delete it and run again") from None

    def shard_seconds(self, cell: Cell, unit: Unit) -> float:
        """Return how long a complete unit took."""
        return float((read_json(self.folder(cell) / unit.name / "unit.json") or {}).get("seconds", 0.0))

    def put_arrays(self, cell: Cell, name: str, arrays: Arrays) -> None:
        """Write an npz of the cell."""
        write_arrays(self.folder(cell) / name, arrays)

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
        except _DAMAGE:
            raise ConfigError(f"{path} is missing or damaged; delete {path.parent} and run again") from None
        return samples

    def finish(self, cell: Cell, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``, which completes the cell, and drop its shards."""
        folder = self.folder(cell)
        files = {name: (folder / name).stat().st_size for name in _SAMPLED + _SCORED if (folder / name).exists()}
        write_json(folder / "metrics.json", {"key": cell.key(), "cell": cell.description(), "files": files, **metrics})
        self._drop_shards(cell)
        (folder / "cell.json").unlink(missing_ok=True)

    def _drop_shards(self, cell: Cell) -> None:
        for leftover in self.folder(cell).glob("*shard-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def unscore(self, cell: Cell) -> None:
        """Take a cell's scores back and delete their files, so that an interruption leaves none of other features."""
        found = self.metrics(cell)
        if found is not None:
            sizes = found.get("files")
            kept = {name: size for name, size in sizes.items() if name in _SAMPLED} if isinstance(sizes, dict) else {}
            write_json(self.folder(cell) / "metrics.json", {**found, "files": kept, "features": None, "scores": []})
        for name in _SCORED:
            (self.folder(cell) / name).unlink(missing_ok=True)
