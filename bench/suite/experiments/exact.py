"""Floors: what exact denoisers of three stand-ins for the data do on the levels of a run's cells.

One record serves every model and seed of one schedule, sampler and step count. Arms ``gaussian...`` are closed forms,
``mixture...`` and ``empirical...`` are walks of exact denoisers, measured as a network's are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from bench.data import Dataset, to_unit
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, teacher_forced, walk
from bench.diffusion.schedules import alpha_bars
from bench.measure.instruments.exact_denoisers import ClassMixture, ExactDenoiser, FiniteSet
from bench.measure.instruments.floors import GaussianFloors, band_energies
from bench.measure.instruments.gaussian import LARGEST
from bench.measure.instruments.probes import WalkProbe
from bench.measure.instruments.step_table import Row, to_table
from bench.suite.cells.reference import Reference
from bench.suite.cells.walks import WalkContext
from bench.suite.experiments.experiment import Extra, RecordFolder
from bench.suite.plan import Cell

VERSION = 1  # of the record: raise when its meaning changes
_SEED = 0
_MANY, _FEW = 1024, 256  # images walked: many at up to 20 steps, fewer beyond, few where the data are large
_WORK = 20 * _MANY  # images times steps
_BATCH = 256
_LARGE = 2**24  # values of all training images that are large data: at most _STEPS steps are walked
_STEPS = 100
_TIMED_STEPS = 3  # of a measurement of what a step takes
_BANDS = ("spectrum_state", "spectrum_x0", "haar_state", "haar_x0")


@dataclass
class _Arms:
    """What was computed: rows, mean band energies, and for each law the reason why some of it is missing."""

    rows: list[Row] = field(default_factory=list)
    spectra: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Return the columns of ``steps.csv`` and ``note``; a reason has a row of its law's arm without a quantity."""
        empty = pd.DataFrame([{"arm": law, "note": note} for law, note in self.notes.items()])
        return pd.concat([to_table(self.rows).assign(note=""), empty], ignore_index=True)


@dataclass(frozen=True, eq=False)
class ExactSamplers(Extra):
    """The exact samplers on one cell's levels with its solver.

    Attributes:
        cell: a cell that has these levels; its model and seed play no part.
        paired: whether to walk from noised data too.
    """

    cell: Cell
    paired: bool
    measure = "steps"

    @property
    def name(self) -> str:
        """Return what the progress bar calls it."""
        return f"exact samplers of {self.folder_name}"

    @property
    def folder_name(self) -> str:
        """Return the record's folder name: schedule, T, for EDM the network, sampler and steps."""
        about = self.cell.model.description
        network = f"-{self.cell.model.identity()['network']}" if about.is_edm else ""
        return f"{about.schedule}-{about.T}{network}-{self.cell.config.sampler}-{self.cell.steps}"

    @property
    def line(self) -> str:
        """Return what a plan calls all of them."""
        return "exact samplers"

    def folders(self, root: Path) -> Sequence[RecordFolder]:
        """Return its one folder."""
        return [RecordFolder(root / "exact" / self.folder_name, "exact", self.description())]

    def description(self) -> dict[str, object]:
        """Return everything that determines the numbers; names and values are those of a cell's description."""
        cell = self.cell.description()
        churn = ("churn", "s_min", "s_max", "s_noise")
        names = ("schedule", "T", "sampler", "spacing", "eta", "variance", *churn, "steps", "data")
        network = {"network": cell["network"]} if self.cell.model.description.is_edm else {}
        return {"version": VERSION, **{name: cell[name] for name in names if name in cell}, **network}

    @property
    def indices(self) -> tuple[int, ...]:
        """Return the solver indices with records of their own."""
        return self.cell.instruments.indices

    def compute(self, context: WalkContext, root: Path) -> None:
        """Compute every arm and write the record."""
        started = time.perf_counter()
        arms = _Arms()
        self._add_gaussian(arms, context)
        self._add_walks(arms, context)
        facts = {"network_calls": 0, "seconds": time.perf_counter() - started}
        spectra = {"i": np.array(self.indices), **arms.spectra}
        self.folders(root)[0].write(arms.table(), {"spectra": spectra}, facts)

    def _add_gaussian(self, arms: _Arms, context: WalkContext) -> None:
        """Add the closed forms of Gaussian data with the data's mean and covariance."""
        about, reference = self.cell.model.description, context.reference
        law, learned = reference.gaussian(about.schedule, about.T), self.cell.config.variance == "learned"
        if law is None:
            arms.notes["gaussian"] = "no covariance of the data is at hand, or their images are too large"
            return
        if law.vectors is None:
            arms.notes["gaussian"] = "single pixels, spectra and a learned variance need the whole covariance"
            if learned:
                return
        energy = band_energies(reference.data.shape)
        floors = GaussianFloors(law, self.cell.levels(), self.indices, self.cell.solver(), self.paired, energy)
        if learned and not floors.follow:
            size = f"{len(law.mean)} values and {self.cell.steps} steps"
            arms.notes["gaussian"] = f"single pixels and spectra with a learned variance are too expensive for {size}"
        arms.rows += floors.rows
        arms.spectra |= floors.spectra()

    def _add_walks(self, arms: _Arms, context: WalkContext) -> None:
        """Add walks of the exact denoisers of the mixture and of the training images."""
        data, about = context.data, self.cell.model.description
        count = self.images(data)
        if not count:
            there = data.count("train")
            reason = f"more than {_STEPS} steps are too expensive" if there else "the training images are not at hand"
            arms.notes |= dict.fromkeys(("mixture", "empirical"), reason)
            return
        learned = alpha_bars(about.schedule, about.T) if self.cell.config.variance == "learned" else None
        laws = _exact_denoisers(context.reference, context.device)
        if "mixture" not in laws:
            arms.notes["mixture"] = "the images are too large, or have no classes of at least two images"
        for name, law in laws.items():
            self._add_walk(arms, name, law.trained_on(learned), count, context)

    def images(self, data: Dataset) -> int:
        """Return how many images each exact denoiser walks; 0 where that is too expensive or there are none to know."""
        count = data.count("train")
        large = count * math.prod(data.shape) > _LARGE
        if not count or (large and self.cell.steps > _STEPS):
            return 0
        return _FEW if large else min(max(_WORK // self.cell.steps, _FEW), _MANY)

    def steps(self) -> int:
        """Return the steps of an image, those of teacher forcing included."""
        return self.cell.steps + len(self.indices)

    def seconds_a_step(self, context: WalkContext) -> tuple[float, float]:
        """Return the seconds that a step takes here, by a walk of few steps: of closed forms, and of each walked image.

        An image's step is that of all exact denoisers together.
        """
        brief = replace(self, cell=replace(self.cell, steps=min(self.cell.steps, _TIMED_STEPS)))
        count = brief.images(context.data)
        about = self.cell.model.description
        context.reference.gaussian(about.schedule, about.T)  # once for all records, as are the walked laws
        if count:
            _exact_denoisers(context.reference, context.device)
        marks = [time.perf_counter()]
        for add in (brief._add_gaussian, brief._add_walks):
            add(_Arms(), context)
            marks.append(time.perf_counter())
        closed, walks = marks[1] - marks[0], marks[2] - marks[1]
        return closed / brief.steps(), walks / brief.steps() / max(count, 1)

    def _add_walk(self, arms: _Arms, name: str, law: ExactDenoiser, count: int, context: WalkContext) -> None:
        """Add an exact denoiser, free running and teacher forced."""
        path, solver, noise = self.cell.levels(), self.cell.solver(), Noise(_SEED)
        centre, data = context.reference.centre.float().to(context.device), context.reference.statistics
        probes = {
            arm: WalkProbe(self.cell.steps, self.indices, centre, arm != name, solver.stages)
            for arm in (name, f"{name}-forced")
        }
        x0 = law.sample(count, _SEED).to(context.device)
        for rows in torch.arange(count, device=context.device).split(_BATCH):
            draws = Draws(noise, rows)
            for step in walk(law, path, prior(path[0], draws, centre.shape), solver, draws, clip=False):
                probes[name].update(step)
            forced = teacher_forced(law, path, x0[rows], solver, draws, clip=False, indices=set(self.indices))
            for step in forced:
                probes[f"{name}-forced"].update(step)
        for arm, probe in probes.items():
            state = probe.state()
            arms.rows += WalkProbe.result(arm, state, self.indices, path, data, solver)
            arms.spectra |= {f"{arm}/{band}": state[f"{band}/mean"] for band in _BANDS}


@lru_cache(maxsize=1)
def _exact_denoisers(reference: Reference, device: torch.device) -> dict[str, ExactDenoiser]:
    """Return the stand-ins for a reference's training images, computed once for all records."""
    images, labels = to_unit(reference.data.part("train")).to(device), reference.data.part_labels("train")
    counts = labels.unique(return_counts=True)[1]
    laws: dict[str, ExactDenoiser] = {}
    if len(counts) > 1 and int(counts.min()) > 1 and math.prod(reference.data.shape) <= LARGEST:
        laws["mixture"] = ClassMixture(images, labels)
    return {**laws, "empirical": FiniteSet(images)}


def plan_exact(cells: Sequence[Cell]) -> list[ExactSamplers]:
    """Return one measurement for each distinct schedule, sampler and step count of a run's cells."""
    planned: dict[str, ExactSamplers] = {}
    for cell in cells:
        if not cell.instruments.indices:
            continue
        paired = cell.instruments.paired > 0 and not cell.model.description.classes
        record = ExactSamplers(cell, paired)
        key = record.name
        if key not in planned or (paired and not planned[key].paired):
            planned[key] = record
    return list(planned.values())
