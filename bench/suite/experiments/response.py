"""The response of every network to states of mismatched noise, at the step counts of the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.schedules import levels
from bench.diffusion.types import Level
from bench.measure.instruments.moments import Moments
from bench.measure.instruments.response import RESPONSE_COLUMNS, ResponseRow, response_grid, response_norms
from bench.suite.cells.walks import RunError, WalkContext
from bench.suite.experiments.experiment import Extra, RecordFolder
from bench.suite.plan import Cell, recorded_indices
from bench.suite.settings import short_hash

VERSION = 1  # of the record: raise when its meaning changes
_IMAGES = 128


@dataclass(frozen=True, eq=False)
class Response(Extra):
    """One network at one step count, for every model that has this network: corrections play no part.

    Attributes:
        cells: one cell of each model, of the run's first seed.
    """

    cells: tuple[Cell, ...]
    measure = "response"

    @property
    def cell(self) -> Cell:
        """Return the cell whose network is asked."""
        return self.cells[0]

    @property
    def name(self) -> str:
        """Return what plans and the progress bar call it."""
        return f"response of {', '.join(cell.model.name for cell in self.cells)} at {self.cell.steps} steps"

    @property
    def part(self) -> tuple[str, int]:
        """Return which images are shown, and how many: held-out ones where there are any."""
        train, heldout = self.cell.parts
        return ("heldout", min(_IMAGES, heldout)) if heldout else ("train", min(_IMAGES, train))

    @cached_property
    def pairs(self) -> list[tuple[Level, Level]]:
        """Return the (conditioning, true) levels: those whose errors a cell keeps, each with its grid of states."""
        model, visited = self.cell.model.description, self.cell.levels()
        every = levels(model.schedule, model.T, str(model.T))
        asked = [visited[self.cell.steps - 1 - i] for i in recorded_indices(self.cell.steps)[1]]
        return [(s, every[model.T - 1 - t]) for s in asked for t in response_grid(int(s.t), model.T)]

    def cost(self) -> int:
        """Return its network calls."""
        return len(self.pairs) * self.part[1]

    def folders(self, root: Path) -> Sequence[RecordFolder]:
        """Return a folder for each model."""
        return [
            RecordFolder(
                root / "response" / f"{cell.model.name}-{cell.steps}", "response", self.description(cell.model.name)
            )
            for cell in self.cells
        ]

    def description(self, model: str) -> dict[str, object]:
        """Return everything that determines the numbers, and whose they are."""
        settings = ("weights", "spacing", "steps", "seed", "data", "precision")
        cell = self.cell.description()
        part, n = self.part
        what = {**{name: cell[name] for name in settings if name in cell}, **self.cell.model.identity()}
        return {"version": VERSION, "model": model, **what, "part": part, "n": n}

    def compute(self, context: WalkContext, root: Path) -> None:
        """Ask the network, unless another model of it was asked before, and write every model's record."""
        folders = self.folders(root)
        earlier = next((folder for folder in folders if folder.complete_facts()), None)
        started = time.perf_counter()
        table = earlier.table() if earlier else self._table(context)
        facts = earlier.complete_facts() if earlier else None
        seconds = facts["seconds"] if facts else time.perf_counter() - started
        account = {"network_calls": self.cost(), "seconds": seconds, "models": [cell.model.name for cell in self.cells]}
        for cell, folder in zip(self.cells, folders, strict=True):
            if folder.complete_facts() is None:
                folder.write(table.assign(model=cell.model.name), {}, account)

    def _table(self, context: WalkContext) -> pd.DataFrame:
        denoiser, noise = context.denoiser(self.cell.model), Noise(self.cell.seed)
        part, n = self.part
        moments = Moments(len(self.pairs), (), context.device)
        for numbers, valid in context.batches(0, n, n):
            x0 = context.images(part, numbers)
            unit = noise.normal(numbers, Purpose.RESPONSE, 0, x0.shape[1:])
            response_norms(denoiser, self.pairs, x0, unit, moments, valid, context.progress)
        state = moments.state()
        if not np.isfinite(state["second"]).all():
            raise RunError(
                f"model {self.cell.model.name!r} at {self.cell.steps} steps, seed {self.cell.seed}, responds with"
                " values that are not finite; check the weights"
            )
        spread = np.sqrt(Moments.variance(state))
        rows = [
            ResponseRow(self.cell.model.name, self.cell.steps, int(asked.t), int(true.t), n, part, norm, std, energy)
            for (asked, true), norm, std, energy in zip(
                self.pairs, state["mean"].tolist(), spread.tolist(), state["second"].tolist(), strict=True
            )
        ]
        return pd.DataFrame([astuple(row) for row in rows], columns=list(RESPONSE_COLUMNS))


def plan_response(cells: Sequence[Cell]) -> list[Response]:
    """Return one measurement for each distinct network and step count of a run's cells."""
    groups: dict[tuple[str, str, int], dict[str, Cell]] = {}
    for cell in cells:
        network = short_hash(cell.model.identity())
        group = groups.setdefault((cell.weights_hash, network, cell.steps), {})
        group.setdefault(cell.model.name, cell)  # the first seed's
    return [Response(tuple(group.values())) for group in groups.values()]
