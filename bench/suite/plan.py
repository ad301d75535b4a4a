"""The plan: which cells a run has, what each costs in network calls, and how each is cut into units of work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise, product

from bench.data import Dataset
from bench.diffusion.corrections import Correction, InOrder
from bench.diffusion.schedules import edm_grid, edm_levels, flow_grid, flow_levels, levels
from bench.diffusion.solvers import (
    DDIM,
    Ancestral,
    Churn,
    DPMSolverPP2M,
    Euler,
    FlowSDE,
    Heun,
    PosteriorMean,
    Solver,
    UniPC,
)
from bench.diffusion.types import Level
from bench.measure.instruments.probes import spread_indices
from bench.measure.instruments.step_table import call_levels
from bench.runtime.errors import UserError
from bench.suite.registry.model import Model
from bench.suite.registry.remedies import Walk
from bench.suite.settings import MULTISTEP_SAMPLERS, ConfigError, SamplerConfig, samplers_of, short_hash

RECORD_VERSION = 2  # raise when the meaning of a record changes: older cells are then recomputed
SHARD = 128  # images in a unit of work, unless a batch is larger: the most an interruption can cost
_LEVELS = 100  # most levels with per-pixel records and teacher forcing
_ERROR_LEVELS = 20
_ERROR_IMAGES = 100
_FEWEST = 64  # teacher-forced images, where that many samples are drawn
_SHARE = 0.15  # of the samples' network calls, for teacher forcing
_LEAST_SIGNAL = 1e-3  # the alpha of a start below which an unclipped x0_hat is mostly the network's error
_REMEMBERS = 1e-3  # a start level with at least this alpha / sigma keeps a trace of x0


@dataclass(frozen=True)
class Unit:
    """A range of images of one arm: ``free``, ``forced``, ``errors`` (more images, error levels only) or ``paired``."""

    arm: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Return the folder name of the unit's shard."""
        return f"shard-{self.arm}-{self.start:08d}-{self.stop:08d}"


@dataclass(frozen=True)
class Instruments:
    """What the instruments of a cell look at besides its samples.

    ``indices`` are the solver indices with per-pixel records, which are also those of teacher forcing;
    ``error_indices`` those whose single errors are kept. Counts are images by part; ``paired`` is 0 where a start
    from noise cannot be told from a paired one. Without the measurement ``steps`` there are no ``indices`` and no
    images but those of ``normality``, and without that no ``error_indices``.
    """

    indices: tuple[int, ...] = ()
    error_indices: tuple[int, ...] = ()
    train: int = 0
    heldout: int = 0
    error_train: int = 0
    error_heldout: int = 0
    paired: int = 0


@dataclass(frozen=True)
class Cell:
    """One model, step count and seed: the unit of caching."""

    model: Model
    config: SamplerConfig
    steps: int
    seed: int
    samples: int
    measure: tuple[str, ...]  # of IN_CELLS
    data_hash: str
    parts: tuple[int, int]  # how many training and held-out images there are
    weights_hash: str
    labels_hash: str = ""  # of the images, for class-conditional models

    @property
    def name(self) -> str:
        """Return the cell's folder name."""
        return f"{self.model.name}-{self.config.sampler}-{self.steps}-seed{self.seed}"

    def description(self) -> dict[str, object]:
        """Return everything that determines the cell's numbers, and nothing else."""
        return {
            "version": RECORD_VERSION,
            "model": self.model.name,
            "weights": self.weights_hash,
            **self.model.identity(),
            **self.model.intervention(self.config.sampler, self.steps),
            **({"labels": self.labels_hash} if self.labels_hash else {}),
            **self.config.description(),
            "steps": self.steps,
            "seed": self.seed,
            "samples": self.samples,
            "measure": list(self.measure),
            "data": self.data_hash,
        }

    def key(self) -> str:
        """Return the cache key."""
        return short_hash(self.description())

    def levels(self) -> tuple[Level, ...]:
        """Return the walk's levels, noisiest first, ending in the clean one."""
        model = self.model.description
        if model.is_edm:
            known = self.model.preconditioning()
            return edm_levels(self.steps, known.sigma_min, known.sigma_max, known.rounded)
        if model.is_flow:
            return flow_levels(model.schedule, self.steps)
        return levels(model.schedule, model.T, self.config.respacing(self.steps))

    def solver(self) -> Solver:
        """Return the update rule."""
        config, churn = self.config, None
        if config.churn:
            most, rounded = math.inf if config.s_max is None else config.s_max, self.model.preconditioning().rounded
            churn = Churn(config.churn, self.steps, config.s_min, most, config.s_noise, rounded)
        straight = self.model.description.is_flow
        make: dict[str, Callable[[], Solver]] = {
            "ddpm": lambda: Ancestral(config.variance) if config.variance else PosteriorMean(),
            "ddim": lambda: DDIM(config.eta),
            "euler": lambda: Euler(churn, straight),
            "heun": lambda: Heun(churn, straight),
            "sde": FlowSDE,
            "dpmpp-2m": DPMSolverPP2M,
            "unipc": UniPC,
        }
        return make[config.sampler]()

    def calls(self) -> dict[tuple[int, int], Level]:
        """Return the level of each network call by (solver index, stage)."""
        return call_levels(self.levels(), self.solver())

    @property
    def remembers_class(self) -> bool:
        """Tell whether a paired walk shares the class of its x0."""
        return bool(self.model.description.classes)

    def grid(self) -> tuple[Level, ...]:
        """Return every level the network knows, noisiest first; of a continuum, a thousand."""
        model = self.model.description
        if model.is_flow:
            return flow_grid()
        if not model.is_edm:
            return levels(model.schedule, model.T, model.T)[:-1]
        known = self.model.preconditioning()
        return edm_grid(known.sigma_min, known.sigma_max, known.rounded)

    def correction(self) -> Correction | None:
        """Return the model's remedies in their order, None where it has none.

        Raises:
            ValueError: a constant that a correction cannot take.
        """
        if not self.model.remedies:
            return None
        walk = Walk(self.levels(), self.grid(), self.config.clip)
        sampler, solver = self.config.sampler, self.solver()
        draws = any(solver.is_random(after) or solver.churned(level)[1] for level, after in pairwise(walk.levels))
        made = [remedy.correction(walk, sampler, self.steps) for remedy in self.model.remedies]
        for remedy, correction in zip(self.model.remedies, made, strict=True):
            if correction.scales_noise and not draws:
                flag = {"ddim": "; give --eta", "euler": "; give --churn", "heun": "; give --churn"}
                advice = flag.get(sampler, "") if not self.model.description.is_flow else "; use --sampler sde"
                raise ValueError(f"{remedy.kind} scales noise, and this walk draws none{advice}")
            if correction.moves and sampler in MULTISTEP_SAMPLERS:
                others = [name for name in samplers_of(self.model.description.frame) if name not in MULTISTEP_SAMPLERS]
                raise ValueError(
                    f"{remedy.kind} moves states, and --sampler {sampler} goes on from its own; use"
                    f" {' or '.join(others)}"
                )
        return made[0] if len(made) == 1 else InOrder(made)

    @cached_property
    def instruments(self) -> Instruments:
        """Return what the instruments look at: nothing where nothing is measured."""
        indices, errors = recorded_indices(self.steps)
        kept = (tuple(errors), *self._split(_ERROR_IMAGES)) if "normality" in self.measure else ((), 0, 0)
        if "steps" not in self.measure:
            return Instruments(error_indices=kept[0], error_train=kept[1], error_heldout=kept[2])
        wanted = min(self.samples, max(_FEWEST, round(_SHARE * self.samples * self.steps / len(indices))))
        train, heldout = self._split(wanted)
        start = self.levels()[0]
        remembers = start.alpha / start.sigma > _REMEMBERS
        paired = min(self.samples, max(_FEWEST, round(_SHARE * self.samples)), self.parts[0]) if remembers else 0
        return Instruments(tuple(indices), kept[0], train, heldout, kept[1], kept[2], paired)

    def _split(self, images: int) -> tuple[int, int]:
        """Share images between the training and the held-out part, evenly as far as they go."""
        heldout = min(images // 2, self.parts[1])
        return min(images - heldout, self.parts[0]), heldout

    def units(self, batch: int) -> Iterator[Unit]:
        """Yield the units of work in merging order."""
        size = batch * -(-SHARD // batch)  # whole batches, so that only the last is padded
        look = self.instruments
        yield from _ranges("free", self.samples, size)
        yield from _ranges("forced", look.train + look.heldout, size)
        # Images that must be visited for their errors alone.
        extra = max(0, look.error_train - look.train) + max(0, look.error_heldout - look.heldout)
        if extra:
            yield Unit("errors", 0, extra)
        yield from _ranges("paired", look.paired, size)

    def unit_cost(self, unit: Unit) -> int:
        """Return a unit's network calls (one call is one image at one level)."""
        some = {"forced": self.instruments.indices, "errors": self.instruments.error_indices}
        return (unit.stop - unit.start) * sum(self._calls[i] for i in some.get(unit.arm, range(self.steps)))

    @cached_property
    def _calls(self) -> list[int]:
        """Return the network calls of each solver step by its index."""
        path, solver, calls = self.levels()[::-1], self.solver(), list[int]()  # path[i + 1] is the level of step i
        calls_at = partial(self.model.network_calls, sampler=self.config.sampler, steps=self.steps)
        for level_next, level in pairwise(path):
            count = calls_at(solver.churned(level)[0])
            # A step with a correction asks twice, but for the last one, into the clean level.
            corrects = solver.stages == 2 and not level_next.is_clean
            calls.append(count + (calls_at(level_next) if corrects else 0))
        return calls

    def cost(self) -> tuple[int, int]:
        """Return the network calls of (the samples, the instruments)."""
        costs = [(unit.arm == "free", self.unit_cost(unit)) for unit in self.units(SHARD)]
        return sum(c for free, c in costs if free), sum(c for free, c in costs if not free)


def recorded_indices(steps: int) -> tuple[list[int], list[int]]:
    """Return the solver indices with records of their own, ascending, and those of them whose errors are kept."""
    indices = spread_indices(steps, _LEVELS)
    return indices, [indices[position] for position in spread_indices(len(indices), _ERROR_LEVELS)]


def _ranges(arm: str, count: int, size: int) -> Iterator[Unit]:
    for start in range(0, count, size):
        yield Unit(arm, start, min(start + size, count))


def start_warning(cells: Sequence[Cell]) -> str | None:
    """Return one line about the first cell whose first step divides by next to no signal, None where none does.

    From a predicted noise, x0_hat = (x - sigma eps) / alpha: without clipping it holds the network's error 1 / alpha
    times, and so does the whole walk.
    """
    for cell in cells:
        alpha = cell.levels()[0].alpha
        if cell.config.clip or cell.model.description.prediction != "eps" or alpha >= _LEAST_SIGNAL:
            continue
        try:
            strided = replace(cell, config=replace(cell.config, spacing="ddim")).levels()[0].alpha
        except ValueError:  # no whole stride
            strided = 0.0
        return (
            f"model {cell.model.name!r} at {cell.steps} steps starts at alpha = {alpha:.1g}: unclipped, the errors of"
            f" its first x0_hat are multiplied by {1 / alpha:,.0f}; use --clip"
            + (" or --spacing ddim" if strided >= _LEAST_SIGNAL else "")
        )
    return None


def plan_cells(
    models: tuple[Model, ...],
    config: SamplerConfig,
    steps: tuple[int, ...],
    seeds: tuple[int, ...],
    samples: int,
    measure: tuple[str, ...],
    data: Dataset,
) -> list[Cell]:
    """Return every cell of the grid, checked: each can be built before the first network call.

    Raises:
        ConfigError: a step count the model or spacing cannot do, or a remedy with impossible constants.
    """
    parts = (len(data.part("train")), len(data.part("heldout")))
    data_hash = data.content_hash()
    cells = []
    for model in models:
        weights_hash, labels = model.weights_hash, data.labels_hash() if model.description.classes else ""
        for count, seed in product(steps, seeds):
            cell = Cell(model, config, count, seed, samples, measure, data_hash, parts, weights_hash, labels)
            try:
                cell.correction() or cell.levels()
            except (UserError, ValueError, ArithmeticError) as error:  # constants beyond what floats hold
                raise ConfigError(f"model {model.name!r}: {error}") from None
            cells.append(cell)
    return cells
