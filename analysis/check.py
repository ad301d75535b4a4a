"""Is a cell's record sound? Nothing is drawn from one that is incomplete, of another version or edited by hand."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["RECORD_VERSION", "check_facts", "check_key", "check_steps", "settings"]

RECORD_VERSION = 2  # of the records this package reads; bench.suite.plan writes them
_KINDS = {"model": str, "sampler": str, "steps": int, "seed": int, "samples": int}
_SHARED = ("spacing", "clip", "quantize", "samples", "data")  # what cells of one folder agree in
_COLUMNS = ("arm", "i", "stage", "t", "alpha", "sigma", "n", "quantity", "value", "std")


def check_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Check ``metrics.json`` of a cell against itself and against the files it lists.

    Raises:
        ValueError, KeyError, TypeError: saying what is wrong.
    """
    cell = facts["cell"]
    if cell.get("version") != RECORD_VERSION:
        raise ValueError(f"it was recorded by version {cell.get('version')} of the suite, this is {RECORD_VERSION}")
    for name, kind in _KINDS.items():
        if not isinstance(cell[name], kind) or isinstance(cell[name], bool):
            raise ValueError(f"{name} is {cell[name]!r}")
    expected = "{model}-{sampler}-{steps}-seed{seed}".format(**cell)
    if folder.name != expected:
        raise ValueError(f"it is the record of {expected}")
    check_key(facts["key"], cell)
    if facts["nfe"] != cell["steps"] or isinstance(facts["nfe"], bool):
        raise ValueError(f"nfe is {facts['nfe']!r} at {cell['steps']} steps")
    for score in facts["scores"]:
        _check_score(score)
    for name, size in facts["files"].items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise ValueError(f"{name} is missing or has been changed")


def check_key(key: object, description: Mapping[str, Any]) -> None:
    """Check that a key is the one the suite gives a configuration (``bench.suite.config.short_hash``).

    Raises:
        ValueError: the configuration, or the key, was edited.
    """
    if key != hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:10]:
        raise ValueError("its configuration was edited")


def _check_score(score: Mapping[str, Any]) -> None:
    value, n = score["value"], score["n"]
    if not all(isinstance(score[name], str) for name in ("metric", "reference")):
        raise ValueError("a score has no metric or no reference")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"{score['metric']} was computed from {n!r} samples")
    if value is not None and (isinstance(value, bool | str) or not math.isfinite(value)):
        raise ValueError(f"{score['metric']} is {value!r}")


def check_steps(table: pd.DataFrame, steps: int) -> None:
    """Check a per-step table: its columns, finite values, and indices that the walk has.

    Raises:
        ValueError: saying what is wrong.
    """
    missing = [name for name in _COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"it has no column {missing[0]!r}")
    given = table[["i", "t", "alpha", "sigma", "value"]]
    numbers = given.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    wrong = ~np.isfinite(numbers)
    wrong[:, -1] &= given["value"].notna().to_numpy()  # a variance of one image has no value
    if wrong.any():
        raise ValueError(
            f"row {int(np.flatnonzero(wrong.any(axis=1))[0]) + 2} holds something that is not a finite number"
        )
    if (numbers[:, 0] < -1).any() or (numbers[:, 0] >= steps).any():
        raise ValueError(f"it has steps that a walk of {steps} does not have")
    if table.duplicated(["arm", "quantity", "i", "stage"]).any():
        raise ValueError("it has the same row twice")


def settings(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings that most cells share, which all cells of a folder must have."""
    shared = Counter(json.dumps({name: cell.get(name) for name in _SHARED}) for cell in cells)
    return dict(json.loads(shared.most_common(1)[0][0])) if cells else {}
