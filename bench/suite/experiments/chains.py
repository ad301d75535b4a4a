"""Chains x_0 -> x_t -> x_0': real training images noised to several levels and sampled back to the clean one.

Beside them are their baselines, once for each schedule and seed: real images, and exact samplers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.data import Dataset, coloured, quantize, to_unit
from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.samplers import Draws, paired, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import Solver
from bench.diffusion.types import Level
from bench.measure.instruments.chains import (
    ChainRow,
    empirical_errors,
    error_summary,
    gaussian_chain_errors,
    gaussian_errors,
    image_errors,
    to_table,
)
from bench.measure.quality.scores import frechet_score
from bench.runtime.errors import UserError
from bench.suite.cells.walks import RunError, WalkContext
from bench.suite.experiments.experiment import Extra, RecordFolder
from bench.suite.plan import Cell
from bench.suite.registry.model import Model
from bench.suite.settings import ConfigError, SamplerConfig

VERSION = 1  # of the records of chains and of their baselines: raise when their meaning changes
METHODS = ("mean", "ddim", "ancestral")
LENGTHS = (100, 300, 600, 900, 1000)  # of 1000 training steps: those of Ning et al. 2023, figure 5, and the whole
_PICTURES = 8
_CELL_SETTINGS = (  # those of a cell's description that determine a chain
    "model", "weights", "eps_scale", "eps_slope", "remedies", "variance", "clip", "quantize", "precision",
)  # fmt: skip
_DATA = "data"  # what the column 'model' says where no network was asked
_CLAMPED = "float images clamped to [-1, 1]"


def chain_lengths(T: int) -> tuple[int, ...]:
    """Return the chain lengths for a training process of T steps: the same shares of it, at least 1, ascending."""
    return tuple(sorted({max(1, round(length * T / 1000)) for length in LENGTHS}))


@dataclass(frozen=True)
class Chain(Extra):
    """One model, method, chain length and seed.

    Attributes:
        cell: the whole training process of the model, with the method's settings; its samples are the images.
        method: ``mean`` (the papers' chain, :class:`bench.diffusion.solvers.PosteriorMean`), ``ddim`` (eta 0) or
            ``ancestral``.
        length: L, network calls an image; the start is training index L - 1 (the papers' t = L).
    """

    cell: Cell
    method: str
    length: int
    measure = "chains"

    @property
    def name(self) -> str:
        """Return the record's folder name."""
        return f"{self.cell.model.name}-{self.method}-{self.length}-seed{self.cell.seed}"

    @property
    def line(self) -> str:
        """Return what a plan calls it with all lengths and seeds."""
        return f"{self.method} chains of {self.cell.model.name}"

    def cost(self) -> int:
        """Return its network calls."""
        return self.cell.samples * self.length

    def folders(self, root: Path) -> Sequence[RecordFolder]:
        """Return its one folder."""
        return [RecordFolder(root / "chains" / self.name, "chain", self.description())]

    def description(self) -> dict[str, object]:
        """Return everything that determines the numbers, and whose they are."""
        cell = self.cell.description()
        chain = {"method": self.method, "start": self.length, "seed": self.cell.seed, "n": self.cell.samples}
        shared = {**{name: cell[name] for name in _CELL_SETTINGS if name in cell}, **self.cell.model.identity()}
        return {"version": VERSION, **shared, **chain, "data": cell["data"]}

    def levels(self) -> tuple[Level, ...]:
        """Return the walk's levels: the last L of the training process and the clean one."""
        return self.cell.levels()[-(self.length + 1) :]

    def solver(self) -> Solver:
        """Return the method's update rule."""
        return self.cell.solver()

    def compute(self, context: WalkContext, root: Path) -> None:
        """Walk every image there and back, and write the record."""
        started = time.perf_counter()
        x0, x = (torch.cat(parts) for parts in zip(*self._walk(context), strict=True))
        if not torch.isfinite(x).all():
            raise RunError(
                f"model {self.cell.model.name!r}, {self.method} chain of {self.length} steps, seed {self.cell.seed},"
                " gave values that are not finite; check the weights, or the scaling constants"
            )
        x = x.clamp(-1, 1)
        pixels = quantize(x, self.cell.config.quantize)
        sources = _sources(context.data)
        rows = [self._row(*error, sources, _CLAMPED) for error in error_summary(image_errors(x, x0).numpy())]
        table = to_table([*rows, self._frechet(pixels, context)])
        shown = {"original": quantize(x0[:_PICTURES]), "reconstruction": pixels[:_PICTURES]}
        pictures = {name: coloured(images.movedim(1, -1).numpy()) for name, images in shown.items()}
        seconds = time.perf_counter() - started
        facts = {"features": context.reference.features_key(), "network_calls": self.cost(), "seconds": seconds}
        self.folders(root)[0].write(table, {"pictures": pictures}, facts)

    def _walk(self, context: WalkContext) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x_0, x_0') of each batch on the host; image k has the noise of sample k, whatever the method."""
        denoiser, path = context.denoiser(self.cell.model), self.levels()
        solver, clip, correction = self.solver(), self.cell.config.clip, self.cell.correction()
        for numbers, valid in context.batches(0, self.cell.samples, self.cell.samples):
            x0 = context.images("train", numbers)
            draws = Draws(Noise(self.cell.seed), numbers)
            x = paired(path[0], draws, x0)
            for step in walk(denoiser, path, x, solver, draws, clip=clip, correction=correction):
                x = step.x_next
                context.progress(valid)
            yield x0[:valid].cpu(), x[:valid].cpu()

    def _row(self, quantity: str, value: float | None, std: float | None, reference: str, note: str) -> ChainRow:
        cell = self.cell
        return ChainRow(
            model=cell.model.name, method=self.method, start=self.length, t=self.length - 1,
            seed=cell.seed, n=cell.samples,
            quantity=quantity, value=value, std=std, reference=reference, note=note,
        )  # fmt: skip

    def _frechet(self, pixels: Tensor, context: WalkContext) -> ChainRow:
        reference, extractor = context.reference, context.reference.extractor
        if extractor is None:
            return self._row("frechet", None, None, reference.name, "the run has no features")
        features = extractor.extract(pixels)[0]
        score = frechet_score(extractor.metrics["frechet"], features, reference.features().moments, reference.name)
        return self._row(score.metric, score.value, None, score.reference, score.reason)


@dataclass(frozen=True)
class ChainBaselines(Extra):
    """The rows of chains that no model makes.

    ``real``: Frechet distances of the source images and of as many real images that were not. ``exact-empirical``: an
    exact sampler of the training images. ``exact-gaussian``, ``exact-gaussian-mean`` and ``exact-gaussian-ddim``: an
    exact sampler of the Gaussian with the data's mean and covariance, and an exact denoiser's chains.

    Attributes:
        schedule, T, seed: of the chains.
        n: source images, the first ones of the training part.
        lengths: chain lengths L.
        data_hash: of the data.
    """

    schedule: str
    T: int
    seed: int
    n: int
    lengths: tuple[int, ...]
    data_hash: str
    measure = "chains"

    @property
    def name(self) -> str:
        """Return the record's folder name, which no chain can have: no method is called like a schedule."""
        return f"{_DATA}-{self.schedule}-{self.T}-seed{self.seed}"

    @property
    def line(self) -> str:
        """Return what a plan calls it with all seeds."""
        return f"baselines of {self.schedule} chains"

    def folders(self, root: Path) -> Sequence[RecordFolder]:
        """Return its one folder."""
        description = {
            "version": VERSION,
            "schedule": self.schedule,
            "T": self.T,
            "seed": self.seed,
            "n": self.n,
            "starts": list(self.lengths),
            "data": self.data_hash,
        }
        return [RecordFolder(root / "chains" / self.name, "chain", description)]

    def compute(self, context: WalkContext, root: Path) -> None:
        """Compute every row and write the record."""
        started = time.perf_counter()
        rows = [*self._real(context), *self._empirical(context), *self._gaussian(context)]
        seconds = time.perf_counter() - started
        facts = {"features": context.reference.features_key(), "network_calls": 0, "seconds": seconds}
        self.folders(root)[0].write(to_table(rows), {}, facts)

    def _real(self, context: WalkContext) -> Iterator[ChainRow]:
        extractor, reference = context.reference.extractor, context.reference
        row = partial(self._row, "real", reference=reference.name, n=self.n)
        if extractor is None:
            yield row("frechet", None, note="the run has no features")
            return
        metric, moments = extractor.metrics["frechet"], reference.features().moments
        images = reference.data.part("train")[: self.n]
        sources = frechet_score(metric, extractor.extract(images)[0], moments, reference.name)
        yield row(metric, sources.value, note=sources.reason or "the source images themselves")
        others, which = self._others(context)
        if others is None:
            yield row(metric, None, note=which)
            return
        score = frechet_score(metric, extractor.extract(others)[0], moments, reference.name)
        yield row(metric, score.value, note=score.reason or which)

    def _others(self, context: WalkContext) -> tuple[Tensor | None, str]:
        """Return n real images that are no sources, uint8, and what they are; or None and why not."""
        train, heldout = (context.reference.data.part(part) for part in ("train", "heldout"))
        if len(heldout) >= self.n:
            return heldout[: self.n], "held-out images"
        if len(train) >= 2 * self.n:
            return train[self.n : 2 * self.n], "training images that were no sources"
        return None, f"neither {self.n} held-out images nor as many training images that were no sources"

    def _levels(self, length: int) -> tuple[Level, ...]:
        return levels(self.schedule, self.T, str(self.T))[-(length + 1) :]

    def _row(
        self, method: str, quantity: str, value: float | None, *,
        reference: str, note: str, length: int | None = None, n: int | None = None, std: float | None = None,
    ) -> ChainRow:  # fmt: skip
        t = None if length is None else length - 1
        return ChainRow(
            model=_DATA, method=method, start=length, t=t, seed=self.seed, n=n,
            quantity=quantity, value=value, std=std, reference=reference, note=note,
        )  # fmt: skip

    def _empirical(self, context: WalkContext) -> Iterator[ChainRow]:
        """Yield the exact sampler of the training images, from the very states that the chains start at."""
        data = context.reference.data
        images = to_unit(data.part("train")).to(context.device)
        numbers = torch.arange(self.n, device=context.device)
        noise = Noise(self.seed).normal(numbers, Purpose.START, 0, data.shape)
        starts = [self._levels(length)[0] for length in self.lengths]
        note = "x_0' ~ q(x_0 | x_t) over the training images, expected"
        for length, errors in zip(self.lengths, empirical_errors(images[: self.n], noise, images, starts), strict=True):
            row = partial(self._row, "exact-empirical", length=length, n=self.n, reference=_sources(data), note=note)
            for quantity, value, std in error_summary(errors):
                yield row(quantity, value, std=std)

    def _gaussian(self, context: WalkContext) -> Iterator[ChainRow]:
        oracle, reference = context.reference.gaussian(self.schedule, self.T), _sources(context.data)
        if oracle is None:
            return
        note = "Gaussian data of the same mean and covariance, not clamped"
        for length in self.lengths:
            path = self._levels(length)
            errors = {"exact-gaussian": gaussian_errors(oracle, path[0])}
            errors |= {f"exact-gaussian-{way}": gaussian_chain_errors(oracle, path, way) for way in ("mean", "ddim")}
            for method, values in errors.items():
                for quantity, value in zip(("l1", "rmse"), values, strict=True):
                    yield self._row(method, quantity, value, length=length, reference=reference, note=note)


def _sources(data: Dataset) -> str:
    return f"source images ({data.name}-train)"


def _settings(model: Model, config: SamplerConfig, method: str) -> SamplerConfig:
    """Return a method's sampler settings: the run's, where it has them.

    A remedy's constants belong to a sampler; the mean chain takes DDPM's, whose mean it follows.

    Raises:
        ConfigError: a remedy of the model does not work with the method's sampler, or has no constants for it.
    """
    sampler = "ddim" if method == "ddim" else "ddpm"
    model.refuse(sampler, f", and its {method} chains need it (leave chains out of --measure)")
    trained = "learned" if model.description.learns_variance else "fixed-large"
    variance = config.variance or trained if method == "ancestral" else None
    return replace(config, sampler=sampler, spacing="plain", eta=0.0, variance=variance)


def plan_chains(cells: Sequence[Cell]) -> list[Extra]:
    """Return the chains of every model and seed of a run's cells, and the baselines they are read against.

    Raises:
        ConfigError: a model's remedies do not reach over its whole training process.
    """
    chains: list[Extra] = []
    baselines: dict[tuple[str, int, int], Extra] = {}
    for cell in {(cell.model.name, cell.seed): cell for cell in cells}.values():
        model, seed = cell.model, cell.seed
        n, T = min(cell.samples, cell.parts[0]), model.description.T
        for method in METHODS:
            config = _settings(model, cell.config, method)
            whole = replace(cell, config=config, steps=T, samples=n, measure=())
            try:
                whole.correction()
            except (UserError, ValueError) as error:
                raise ConfigError(
                    f"model {model.name!r}: {error}, over the {T} steps of its chains; leave chains out of --measure"
                ) from None
            chains += [Chain(whole, method, length) for length in chain_lengths(T)]
        key = (model.description.schedule, T, seed)
        baselines[key] = ChainBaselines(*key, n, chain_lengths(T), cell.data_hash)
    return [*baselines.values(), *chains]
