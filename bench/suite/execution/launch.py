"""From a resolved run to its results: claims the folder, joins the processes, keeps the account."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass

from bench.files.writing import drop_partials, partials
from bench.measure.quality.embedded_statistics import Unseen
from bench.runtime.distributed import note
from bench.runtime.errors import one_line
from bench.suite.cells.reference import Reference
from bench.suite.cost import cost_line, settle_compiling
from bench.suite.execution.worker import Execution
from bench.suite.experiments.calibration import plan_slopes
from bench.suite.plan import Cell
from bench.suite.processes.locks import Claims
from bench.suite.processes.progress import Progress, log_path
from bench.suite.processes.ranks import Team
from bench.suite.run import Run, notes
from bench.suite.run_record import RunRecord
from bench.suite.settings import ConfigError
from bench.suite.store.resume import extended, is_damaged, is_sampled, is_scored


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        failures: a line for each cell or measurement that was given up.
        incomplete: how many cells are not complete.
        had_work: whether there was anything to compute.
    """

    failures: tuple[str, ...] = ()
    incomplete: int = 0
    had_work: bool = True


def execute(run: Run, team: Team, quiet: bool = False) -> Outcome:
    """Compute what is not complete, and return what every process of the team returns.

    Before anything is computed, notes on the run stand on stderr, unless ``quiet``.

    Raises:
        ConfigError, FeatureError: the folder is in use or holds what does not go with this run; nothing was computed.
        OSError: results cannot be written.
    """
    with team.together():
        reference = run.reference()
        run.store.check_features(run.cells, reference.features_key())
    if team.leads:
        lines = [] if quiet else list(notes(run, reference))
        if damaged := [cell.name for cell in run.cells if is_damaged(run.store, cell)]:
            lines.append(f"damaged or edited, and computed again: {', '.join(damaged)}")
        for line in lines:
            print(f"note: {one_line(line)}", file=sys.stderr)
    # The first rank looks for all: to know that a file is what was written, all of it is read.
    if not team.gather(["work"] if team.leads and not _is_complete(run, reference) else []):
        if team.leads and team.share is None:
            _tidy(run)
            _warn(_warnings(run))
        return Outcome(had_work=False)
    run.compiled = settle_compiling(run, reference, team)
    with ExitStack() as stack:
        claims = Claims(run.out)
        with team.together():
            if team.leads:  # under torchrun the first rank holds the folder for all
                stack.enter_context(claims.folder(team.share))
        run.warnings = _check_descriptions(run, reference, team, claims)
        progress = _progress(run, reference, team)
        stack.callback(progress.close)
        with RunRecord(run).record(team):
            execution = Execution(run, reference, team, progress, claims)
            progress.event("start", calls=progress.total, cells=len(run.cells), processes=team.size)
            try:
                execution.begin()
                execution.work()
            except KeyboardInterrupt:
                with suppress(OSError):  # a full disk must not hide why the run ends
                    progress.event("interrupted")
                raise
            progress.exchange()
            failures: dict[str, str] = {}  # by cell or measurement, of which several processes may have had units
            for mine in team.collect(execution.failures):
                failures |= {name: line for name, line in mine.items() if name not in failures}
        progress.event("end", failures=len(failures))
    incomplete = sum(not _is_done(run, reference, cell) for cell in run.cells) if team.leads else 0
    return Outcome(tuple(failures.values()), incomplete)


def complete(run: Run) -> list[str]:
    """Complete the cells whose units are all there; return a line for each cell or measurement that is not complete.

    Raises as :func:`execute` does.
    """
    reference, team = run.reference(), Team()
    run.store.check_features(run.cells, reference.features_key())
    if not _is_complete(run, reference):
        claims = Claims(run.out)
        run.warnings = _warnings(run)
        with claims.folder(), RunRecord(run).record(team), closing(_progress(run, reference, team)) as progress:
            execution = Execution(run, reference, team, progress, claims)
            execution.complete()
            execution.rescore()
    batch, missing = run.config.request.batch, list[str]()
    for cell in run.cells:
        if not _is_done(run, reference, cell):
            units = list(extended(run.store, cell).units(batch))
            there = sum(run.store.has_shard(cell, unit) for unit in units) if run.store.is_open(cell) else 0
            missing.append(f"{cell.name} has {there} of its {len(units)} units")
    features = reference.features_key()
    for extra in run.extras:
        if not all(folder.is_there(features) for folder in extra.folders(run.out)):
            missing.append(f"{extra.name} is not measured")
    return missing


def _check_descriptions(run: Run, reference: Reference, team: Team, claims: Claims) -> list[str]:
    """Ask each network that was not asked before whether its description fits; print and return what does not."""
    context, checks = run.context(reference, lambda calls: None), plan_slopes(run.cells)
    with team.together():
        if team.leads and not isinstance(reference.data, Unseen):  # a note names what goes without images
            with claims.setup():
                for check in checks:
                    if refusal := check.refusal(context):
                        note(f"{check.names}: whether the description fits is not checked, for {refusal}")
                    elif check.folder(run.out).complete_facts() is None:
                        check.compute(context, run.out)
            _warn(_warnings(run))
    return team.gather(_warnings(run) if team.leads else [])


def _warnings(run: Run) -> list[str]:
    """Return a line for each network whose kept slopes are off."""
    return [line for check in plan_slopes(run.cells) if (line := check.warning(run.out))]


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"warning: {one_line(line)}", file=sys.stderr)


def _is_done(run: Run, reference: Reference, cell: Cell) -> bool:
    return is_sampled(run.store, cell) and is_scored(run.store, cell, reference.key())


def _is_complete(run: Run, reference: Reference) -> bool:
    features = reference.features_key()
    cells = all(_is_done(run, reference, cell) for cell in run.cells)
    return cells and all(extra.is_complete(run.out, features) for extra in run.extras)


def _tidy(run: Run) -> None:
    """Drop what is left of a process that died when all was done, and end the account for it."""
    if all(map(run.store.is_closed, run.cells)) and RunRecord(run).has_ended and not any(partials(run.out)):
        return
    with suppress(ConfigError), Claims(run.out).folder():  # unless somebody is at work there
        drop_partials(run.out)
        for cell in run.cells:
            run.store.close(cell)
        RunRecord(run).end()


def _calls(run: Run, reference: Reference) -> tuple[int, int]:
    """Return the network calls of what is not complete, and how many of them were made before; of a share, its part."""
    share, store = run.config.request.share, run.store
    part = slice(None) if share is None else slice(share.index, None, share.count)
    cells = [extended(store, cell) for cell in run.cells]
    sampled = {cell.name for cell in cells if is_sampled(store, cell)}
    jobs = [(cell, unit) for cell in cells for unit in cell.units(run.config.request.batch)][part]
    costs = [(store.has_shard(cell, unit), cell.unit_cost(unit)) for cell, unit in jobs if cell.name not in sampled]
    extras = sum(extra.remaining(run.out, reference.features_key()) for extra in run.extras[part])
    return extras + sum(cost for _, cost in costs), sum(cost for is_done, cost in costs if is_done)


def _progress(run: Run, reference: Reference, team: Team) -> Progress:
    shown, log = run.config.request.progress, log_path(run.out, team)
    if not team.leads:
        return Progress(team, (0, 0), (len(run.cells), 0), log, False)
    if run.extras and shown:
        print(cost_line(run))
    complete = sum(_is_done(run, reference, cell) for cell in run.cells)
    return Progress(team, _calls(run, reference), (len(run.cells), complete), log, shown)
