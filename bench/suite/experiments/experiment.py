"""Measurements with network calls of their own (chains, response): planned, costed and cached like cells.

Each fills folders of its own beside the cells. A folder's JSON file is written last and completes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from bench.files.writing import read_record, sha256_of, unchanged, write_arrays, write_atomic, write_record
from bench.suite.cells.walks import WalkContext
from bench.suite.settings import NEUTRAL_SETTINGS, ConfigError, short_hash


class RecordFolder:
    """A folder of one record: ``record.csv``, perhaps an npz of arrays, and ``facts``, its ``<kind>.json``.

    That file completes it.

    Args:
        path: the folder; created when the record is written.
        kind: ``chain``, ``response`` or ``exact``.
        description: everything that determines the numbers, JSON-like, features apart.
    """

    def __init__(self, path: Path, kind: str, description: Mapping[str, Any]) -> None:
        self.path, self.kind, self.description = path, kind, dict(description)
        self.facts, self.key = path / f"{kind}.json", short_hash(self.description)

    def complete_facts(self, features: str | None = None) -> dict[str, Any] | None:
        """Return the facts of the complete record of this description, None where there is none.

        Args:
            features: the key of the features it must have been scored with; None takes any.
        """
        facts = read_record(self.facts) or {}
        sizes, sums = facts.get("files"), facts.get("sha256")
        if facts.get("key") != self.key or not isinstance(sizes, dict) or not isinstance(sums, dict):
            return None
        if not unchanged(self.path, sizes, sums):
            return None
        return facts if features in (None, facts.get("features", features)) else None

    def is_there(self, features: str) -> bool:
        """Tell whether a complete record is there, scored with these features, of this seed or of another."""
        description = (read_record(self.facts) or {}).get(self.kind)
        seed = description.get("seed") if isinstance(description, dict) else None
        same = self if seed is None else RecordFolder(self.path, self.kind, {**self.description, "seed": seed})
        return same.complete_facts(features) is not None

    def check(self) -> None:
        """Refuse a folder that was made under other settings; another seed's record is made anew instead.

        Raises:
            ConfigError: naming what differs.
        """
        old = (read_record(self.facts) or {}).get(self.kind)
        if not isinstance(old, dict):
            return
        for name in {**old, **self.description}:
            made, now = (settings.get(name, NEUTRAL_SETTINGS.get(name)) for settings in (old, self.description))
            if name != "seed" and made != now:
                raise ConfigError(
                    f"{self.path} was made with another {name} ({made!r}, now {now!r});"
                    " choose another --out or delete it"
                )

    def table(self) -> pd.DataFrame:
        """Return the complete record's table as text, so that no number is rounded when it is written again."""
        return pd.read_csv(self.path / "record.csv", dtype=str, keep_default_na=False)

    def write(
        self, table: pd.DataFrame, arrays: Mapping[str, Mapping[str, NDArray[Any]]], facts: Mapping[str, Any]
    ) -> None:
        """Write ``record.csv``, an npz for each name of ``arrays``, and last the file that completes the folder."""
        self.facts.unlink(missing_ok=True)  # it must not vouch for the files of another record
        write_atomic(self.path / "record.csv", lambda partial: table.to_csv(partial, index=False))
        names = ["record.csv"]
        for name, contents in arrays.items():
            write_arrays(self.path / f"{name}.npz", contents)
            names.append(f"{name}.npz")
        sizes = {name: (self.path / name).stat().st_size for name in names}
        sums = {name: sha256_of(self.path / name) for name in names}
        record = {"key": self.key, self.kind: self.description, "files": sizes, "sha256": sums}
        write_record(self.facts, {**record, **facts})


class Extra(ABC):
    """A measurement that fills one or more record folders with one piece of work."""

    measure: str  # the name of the measurement the user asks for

    @property
    @abstractmethod
    def name(self) -> str:
        """Return what the progress bar calls it."""

    @property
    def line(self) -> str:
        """Return what a plan calls it; those of one name share a line."""
        return self.name

    @abstractmethod
    def folders(self, root: Path) -> Sequence[RecordFolder]:
        """Return the folders it fills."""

    def cost(self) -> int:
        """Return its network calls (one call is one image at one level), 0 where it asks no network."""
        return 0

    @abstractmethod
    def compute(self, context: WalkContext, root: Path) -> None:
        """Measure, and complete every folder below the run's folder ``root``."""

    def is_complete(self, root: Path, features: str | None = None) -> bool:
        """Tell whether every folder is complete, with these features if it has any; None takes any."""
        return all(folder.complete_facts(features) is not None for folder in self.folders(root))

    def remaining(self, root: Path, features: str | None = None) -> int:
        """Return the network calls still to be made; folders share them."""
        missing = all(folder.complete_facts(features) is None for folder in self.folders(root))
        return self.cost() if missing else 0

    def seconds(self, root: Path) -> float:
        """Return how long the complete measurement took."""
        facts = self.folders(root)[0].complete_facts() or {}
        return float(facts.get("seconds", 0.0))
