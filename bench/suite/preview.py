"""What a run would do, line by line: ``--dry-run``."""

from __future__ import annotations

from collections.abc import Iterator

from bench.runtime.errors import FeatureError
from bench.suite.cells.reference import Reference
from bench.suite.compiling import settle_compiling
from bench.suite.cost import Estimate, duration, estimate
from bench.suite.plan import Cell
from bench.suite.processes.ranks import Team
from bench.suite.run import Run
from bench.suite.space import disk_bytes, size

__all__ = ["cost_line", "dry_run"]


def dry_run(run: Run, team: Team) -> Iterator[str]:
    """Yield the resolved plan and what it will cost here, line by line; every process of a team measures at once.

    Raises:
        ConfigError: ``--compile on``, and that is impossible.
        RunError: a network says what is not finite.
    """
    heldout, made = len(run.data.part("heldout")), run.data.preprocessing
    there = f"{len(run.data.images)} images, {heldout} held out" if not run.left_out else "images not at hand"
    yield f"dataset   {run.data.name} ({there}, preprocessing {made})"
    yield from (f"left out  {what}, for want of images (--data-dir)" for what in run.left_out)
    settings = ", ".join(f"{name} {value}" for name, value in run.sampler.description().items())
    yield f"sampling  {settings}"
    yield f"samples   {run.request.samples} a cell, internal batch {run.request.batch}, on {run.device}"
    yield f"out       {run.out}"
    if run.request.tune is not None and run.fits:
        for cell in run.cells:
            yield f"  {run.request.tune.text} for {cell.model.name} at {cell.steps} steps"
        return
    compiled = settle_compiling(run, team)
    reference, unscored = _reference(run)
    cost, total, share = estimate(run, reference, team.size), 0, 0
    for cell in run.cells:
        free, instruments = cell.cost()
        state = f"to do, {duration(cost.cells[cell.name])}" if cell.name in cost.cells else "done"
        yield f"  {cell.name:<32} {free + instruments:>12,} network calls  {state}{_treatment(cell)}"
        total, share = total + free + instruments, share + instruments
    for line in dict.fromkeys(extra.line for extra in run.extras):
        extras = [extra for extra in run.extras if extra.line == line]
        done, calls = sum(extra.is_complete(run.out) for extra in extras), sum(extra.cost() for extra in extras)
        state = {0: "to do", len(extras): "done"}.get(done, f"{done} of {len(extras)} done")
        state += f", {duration(cost.extras[line])}" if line in cost.extras else ""
        yield f"  {line:<32} {calls:>12,} network calls  {state}"
    if run.extras:
        yield cost_line(run)
    total, share = (count + sum(extra.cost() for extra in run.extras) for count in (total, share))
    yield f"total     {total:,} network calls, {100 * share / total:.1f} % of them for the instruments"
    yield _time(cost, compiled, unscored)
    yield f"disk      about {size(disk_bytes(run, reference.extractor))}"


def _reference(run: Run) -> tuple[Reference, str]:
    """Return what samples are compared with, and why they will not be scored, if they will not."""
    try:
        return run.reference(), ""
    except FeatureError as error:  # of the whole plan, only this cannot be done here
        return Reference(run.data, None), str(error)


def _time(cost: Estimate, compiled: bool, unscored: str) -> str:
    """Return how long the work that is left takes, and what it is made of."""
    how = " by compiled networks" if compiled else ""
    parts = [f"{duration(cost.sampling)} of sampling{how}"]
    parts.append(f"no scores: {unscored}" if unscored else f"{duration(cost.scoring)} of scoring")
    if cost.processes > 1:
        parts.append(f"both shared by {cost.processes} processes")
    parts.append(f"{duration(cost.around)} of start-up, tables and figures")
    return f"time      {duration(cost.total)} here: {', '.join(parts)}"


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


def cost_line(run: Run) -> str:
    """Return the network calls of the cells and of each measurement that has its own, done ones included."""
    calls = {"cells": sum(sum(cell.cost()) for cell in run.cells)}
    for extra in run.extras:
        calls[extra.measure] = calls.get(extra.measure, 0) + extra.cost()
    return "network calls: " + ", ".join(f"{count:,} for {what}" for what, count in calls.items())
