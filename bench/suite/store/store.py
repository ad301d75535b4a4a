"""The results folder: cells and their shards.

A half-written cell is never read: files are written beside their place and renamed into it, a shard is a folder renamed
into place, and ``metrics.json``, written last, completes a cell.
"""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.files.writing import read_record, sha256_of, unchanged, write_arrays, write_record
from bench.suite.plan import Cell, Unit
from bench.suite.settings import NEUTRAL_SETTINGS, ConfigError
from bench.suite.store.shards import DamagedShard, read_shard, write_shard

ARCHIVE = "records.zip"  # of a published run, which analysis.publish writes
SAMPLED = ("samples.npz", "steps.csv", "moments.npz", "errors.npz")
SCORED = ("features.npz", "kernel.npy", "influence.npz")
_SHARED = ("version", "spacing", "clip", "quantize", "precision", "samples", "data")
_SAMPLING = (
    "eta", "variance", "churn", "s_min", "s_max", "s_noise", "classifier", "classifier_scale",
)  # fmt: skip
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)

Arrays = Mapping[str, NDArray[Any]]


class Described(Protocol):
    """What the store files: a cell, or a loop that somebody else ran."""

    @property
    def name(self) -> str:
        """Return the folder's name."""

    def description(self) -> dict[str, Any]:
        """Return everything that determines the numbers."""

    def key(self) -> str:
        """Return the cache key."""


def differing(old: Mapping[str, Any], new: Mapping[str, Any], same: bool) -> str | None:
    """Return the first setting in which two cells of one folder, and so of one table, differ; None where they agree.

    Args:
        old: a cell's description.
        new: the other's.
        same: the cells have one name: they must agree in all settings but the measurements.
    """
    if same:
        names = [name for name in {**old, **new} if name != "measure"]
    else:
        names = [*_SHARED, *(_SAMPLING if old.get("sampler") == new.get("sampler") else ())]
    return next((name for name in names if old.get(name) != new.get(name)), None)


def refuse_links(root: Path) -> None:
    """Refuse what is no file and no folder: a link may lead to files that are not the user's to copy or overwrite.

    Raises:
        ConfigError: naming the first.
    """
    # Not by glob, which fails where another process renames a folder at this moment.
    for folder, folders, files in os.walk(root):
        for path in sorted(Path(folder, name) for name in (*folders, *files)):
            if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
                raise ConfigError(
                    f"{path} is a link or no plain file, which results do not hold; delete it or choose another --out"
                )


class Store:
    """A run's folder.

    Args:
        root: the folder; created when the first thing is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sums: dict[tuple[Path, int, int], str] = {}
        self._records: dict[Path, tuple[tuple[int, int, int], dict[str, Any] | None]] = {}

    def folder(self, cell: Described) -> Path:
        """Return a cell's folder."""
        return self.root / "cells" / cell.name

    def metrics(self, cell: Described) -> dict[str, Any] | None:
        """Return a complete cell's metrics, None while it is not complete."""
        return self._metrics(self.folder(cell))

    def _metrics(self, folder: Path) -> dict[str, Any] | None:
        """Return the metrics in a folder; the file is read and checked once as long as it stays as it is."""
        path = folder / "metrics.json"
        try:
            facts = path.stat()
        except OSError:
            return None
        stamp = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if self._records.get(path, ((), None))[0] != stamp:
            self._records[path] = stamp, read_record(path)
        return self._records[path][1]

    def _write_metrics(self, cell: Described, metrics: Mapping[str, Any]) -> None:
        path = self.folder(cell) / "metrics.json"
        write_record(path, metrics)
        self._records.pop(path, None)  # its time of change may be that of the file before

    def is_intact(self, cell: Described, metrics: Mapping[str, Any], names: Sequence[str]) -> bool:
        """Tell whether these files of a complete cell are still as they were written."""
        sizes, sums = metrics.get("files"), metrics.get("sha256")
        if not isinstance(sizes, dict) or not isinstance(sums, dict):
            return False
        folder, written = self.folder(cell), {name: sizes[name] for name in names if name in sizes}
        return unchanged(folder, written) and all(sums.get(name) == self._sha256(folder / name) for name in written)

    def check(self, *cells: Described) -> None:
        """Refuse a folder whose cells were made under other settings than these cells.

        Cells of one folder go into one table, so they must agree in everything but model, sampler, steps and seed; a
        cell of the same name must agree in everything.

        Raises:
            ConfigError: naming the setting.
        """
        if (self.root / ARCHIVE).exists():
            raise ConfigError(f"{self.root} is a small copy for publication; choose another --out")
        cells_by_name = {cell.name: cell for cell in cells}
        for folder in sorted(path for path in (self.root / "cells").glob("*") if path.is_dir()):
            record = self._metrics(folder) or read_record(folder / "cell.json") or {}
            old = record.get("cell")
            if not isinstance(old, dict):
                continue
            new = cells_by_name.get(folder.name, cells[0]).description()
            name = differing(old, new, folder.name in cells_by_name)
            if name is not None:
                made, now = (settings.get(name, NEUTRAL_SETTINGS.get(name)) for settings in (old, new))
                raise ConfigError(
                    f"{folder} was made with another {name} ({made!r}, now {now!r}); choose another --out or delete it"
                )

    def check_features(self, cells: Sequence[Cell], features: str) -> None:
        """Refuse a folder with other cells that were scored with other features, which would share a table.

        Args:
            cells: those of the run; where their features differ, they are scored anew.
            features: key of the extractor and reference of the run's distances, ``none`` without any.

        Raises:
            ConfigError: naming a cell.
        """
        names = {cell.name for cell in cells}
        for folder in sorted((self.root / "cells").glob("*")):
            key = (self._metrics(folder) or {}).get("features")
            if folder.name in names or not isinstance(key, str):
                continue
            other = key.rsplit("-scores", 1)[0]
            if "none" not in (other, features) and other != features:
                raise ConfigError(
                    f"{folder} was scored with other features or another reference; run it too, so that it is scored"
                    " anew, or choose another --out"
                )

    def begin(self, cell: Described) -> None:
        """Claim the cell's folder for its configuration; damaged shards and those of other measurements are dropped."""
        for shard in self.folder(cell).glob("shard-*"):
            try:
                self.get_shard(cell, shard.name)
            except DamagedShard:
                shutil.rmtree(shard, ignore_errors=True)
        if not self.is_open(cell):
            write_record(self.folder(cell) / "cell.json", {"key": cell.key(), "cell": cell.description()})

    def is_open(self, cell: Described) -> bool:
        """Tell whether a cell was begun, with these measurements, and not completed since."""
        return (read_record(self.folder(cell) / "cell.json") or {}).get("key") == cell.key()

    def is_closed(self, cell: Described) -> bool:
        """Tell whether no work on a cell is under way."""
        return not (self.folder(cell) / "cell.json").exists() and not any(self.folder(cell).glob("shard-*"))

    def close(self, cell: Described) -> None:
        """Drop the shards of a cell; nobody computes its units until it is begun again."""
        # First the mark of work in progress: whoever sees a shard missing must see that there is nothing to do.
        (self.folder(cell) / "cell.json").unlink(missing_ok=True)
        for leftover in self.folder(cell).glob("shard-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def has_shard(self, cell: Cell, unit: Unit) -> bool:
        """Tell whether a unit's shard is there; whether it is intact is asked when the cell is begun and merged."""
        return (self.folder(cell) / unit.name).is_dir()

    def put_shard(self, cell: Cell, unit: Unit, arrays: Arrays) -> None:
        """Write a unit's arrays, atomically, in the place of a damaged shard if there is one."""
        write_shard(self.folder(cell) / unit.name, {**arrays, "key": np.array(cell.key())})

    def get_shard(self, cell: Described, name: str) -> dict[str, NDArray[Any]]:
        """Read the arrays of the unit whose shard has a name.

        Raises:
            DamagedShard: the shard is missing, a byte of it has changed, or it is of another configuration.
        """
        shard = self.folder(cell) / name
        arrays = read_shard(shard)
        if str(arrays.pop("key", "none")) != cell.key():
            raise DamagedShard(f"{shard} is of another configuration")
        return arrays

    def put_arrays(self, cell: Described, name: str, arrays: Arrays) -> None:
        """Write an npz of the cell."""
        write_arrays(self.folder(cell) / name, arrays)

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

    def finish(self, cell: Described, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``, which completes the cell, and drop its shards."""
        folder = self.folder(cell)
        paths = [folder / name for name in SAMPLED + SCORED if (folder / name).exists()]
        files = {path.name: path.stat().st_size for path in paths}
        sums = {path.name: self._sha256(path) for path in paths}
        record = {"key": cell.key(), "cell": cell.description(), "files": files, "sha256": sums, **metrics}
        self._write_metrics(cell, record)
        self.close(cell)

    def _sha256(self, path: Path) -> str:
        """Return a file's sha256, computed once as long as size and time of change stay."""
        facts = path.stat()
        key = (path, facts.st_size, facts.st_mtime_ns)
        if key not in self._sums:
            self._sums[key] = sha256_of(path)
        return self._sums[key]

    def unscore(self, cell: Cell) -> None:
        """Take a cell's scores back and delete their files, so that an interruption leaves none of other features."""
        metrics = self.metrics(cell)
        if metrics is not None:
            sizes = metrics.get("files")
            files = {name: size for name, size in sizes.items() if name in SAMPLED} if isinstance(sizes, dict) else {}
            self._write_metrics(cell, {**metrics, "files": files, "features": None, "scores": []})
        for name in SCORED:
            (self.folder(cell) / name).unlink(missing_ok=True)
