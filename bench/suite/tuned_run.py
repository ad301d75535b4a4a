"""What a run under ``--tune`` ends in: constants, and the entries that ``--config`` reads."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from bench.suite.fitting import fit
from bench.suite.run import Run
from bench.suite.tune import Tune, write_choices, write_curves

__all__ = ["choose_constants", "fit_constants"]


def fit_constants(run: Run, tune: Tune, quiet: bool) -> Path:
    """Fit a constant of every model at every step count by its own rule; return the file of the entries.

    Raises:
        ConfigError: the constant has no rule.
    """
    reference, counts = run.reference(), sorted(run.request.steps)
    cells = {(cell.model.name, cell.steps): cell for cell in run.cells}
    with tqdm(unit="call", unit_scale=True, disable=quiet) as bar:
        chosen = {
            model.name: [fit(tune.constant, run.subject(cells[model.name, n], reference, bar)) for n in counts]
            for model in run.named
        }
    how = f"Found by run_bench.py --tune {tune.constant}=fit, sampler {run.sampler.sampler}."
    return write_choices(run.out, tune, run.named, chosen, run.sampler.sampler, counts, how)


def choose_constants(run: Run, tune: Tune) -> Path:
    """Write what the complete cells of a grid say about a constant; return the file of the entries.

    Raises:
        ConfigError: a cell has no Frechet distance, because N does not support it.
    """
    reference, counts, request = run.reference(), sorted(run.request.steps), run.request
    assert reference.extractor is not None  # the command line refuses --tune without features
    metric = reference.extractor.metrics["frechet"]
    chosen = write_curves(tune, run.named, run.cells, run.store, metric)
    how = (
        f"Found by run_bench.py --tune: {metric} against {reference.name}, sampler {run.sampler.sampler},\n"
        f"{request.samples} samples a value and seed, {len(run.seeds)} of the seeds reserved for tuning."
    )
    return write_choices(run.out, tune, run.named, chosen, run.sampler.sampler, counts, how)
