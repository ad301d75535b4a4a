"""What a run under ``--tune`` ends in: constants, and the entries that ``--config`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from bench.files.writing import write_atomic
from bench.suite.registry.model import Model
from bench.suite.run import Run
from bench.suite.settings import ConfigError
from bench.suite.tuned_entries import refuse_other, write_choices
from bench.suite.tuning.grid import Tune, write_curves
from bench.suite.tuning.rules import BY_STEPS, Found, fit

__all__ = ["choose_constants", "fit_constants", "refuse_grid"]


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
            fits = [fit(tune.constant, run.subject(cells[model.name, n], reference, count)) for n in each]
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
