"""What a run would do, line by line: ``--dry-run``."""

from __future__ import annotations

from collections.abc import Iterator

from bench.suite.plan import Cell
from bench.suite.run import Run, cost_line

__all__ = ["dry_run"]


def dry_run(run: Run) -> Iterator[str]:
    """Yield the resolved plan and its cost, line by line."""
    heldout, made = len(run.data.part("heldout")), run.data.preprocessing
    yield f"dataset   {run.data.name} ({len(run.data.images)} images, {heldout} held out, preprocessing {made})"
    settings = ", ".join(f"{name} {value}" for name, value in run.sampler.description().items())
    yield f"sampling  {settings}"
    yield f"samples   {run.request.samples} a cell, internal batch {run.request.batch}, on {run.device}"
    yield f"out       {run.out}"
    if run.request.tune is not None and run.fits:
        for cell in run.cells:
            yield f"  {run.request.tune.text} for {cell.model.name} at {cell.steps} steps"
        return
    total, share = 0, 0
    for cell in run.cells:
        free, instruments = cell.cost()
        state = "done" if run.store.is_sampled(cell) else "to do"
        yield f"  {cell.name:<32} {free + instruments:>12,} network calls  {state}{_treatment(cell)}"
        total, share = total + free + instruments, share + instruments
    for line in dict.fromkeys(extra.line for extra in run.extras):
        extras = [extra for extra in run.extras if extra.line == line]
        done, calls = sum(extra.is_complete(run.out) for extra in extras), sum(extra.cost() for extra in extras)
        state = {0: "to do", len(extras): "done"}.get(done, f"{done} of {len(extras)} done")
        yield f"  {line:<32} {calls:>12,} network calls  {state}"
    if run.extras:
        yield cost_line(run)
    total, share = (count + sum(extra.cost() for extra in run.extras) for count in (total, share))
    yield f"total     {total:,} network calls, {100 * share / total:.1f} % of them for the instruments"


def _treatment(cell: Cell) -> str:
    """Return what is done to a cell's walks, as a plan says it."""
    told = []
    for remedy in cell.model.remedies:
        constants = remedy.at(cell.config.sampler, cell.steps)
        if remedy.kind == "epsilon-scaling":
            told.append(f"eps / ({constants['b']:.5g} + {constants['k']:.3g} i)")
        else:
            numbers = [f"{name} {value:.5g}" for name, value in constants.items() if not isinstance(value, list)]
            told.append(" ".join([remedy.kind, *numbers]))
    return "  " + ", ".join(told) if told else ""
