"""The baselines of chains, once for each schedule and seed: real images, and exact samplers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.data import Dataset, to_unit
from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.schedules import levels
from bench.diffusion.types import Level
from bench.measure.instruments.chains import (
    ChainRow,
    empirical_errors,
    error_summary,
    gaussian_chain_errors,
    gaussian_errors,
    to_table,
)
from bench.measure.quality.scores import frechet_score
from bench.suite.cells.walks import WalkContext
from bench.suite.experiments.experiment import Extra, RecordFolder

VERSION = 1  # of the records of chains and of their baselines: raise when their meaning changes
Error = tuple[str, float | None, float | None]  # quantity, mean over images, standard deviation
_MODEL = "data"  # what the column 'model' says where no network was asked


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
        return f"{_MODEL}-{self.schedule}-{self.T}-seed{self.seed}"

    @property
    def line(self) -> str:
        """Return what a plan calls it with all seeds."""
        return f"baselines of {self.schedule} chains"

    def cost(self) -> int:
        """Return its network calls: none."""
        return 0

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
            model=_MODEL, method=method, start=length, t=t, seed=self.seed, n=n,
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
