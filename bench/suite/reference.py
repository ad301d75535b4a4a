"""What samples are compared with: statistics and features of the data a model was trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bench.data import Dataset, to_unit
from bench.diffusion.schedules import alpha_bars
from bench.measure.features import Extractor
from bench.measure.metrics import SCORES_VERSION, FeatureSet, Score, frechet_score
from bench.measure.recursion import LinearGaussian
from bench.measure.spectra import RadialBins, haar_energy
from bench.measure.steps import PixelStatistics, Row, gaussian_rows
from bench.suite.plan import Cell, Instruments

__all__ = ["Reference"]

_DRAWS = 10  # of exact samples, to tell a distance's spread
_DRAW_SEED = 0
_GAUSSIAN_PIXELS = 256  # the exact recursion multiplies D x D matrices at every step


class Reference:
    """What samples are compared with: the data's statistics and, on first use, their features."""

    def __init__(self, data: Dataset, extractor: Extractor | None) -> None:
        self.data, self.extractor = data, extractor
        self._features: FeatureSet | None = None
        self._exact_scores: dict[int, tuple[Score, Score]] = {}
        self._exact: dict[tuple[Any, ...], list[Row]] = {}
        pixels = to_unit(data.part("train")).double()
        self.centre = pixels.mean(0)
        self.statistics = PixelStatistics(self.centre.numpy(), pixels.var(0).numpy())
        self.spectrum = RadialBins(*data.shape[1:]).density(pixels.float()).double().mean(0).numpy()
        self.haar = haar_energy(pixels).mean(0).numpy()

    @property
    def name(self) -> str:
        """Return what tables call the reference."""
        part = "train" if self.data.heldout.any() else "all"
        return f"{self.data.name}-{part} ({len(self.data.part('train'))})"

    def key(self) -> str:
        """Return what the scores depend on besides the samples: the extractor, and which scores there are."""
        extractor = f"{self.extractor.name}-{self.extractor.weights_hash[:16]}" if self.extractor else "none"
        return f"{extractor}-scores{SCORES_VERSION}"

    def features(self) -> FeatureSet:
        """Return the features of the training part."""
        if self._features is None:
            assert self.extractor is not None  # scoring asks only where there is an extractor
            self._features = FeatureSet(*self.extractor.extract(self.data.part("train")))
        return self._features

    def exact_scores(self, n: int) -> tuple[Score, Score]:
        """Return the Frechet distance of n samples of an exact sampler, ``_exact``, and its spread, ``_exact_sd``.

        An exact sampler draws independent images of the data. Here they are drawn from the training part, with
        replacement and a fixed seed, so that classes are as uneven as chance makes them; mean and standard deviation
        over ten draws.

        Args:
            n: as many images as there are samples.
        """
        assert self.extractor is not None  # as for features
        if n not in self._exact_scores:
            pooled, rng = self.features().pooled, np.random.default_rng(_DRAW_SEED)
            name = self.extractor.metrics["frechet"]
            draws = [
                frechet_score(name, pooled[rng.integers(0, len(pooled), n)], pooled, self.name) for _ in range(_DRAWS)
            ]
            values = [draw.value for draw in draws if draw.value is not None]
            mean, spread = (float(np.mean(values)), float(np.std(values, ddof=1))) if values else (None, None)
            kept = replace(draws[0], metric=f"{name}_exact", value=mean)
            self._exact_scores[n] = kept, replace(kept, metric=f"{name}_exact_sd", value=spread)
        return self._exact_scores[n]

    def exact_rows(self, cell: Cell, look: Instruments) -> list[Row]:
        """Return what an exact denoiser of Gaussian data with this mean and covariance does on a cell's levels.

        Cells that share levels and variance share the answer; images too large for the recursion have none.
        """
        model = cell.model.description
        key = (model.schedule, model.T, cell.levels(), look.indices, cell.solver(), look.paired > 0)
        if key not in self._exact:
            oracle = self.gaussian(model.schedule, model.T)
            rows = gaussian_rows(oracle, cell.levels(), look.indices, *key[4:]) if oracle else ()
            self._exact[key] = list(rows)
        return self._exact[key]

    def gaussian(self, schedule: str, T: int) -> LinearGaussian | None:
        """Return the Gaussian with the data's mean and covariance, None for images too large for the recursion."""
        pixels = to_unit(self.data.part("train")).double().flatten(1)
        if pixels.shape[1] > _GAUSSIAN_PIXELS:
            return None
        learned = None if schedule == "edm" else alpha_bars(schedule, T)
        return LinearGaussian(pixels.mean(0).numpy(), pixels.T.cov().numpy(), learned)
