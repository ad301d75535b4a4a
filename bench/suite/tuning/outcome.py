"""What a run under ``--tune`` ends in: constants, and the entries that ``--config`` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from bench.files.writing import write_atomic
from bench.suite.cells.reference import Reference
from bench.suite.plan import Cell
from bench.suite.registry.model import Model
from bench.suite.registry.tune import BY_STEPS, Tune, has_span, with_constant
from bench.suite.run import Run
from bench.suite.settings import ConfigError
from bench.suite.tuning.grid import write_curves, write_table
from bench.suite.tuning.rules import Found, Subject, fit

_CURVE = ["model", "sampler", "steps", "parameter"]
_ENTRY = '[models."'


def refuse_grid(run: Run, tune: Tune) -> None:
    """Refuse, before anything is computed, a folder with another constant's entries, and too few samples.

    Raises:
        ConfigError: naming what to change.
    """
    refuse_other(run.out, tune)
    if run.fits:
        return
    needed = len(run.reference().features().moments.mean) + 1
    if run.request.samples < needed:
        raise ConfigError(
            f"--tune needs a Frechet distance, and that {needed} images a value, not {run.request.samples};"
            " give more --samples"
        )


def fit_constants(run: Run, tune: Tune, quiet: bool) -> Path:
    """Fit a constant of every model by its own rule, at every step count it depends on; return the entries' file.

    ``fitted.csv`` says what each fit says of itself.

    Raises:
        ConfigError: the constant has no rule.
    """
    reference, counts = run.reference(), sorted(run.request.steps)
    cells = {(cell.model.name, cell.steps): cell for cell in run.cells}
    each = counts if tune.constant in BY_STEPS else counts[:1]
    found: dict[str, list[Found]] = {}
    with tqdm(unit="call", unit_scale=True, disable=quiet) as bar:

        def count(calls: int) -> None:
            bar.update(calls)

        for model in run.named:
            fits = [fit(tune.constant, _subject(run, cells[model.name, n], reference, count)) for n in each]
            found[model.name] = fits if len(fits) == len(counts) else fits * len(counts)
    rows = [
        {"model": name, "sampler": run.sampler.sampler, "steps": n, "parameter": tune.constant, **_told(one)}
        for name, fits in found.items()
        for n, one in zip(counts, fits, strict=True)
    ]
    write_atomic(run.out / "fitted.csv", lambda partial: pd.DataFrame(rows).to_csv(partial, index=False))
    chosen = {name: [one.value for one in fits] for name, fits in found.items()}
    how = f"sampler {run.sampler.sampler}; fitted.csv says how."
    return write_choices(run.out, tune, run.named, chosen, run.sampler.sampler, counts, how)


def _subject(run: Run, cell: Cell, reference: Reference, progress: Callable[[int], None]) -> Subject:
    """Return what a constant of a cell's model is fitted for."""
    return Subject(cell, run.denoiser(cell.model), reference, run.device, run.request.batch, progress)


def _told(found: Found) -> dict[str, Any]:
    """Return a fit as a part of a row."""
    return {**({} if isinstance(found.value, list) else {"value": found.value}), **found.about}


def choose_constants(run: Run, tune: Tune) -> tuple[Path, list[str]]:
    """Write what the complete cells of a grid say about a constant.

    Returns:
        (the file of the entries, a line for each constant that is the end of its grid).

    Raises:
        ConfigError: a cell has no Frechet distance.
    """
    reference, counts, request = run.reference(), sorted(run.request.steps), run.request
    assert reference.extractor is not None  # the command line refuses --tune without features
    metric = reference.extractor.metrics["frechet"]
    chosen = write_curves(tune, run.named, run.cells, run.store, metric)
    ends = [line for model in run.named for line in _ends(tune, model, chosen[model.name], counts)]
    how = "\n".join([
        f"{metric} to {reference.name}, {run.sampler.sampler}; {request.samples} samples a value and seed,",
        f"{len(run.seeds)} of the seeds reserved for tuning.",
        *ends,
    ])  # fmt: skip
    return write_choices(run.out, tune, run.named, chosen, run.sampler.sampler, counts, how), ends


def _ends(tune: Tune, model: Model, chosen: list[float], counts: list[int]) -> list[str]:
    return [
        f"{model.name} at {count} steps: {tune.constant} = {value:g} is an end of the grid; better may lie beyond"
        for value, count in zip(chosen, counts, strict=True)
        if value in (tune.values[0], tune.values[-1])
    ]


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
