"""The constants that ``--tune`` found, as a table and as entries that ``--config`` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench.files.writing import write_atomic
from bench.suite.registry.model import Model
from bench.suite.settings import ConfigError
from bench.suite.tuning.grid import Tune, has_span, with_constant, write_table

__all__ = ["refuse_other", "tuned_entry", "write_choices"]

_CURVE = ["model", "sampler", "steps", "parameter"]
_ENTRY = '[models."'


def refuse_other(root: Path, tune: Tune) -> None:
    """Refuse a folder whose ``tuned.toml`` holds another constant, which would be lost.

    Raises:
        ConfigError: naming the file.
    """
    path = root / "tuned.toml"
    if path.exists() and not path.read_text().startswith(f"# Found by run_bench.py --tune {tune.constant}="):
        raise ConfigError(f"{path} holds another constant than {tune.constant}; choose another --out or delete it")


def write_choices(
    root: Path, tune: Tune, models: Sequence[Model], chosen: Mapping[str, Sequence[Any]], sampler: str,
    counts: Sequence[int], how: str,
) -> Path:  # fmt: skip
    """Write the constants taken, as a table and as entries that ``--config`` reads; return the latter's path.

    What is there of other models, samplers and step counts stays in the table, and of other models in the entries.

    Args:
        root: the run's folder.
        tune: what was tuned.
        models: as the user named them.
        chosen: the values by model, in the order of ``counts``.
        sampler: of the run.
        counts: step counts, ascending.
        how: what they were found by, for the file's first lines.
    """
    rows = [
        {"model": model.name, "sampler": sampler, "steps": count, "parameter": tune.constant, "value": value}
        for model in models
        for count, value in zip(counts, chosen[model.name], strict=True)
    ]
    if tune.values:
        path = root / "tuning" / "chosen.csv"
        old = pd.read_csv(path) if path.exists() else pd.DataFrame()
        write_table(path, pd.concat([old, pd.DataFrame(rows)]).drop_duplicates(_CURVE, keep="last"))
    tuned = [with_constant(model, tune.constant, chosen[model.name], sampler, counts) for model in models]
    entries = {f"{model.name}-tuned": tuned_entry(model, sampler, counts) for model in tuned}
    path = root / "tuned.toml"
    kept = [entry for name, entry in _entries(path).items() if name not in entries]
    head = [f"# {line}" for line in f"Found by run_bench.py --tune {tune.text}\n{how}".splitlines()]
    text = "\n".join([*head, "", *kept, *entries.values()])
    write_atomic(path, lambda partial: _write_text(partial, text))
    return path


def _entries(path: Path) -> dict[str, str]:
    """Return the entries of a ``tuned.toml`` by name, as they stand there."""
    if not path.exists():
        return {}
    entries = (_ENTRY + part for part in path.read_text().split(_ENTRY)[1:])
    return {entry.removeprefix(_ENTRY).partition('"]')[0]: entry.rstrip() + "\n" for entry in entries}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def tuned_entry(model: Model, sampler: str, counts: Sequence[int]) -> str:
    """Return ``[models.<model>-tuned]`` for a config file: the plain model, and its remedies' constants."""
    remedies = []
    for remedy in model.remedies:
        rows = [remedy.at(sampler, count) for count in counts]
        told: dict[str, Any] = {"kind": remedy.kind, "sampler": sampler, "steps": list(counts)}
        for name, value in rows[0].items():
            told[name] = value if isinstance(value, list) else [float(f"{row[name]:.6g}") for row in rows]
        if has_span(remedy):  # k's rise over all steps is what stays alike between step counts
            told.pop("k")
            told["span"] = [float(f"{row['k'] * (n - 1):.6g}") for row, n in zip(rows, counts, strict=True)]
        remedies.append("{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in told.items()) + " }")
    lines = "".join(f"    {remedy},\n" for remedy in remedies)
    weights = "" if model.given is None else f"weights = {json.dumps(str(model.given))}\n"
    return f'[models."{model.name}-tuned"]\nbase = "{model.base}"\n{weights}corrections = [\n{lines}]\n'
