"""The outcome of ``--tune``: tables of the constants chosen, and entries of models that ``--config`` reads.

Every value of a grid is a model of its own, named ``<model>@<constant>=<value>``, on the same noise. Seeds are those of
the user plus a million, a range that no other run may use: no reported number comes from the noise it was tuned on.

A grid writes every distance as ``tuning/<model>-<sampler>-<steps>-<constant>.csv`` and the constants as
``tuning/chosen.csv``, a fit its diagnostics as ``fitted.csv``. Both write ``tuned.toml`` with an entry
``<model>-tuned`` for each model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.files.writing import write_atomic
from bench.runtime.progress import progress_bar
from bench.suite.plan import Cell
from bench.suite.registry.model import Model
from bench.suite.registry.remedies import split_kind
from bench.suite.registry.tuned_constant import BY_STEPS, TunedConstant, with_constant
from bench.suite.run import Run
from bench.suite.settings import ConfigError
from bench.suite.store.store import Store
from bench.suite.tuning.rules import FittedConstant, fit

_COORDINATES = ["model", "sampler", "steps", "parameter"]  # of a row of chosen.csv
_ENTRY = '[models."'
_NEAR = 2  # grid points on either side of the best one that the parabola goes through


def refuse_grid(run: Run, tune: TunedConstant) -> None:
    """Refuse, before anything is computed, a folder with another constant's entries, and too few samples.

    Raises:
        ConfigError: naming what to change.
    """
    refuse_other(run.out, tune)
    if run.config.fits:
        return
    needed = len(run.reference().features().moments.mean) + 1
    if run.config.request.samples < needed:
        raise ConfigError(
            f"--tune needs a Frechet distance, and that {needed} images a value, not {run.config.request.samples};"
            " give more --samples"
        )


def refuse_other(root: Path, tune: TunedConstant) -> None:
    """Refuse a folder whose ``tuned.toml`` holds another constant, which would be lost.

    Raises:
        ConfigError: naming the file.
    """
    path = root / "tuned.toml"
    if path.exists() and not path.read_text().startswith(f"# Found by run_bench.py --tune {tune.constant}="):
        raise ConfigError(f"{path} holds another constant than {tune.constant}; choose another --out or delete it")


def fit_constants(run: Run, tune: TunedConstant, quiet: bool) -> Path:
    """Fit a constant of every model by its rule, at every step count it depends on; return the entries' file.

    Raises:
        ConfigError: the constant has no rule.
    """
    counts, sampler = sorted(run.config.request.steps), run.config.sampler.sampler
    cells = {(cell.model.name, cell.steps): cell for cell in run.cells}
    fitted_counts = counts if tune.constant in BY_STEPS else counts[:1]
    fits: dict[str, list[FittedConstant]] = {}
    with progress_bar(shown=not quiet, unit="call", unit_scale=True) as bar:

        def progress(calls: int) -> None:
            bar.update(calls)

        context = run.context(run.reference(), progress)
        for model in run.config.named:
            constants = [fit(tune.constant, cells[model.name, count], context) for count in fitted_counts]
            fits[model.name] = constants if len(constants) == len(counts) else constants * len(counts)
    rows = [
        {"model": name, "sampler": sampler, "steps": count, "parameter": tune.constant, **_diagnostics(constant)}
        for name, constants in fits.items()
        for count, constant in zip(counts, constants, strict=True)
    ]
    write_table(run.out / "fitted.csv", pd.DataFrame(rows))
    values = {name: [constant.value for constant in constants] for name, constants in fits.items()}
    return write_entries(
        run.out, tune, run.config.named, values, sampler, counts, f"sampler {sampler}; fitted.csv says how."
    )


def _diagnostics(constant: FittedConstant) -> dict[str, Any]:
    """Return a fit as a part of a row; a list of numbers does not fit into one."""
    value = {} if isinstance(constant.value, list) else {"value": constant.value}
    return {**value, **constant.diagnostics}


def choose(values: Sequence[float], distances: Sequence[float]) -> float:
    """Return the value of least distance: the vertex of a parabola around the best point, to six digits.

    The parabola is fitted to the best point and up to two on either side. Where its vertex is no minimum, or lies
    outside of these points, the best point itself is taken.
    """
    best = int(np.argmin(distances))
    near = slice(max(0, best - _NEAR), best + _NEAR + 1)
    x, y = np.asarray(values[near]), np.asarray(distances[near])
    middle = x.mean()
    curve = np.polyfit(x - middle, y, 2)
    vertex = middle - curve[1] / (2 * curve[0]) if curve[0] > 0 else math.nan
    return float(f"{vertex if x[0] <= vertex <= x[-1] else values[best]:.6g}")


def _chosen(run: Run, tune: TunedConstant, model: Model, count: int, metric: str) -> float:
    """Write the distances of a model's values at a step count as a table; return the value of least distance.

    Raises:
        ConfigError: a distance is missing, because N does not support it.
    """
    sampler = run.config.sampler.sampler
    where = {"model": model.name, "sampler": sampler, "steps": count, "parameter": tune.constant}
    cells = {(cell.model.name, cell.seed): cell for cell in run.cells if cell.steps == count}
    rows = [
        {**where, "value": value, "seed": seed, **_distance(cells[name, seed], run.store, metric)}
        for name, value in zip(tune.names(model), tune.values, strict=True)
        for seed in sorted(run.config.seeds)
    ]
    table = pd.DataFrame(rows)
    write_table(run.out / "tuning" / f"{model.name}-{sampler}-{count}-{tune.constant}.csv", table)
    means = table.groupby("value", sort=True)["distance"].mean()
    return choose([float(v) for v in means.index], means.tolist())


def _distance(cell: Cell, store: Store, metric: str) -> dict[str, Any]:
    """Return a cell's distance as a part of a curve's row."""
    scores = (store.metrics(cell) or {}).get("scores", [])
    score = next((score for score in scores if score["metric"] == metric), {"reason": "it was not scored"})
    if score.get("value") is None:
        raise ConfigError(f"--tune needs {metric}, and {cell.name} has none: {score['reason']}")
    return {"n": score["n"], "metric": metric, "distance": score["value"]}


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file, atomically."""
    write_atomic(path, lambda partial: table.to_csv(partial, index=False))


def choose_constants(run: Run, tune: TunedConstant) -> tuple[Path, list[str]]:
    """Choose a constant from the complete cells of a grid.

    Returns:
        (the file of the entries, a line for each constant at an end of its grid).

    Raises:
        ConfigError: a cell has no Frechet distance.
    """
    reference, counts, sampler = run.reference(), sorted(run.config.request.steps), run.config.sampler.sampler
    assert reference.extractor is not None  # the command line refuses --tune without features
    metric = reference.extractor.metrics["frechet"]
    models = run.config.named
    values = {model.name: [_chosen(run, tune, model, count, metric) for count in counts] for model in models}
    rows = [
        {"model": model.name, "sampler": sampler, "steps": count, "parameter": tune.constant, "value": value}
        for model in run.config.named
        for count, value in zip(counts, values[model.name], strict=True)
    ]
    write_chosen(run.out / "tuning" / "chosen.csv", pd.DataFrame(rows))
    ends = [
        f"{row['model']} at {row['steps']} steps: {tune.constant} = {row['value']:g} is an end of the grid; better may"
        " lie beyond"
        for row in rows
        if row["value"] in (tune.values[0], tune.values[-1])
    ]
    how = "\n".join([
        f"{metric} to {reference.name}, {sampler}; {run.config.request.samples} samples a value and seed,",
        f"{len(run.config.seeds)} of the seeds reserved for tuning.",
        *ends,
    ])  # fmt: skip
    return write_entries(run.out, tune, run.config.named, values, sampler, counts, how), ends


def write_chosen(path: Path, rows: pd.DataFrame) -> None:
    """Write the constants chosen as a table; rows of other models, samplers and step counts stay in it."""
    old = pd.read_csv(path) if path.exists() else pd.DataFrame()
    write_table(path, pd.concat([old, rows]).drop_duplicates(_COORDINATES, keep="last"))


def write_entries(
    root: Path,
    tune: TunedConstant,
    models: Sequence[Model],
    values: Mapping[str, Sequence[Any]],
    sampler: str,
    counts: Sequence[int],
    how: str,
) -> Path:
    """Write the models with their new constants as entries that ``--config`` reads; return the file's path.

    Entries of other models stay in the file.

    Args:
        root: the run's folder.
        tune: the constant.
        models: as the user named them.
        values: of the constant by model, in the order of ``counts``.
        sampler: of the run.
        counts: step counts, ascending.
        how: how the values were chosen, for the file's first lines.
    """
    tuned = [with_constant(model, tune.constant, values[model.name], sampler, counts) for model in models]
    entries = {f"{model.name}-tuned": tuned_entry(model, sampler, counts) for model in tuned}
    path = root / "tuned.toml"
    others = [entry for name, entry in _entries(path).items() if name not in entries]
    head = [f"# {line}" for line in f"Found by run_bench.py --tune {tune.text}\n{how}".splitlines()]
    text = "\n".join([*head, "", *others, *entries.values()])
    write_atomic(path, lambda partial: partial.write_text(text))
    return path


def _entries(path: Path) -> dict[str, str]:
    """Return the entries of a ``tuned.toml`` by name, as text."""
    if not path.exists():
        return {}
    entries = (_ENTRY + part for part in path.read_text().split(_ENTRY)[1:])
    return {entry.removeprefix(_ENTRY).partition('"]')[0]: entry.rstrip() + "\n" for entry in entries}


def tuned_entry(model: Model, sampler: str, counts: Sequence[int]) -> str:
    """Return ``[models.<model>-tuned]`` for a config file: the plain model, and its remedies' constants."""
    remedies = []
    for remedy in model.remedies:
        rows = [remedy.at(sampler, count) for count in counts]
        kind, variant = split_kind(remedy.kind)
        entry: dict[str, Any] = {"kind": kind, **({"variant": variant} if variant else {})}
        entry |= {"sampler": sampler, "steps": list(counts)}
        for name, value in rows[0].items():
            entry[name] = value if isinstance(value, list) else [float(f"{row[name]:.6g}") for row in rows]
        if remedy.has_span:  # k's rise over all steps stays alike between step counts
            del entry["k"]
            entry["span"] = [float(f"{row['k'] * (n - 1):.6g}") for row, n in zip(rows, counts, strict=True)]
        remedies.append("{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in entry.items()) + " }")
    lines = "".join(f"    {remedy},\n" for remedy in remedies)
    given, weights = model.given, ""
    if given is not None:  # a path of the command line, or a hub id; those of a config file start in its folder
        weights = f"weights = {json.dumps(str(given.resolve() if given.exists() else given))}\n"
    return f'[models."{model.name}-tuned"]\nbase = "{model.base}"\n{weights}corrections = [\n{lines}]\n'
