"""The execution of a plan: every process takes units of work until none is left, and completes the cells it can."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.files.writing import drop_partials
from bench.suite.cells.reference import Reference
from bench.suite.cells.runner import CellRunner, score_cell
from bench.suite.cells.walks import Arrays, RunError
from bench.suite.experiments.experiment import Extra
from bench.suite.plan import Cell, Unit
from bench.suite.processes.locks import Claims
from bench.suite.processes.progress import Progress
from bench.suite.processes.ranks import Team
from bench.suite.run import Run
from bench.suite.store.resume import extended, is_sampled, is_scored


class Finisher:
    """Does one thing at a time, in the order given.

    Args:
        beside: use a thread of its own. It gains where the walk computes on another device than the host; on the host
            itself both would only share the cores.
    """

    def __init__(self, beside: bool) -> None:
        self.beside = beside
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def submit(self, work: Callable[[], object]) -> None:
        """Do the work, now or beside what follows; waits for what was given before, so that nothing piles up.

        Raises:
            BaseException: what earlier work has raised.
        """
        self.wait()
        if not self.beside:
            work()
            return
        # A daemon: what is half written at an interruption is never read, and nobody should have to wait for it.
        self._thread = threading.Thread(target=self._do, args=(work,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for what was given.

        Raises:
            BaseException: what it has raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # whatever it is belongs to the thread that waits
            self._failure = error


class Execution:
    """The work of one process of a run; all processes of a team go through the same methods in the same order.

    Args:
        run: the plan.
        reference: what samples are compared with.
        team: who shares the work; the results folder is theirs.
        progress: counts and logs the work.
        claims: on the results folder.

    Attributes:
        failures: a line for each cell or measurement that this process had to give up.
    """

    def __init__(self, run: Run, reference: Reference, team: Team, progress: Progress, claims: Claims) -> None:
        self.run, self.reference, self.team, self.progress, self.claims = run, reference, team, progress, claims
        self.store, self.cells = run.store, [extended(run.store, cell) for cell in run.cells]
        self.context = run.context(reference, progress.calls)
        self.failures: dict[str, str] = {}
        self._finisher = Finisher(run.config.overlaps)
        self._runner: CellRunner | None = None
        self._knows_reference = False

    def begin(self) -> None:
        """Set up every cell that is not complete; of the ranks of torchrun the first does."""
        if self.team.leads:
            alone = self.team.share is None  # so that what is half written is of a process that died
            with self.claims.setup():
                if alone:
                    drop_partials(self.run.out)
                for cell in self.cells:
                    if not is_sampled(self.store, cell):
                        self.store.begin(cell)
                    elif alone:  # of a process that died while it completed the cell
                        self.store.close(cell)
        self.team.gather([])  # whoever works now finds the cells set up

    def work(self) -> None:
        """Do this process's part: the units of the cells, scores made anew, then the other measurements."""
        jobs = [(cell, unit) for cell in self.cells for unit in cell.units(self.run.config.request.batch)]
        for number in self.team.take("units", len(jobs)):
            self._unit(*jobs[number])
        self._finisher.wait()
        self.team.gather([])
        if self.team.leads:
            self.complete()
        self.team.gather([])  # a cell that is being completed is not to be scored anew
        self.rescore()
        features = self.reference.features_key()
        for number in self.team.take("extras", len(self.run.extras)):
            extra = self.run.extras[number]
            if not extra.is_complete(self.run.out, features):
                self.progress.begin(extra.name)
                self._try(extra.name, partial(self._measure, extra))

    def _unit(self, cell: Cell, unit: Unit) -> None:
        """Compute a unit, unless it was done before or its cell was given up."""
        if cell.name in self.failures or not self.store.is_open(cell) or self.store.has_shard(cell, unit):
            return
        self.progress.begin(f"{cell.model.name} {cell.steps} steps")
        runner = self._runner_of(cell)
        self._try(cell.name, lambda: self._walk(runner, unit))

    def _walk(self, runner: CellRunner, unit: Unit) -> None:
        arrays = runner.walk(unit)
        self._finisher.submit(lambda: self._try(runner.cell.name, lambda: self._finish(runner, unit, arrays)))

    def _finish(self, runner: CellRunner, unit: Unit, arrays: Arrays) -> None:
        """Keep a unit's records, and complete the cell if they were the last."""
        runner.keep(unit, arrays)
        images = unit.stop - unit.start
        seconds = round(float(arrays["seconds"]), 3)
        self.progress.event("unit", cell=runner.cell.name, unit=unit.name, images=images, seconds=seconds)
        if unit.arm == "free":
            self.progress.images(images)
        self._complete(runner)

    def _complete(self, runner: CellRunner) -> None:
        """Merge and score a cell whose units are all done, unless another process is at it or has done so."""
        cell = runner.cell
        if not runner.is_sampled():
            return
        with self.claims.cell(cell.name) as mine:
            if mine and self.store.is_open(cell):
                if self.reference.extractor is not None and not self._knows_reference:
                    with self.claims.setup():  # processes take turns: one extracts the features and the others read
                        self.reference.features()
                    self._knows_reference = True
                runner.complete()
                self._tell(cell)

    def complete(self) -> None:
        """Complete what no process found complete, as where a file system shows the files of others late."""
        for cell in self.cells:
            if cell.name not in self.failures and self.store.is_open(cell):
                self._try(cell.name, partial(self._complete, self._runner_of(cell)))

    def rescore(self) -> None:
        """Score complete cells anew that have other features than those wanted, or lost their scores."""
        for number in self.team.take("scores", len(self.cells)):
            cell = self.cells[number]
            if not is_sampled(self.store, cell) or is_scored(self.store, cell, self.reference.key()):
                continue
            found = self.store.metrics(cell) or {}
            facts: dict[str, Any] = {name: found[name] for name in ("network_calls", "seconds", "nfe") if name in found}
            self.progress.begin(f"{cell.name} (scores)")
            score_cell(cell, self.reference, self.store, facts)
            self._tell(cell)

    def _tell(self, cell: Cell) -> None:
        scores = (self.store.metrics(cell) or {}).get("scores", [])
        values = {score["metric"]: score["value"] for score in scores if score["value"] is not None}
        self.progress.event("cell", cell=cell.name, scores=values)
        self.progress.cell()

    def _measure(self, extra: Extra) -> None:
        extra.compute(self.context, self.run.out)
        self.progress.event("measurement", name=extra.name)

    def _try(self, name: str, work: Callable[[], object]) -> None:
        """Do some work of a cell or measurement; values that are not finite end it and nothing else."""
        try:
            work()
        except RunError as error:
            self.failures[name] = str(error)
            for cell in self.cells:
                if cell.name == name:  # with mended weights or constants it is another cell, and must not be refused
                    self.store.close(cell)
            self.progress.event("failed", name=name, why=str(error))

    def _runner_of(self, cell: Cell) -> CellRunner:
        """Return the runner of a cell; units come cell by cell, so that one is kept."""
        if self._runner is None or self._runner.cell is not cell:
            self._runner = CellRunner(cell, self.context, self.store)
        return self._runner
