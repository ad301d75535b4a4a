"""Is a cell's record sound? Nothing is drawn from one that is incomplete, of another version or edited by hand."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.records.files import LARGEST, MOST_COUNTED, Place, size_of

RECORD_VERSION = 2  # of the records this package reads; bench.suite.plan writes them
# Of models and folders, as bench.suite.settings has it; a grid's model ends in @constant=value.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(@[A-Za-z_]+=[0-9.e+-]+)?")
_KINDS = {"model": str, "sampler": str, "steps": int, "seed": int, "samples": int}
_COLUMNS = ("arm", "i", "stage", "t", "alpha", "sigma", "n", "quantity", "value", "std")
_USUAL_FRAMES = {"euler": "edm", "heun": "edm", "sde": "flow"}  # of samplers; of the others variance preserving


def walk_name(cell: Mapping[str, Any]) -> str:
    """Return a cell's sampler, with the frame of its levels where the name alone means another: ``heun (flow)``."""
    if "schedule" not in cell:
        return str(cell["sampler"])
    sampler, schedule = str(cell["sampler"]), str(cell["schedule"])
    frame = "edm" if schedule == "edm" else "flow" if schedule.startswith("flow") else ""
    return sampler if frame == _USUAL_FRAMES.get(sampler, "") else f"{sampler} ({frame})"


def check_facts(folder: Place, facts: Mapping[str, Any]) -> None:
    """Check ``metrics.json`` of a cell against itself and against the files it lists.

    Raises:
        ValueError, KeyError, TypeError: saying what is wrong.
    """
    check_unchanged(facts)
    cell = facts["cell"]
    if cell.get("version") != RECORD_VERSION:
        raise ValueError(f"it was recorded by version {cell.get('version')} of the suite, this is {RECORD_VERSION}")
    for name, kind in _KINDS.items():
        if type(cell[name]) is not kind:
            raise ValueError(f"{name} is {cell[name]!r}")
        if kind is str and not NAME.fullmatch(cell[name]):
            raise ValueError(f"{name} is {cell[name]!r:.100}, which is no name")
        if kind is int and not (name != "seed") <= cell[name] <= MOST_COUNTED:
            raise ValueError(f"{name} is {cell[name]!r:.20}")
    expected = "{model}-{sampler}-{steps}-seed{seed}".format(**cell)
    if folder.name != expected:
        raise ValueError(f"it is the record of {expected}")
    check_key(facts["key"], cell)
    calls = 2 * cell["steps"] - 1 if cell["sampler"] == "heun" else cell["steps"]
    calls = cell.get("calls", calls)  # a recorded loop counts its own
    for remedy in cell.get("remedies", ()):
        if remedy["kind"] == "nag" and remedy["w"]:
            calls *= 2  # with the time and without
    most = 2 * calls if "guidance" in cell else calls  # guidance asks twice where it acts
    if isinstance(facts["nfe"], bool) or not calls <= facts["nfe"] <= most:
        raise ValueError(f"nfe is {facts['nfe']!r} at {cell['steps']} steps of {cell['sampler']}")
    for score in facts["scores"]:
        _check_score(score)
    for metric, count in Counter(score["metric"] for score in facts["scores"]).items():
        if count > 1:
            raise ValueError(f"{metric} is there twice")
    check_files(folder, facts["files"])


def checksum(facts: Mapping[str, Any]) -> str:
    """Return the checksum of a record (``bench.files.writing.write_record``), over all but the checksum itself."""
    rest = {name: value for name, value in facts.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_unchanged(facts: Mapping[str, Any]) -> None:
    """Check a record against the checksum in it, if it has one.

    Raises:
        ValueError: it was edited.
    """
    digest = checksum(facts)
    if facts.get("checksum", digest) != digest:
        raise ValueError("its numbers were edited")


def check_files(folder: Place, sizes: Mapping[str, int]) -> None:
    """Check that the files of a record are there and have the sizes that it lists.

    Raises:
        ValueError: one is missing or has another size.
    """
    for name, size in sizes.items():
        if not (folder / name).is_file() or size_of(folder / name) != size:
            raise ValueError(f"{name} is missing or has been changed")


def check_key(key: object, description: Mapping[str, Any]) -> None:
    """Check that a key is the one the suite gives a configuration (``bench.suite.settings.short_hash``).

    Raises:
        ValueError: the configuration, or the key, was edited.
    """
    if key != hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:10]:
        raise ValueError("its configuration was edited")


def _check_score(score: Mapping[str, Any]) -> None:
    value, n = score["value"], score["n"]
    if not all(isinstance(score[name], str) for name in ("metric", "reference")):
        raise ValueError("a score has no metric or no reference")
    if type(n) is not int or not 1 <= n <= MOST_COUNTED:
        raise ValueError(f"{score['metric']} was computed from {n!r:.20} samples")
    if value is not None and (isinstance(value, bool) or not abs(value) < LARGEST):
        raise ValueError(f"{score['metric']} is {value!r:.20}")


def check_steps(table: pd.DataFrame, steps: int) -> None:
    """Check a per-step table: its columns, finite values, and indices that the walk has.

    A value may be empty (a variance of one image), and so may N and std (of an exact denoiser).

    Raises:
        ValueError: saying what is wrong.
    """
    missing = [name for name in _COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"it has no column {missing[0]!r}")
    if not len(table):
        raise ValueError("it has no rows")
    given = table[["i", "stage", "t", "alpha", "sigma", "value", "n", "std"]]
    numeric = all(pd.api.types.is_numeric_dtype(kind) for kind in given.dtypes)
    numbers = (given if numeric else given.apply(pd.to_numeric, errors="coerce")).to_numpy(dtype=float)
    wrong = ~(np.abs(numbers) < LARGEST)
    wrong[:, -3:] &= given[["value", "n", "std"]].notna().to_numpy()
    wrong |= table[["arm", "quantity"]].isna().any(axis=1).to_numpy()[:, None]
    if wrong.any():
        row = int(np.flatnonzero(wrong.any(axis=1))[0]) + 2
        raise ValueError(f"row {row} holds something that is not a finite number, or has no name")
    if (numbers[:, 0] % 1 != 0).any():
        raise ValueError("it has half steps")
    if (numbers[:, 0] < -1).any() or (numbers[:, 0] >= steps).any():
        raise ValueError(f"it has steps that a walk of {steps} does not have")
    if table.duplicated(["arm", "quantity", "i", "stage"]).any():
        raise ValueError("it has the same row twice")
