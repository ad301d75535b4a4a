"""What samples are compared with: statistics and features of the data a model was trained on."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import numpy as np

from bench.data import Dataset
from bench.diffusion.schedules import alpha_bars
from bench.measure.features.extractors import Extractor
from bench.measure.instruments.gaussian import LARGEST, LinearGaussian
from bench.measure.instruments.moments import PixelMoments
from bench.measure.instruments.step_table import PixelStatistics
from bench.measure.quality.embedded_statistics import Unseen, embedded_statistics_of, pixel_moments
from bench.measure.quality.references import Yardstick
from bench.measure.quality.scores import SCORES_VERSION, Score, frechet_score
from bench.measure.quality.statistics import ReferenceStatistics
from bench.measure.quality.statistics_files import cached_statistics, with_features

_DRAWS = 500  # of exact samples: the mean is known to a twentieth of the spread
_FEW_DRAWS = 10  # where a distance takes seconds, that is of Inception's 2048 features
_WIDE = 1024
_QUANTILES = {"low": 0.025, "high": 0.975}
_ENDINGS = ("exact", "exact_sd", "exact_low", "exact_high")
_DRAW_SEED = 0
_FEW = 4  # at most one in so many of the kept features is drawn, where not all are kept


class Reference:
    """What samples are compared with: the data's statistics and, on first use, those of their features.

    Args:
        data: its training part is the reference; where its images are not at hand, what is kept of them.
        extractor: gives the features; None where nothing is scored.
        imported: features' statistics from a file, in place of the training part's; images to compare one by one,
            where the file brings none, are the training part's still.
        pictures: the images that samples are scored against, where they are not ``data``: decoded latents.
    """

    def __init__(
        self,
        data: Dataset,
        extractor: Extractor | None,
        imported: Yardstick | None = None,
        pictures: Dataset | None = None,
    ) -> None:
        self.data, self.extractor, self.pictures = data, extractor, pictures or data
        self._imported = imported
        self._features: ReferenceStatistics | None = None
        self._exact_scores: dict[int, list[Score]] = {}
        pixels = data.embedded.pixels if isinstance(data, Unseen) else PixelMoments.of_training(data)
        self.centre = pixels.mean
        self.statistics = PixelStatistics(pixels.mean.numpy(), pixels.variance.numpy())
        self.spectrum, self.haar = pixels.spectrum.numpy(), pixels.haar.numpy()

    @property
    def name(self) -> str:
        """Return what tables call the reference."""
        return self._imported.statistics.name if self._imported is not None else self.pictures.training_name

    def counts(self) -> tuple[int | None, int]:
        """Return of how many images the statistics are, None where nobody says, and how many there are to compare."""
        data, imported = self.data, self._imported
        if imported is None:
            images = data.embedded.pixels.n if isinstance(data, Unseen) else data.count("train")
            return images, images
        singles = len(imported.statistics.pooled) or data.count("train")
        return imported.statistics.n, singles if imported.pictures is None else len(imported.pictures.images)

    def features_key(self) -> str:
        """Return what a Frechet distance depends on besides samples and data: extractor and imported statistics."""
        extractor = self.extractor.key if self.extractor else "none"
        return extractor if self._imported is None else f"{extractor}-statistics-{self._imported.content_hash()}"

    def key(self) -> str:
        """Return what the scores depend on besides samples and data: the features, and which scores there are."""
        return f"{self.features_key()}-scores{SCORES_VERSION}"

    def features(self) -> ReferenceStatistics:
        """Return the statistics of the reference's features; of large sets some features are kept, of others all.

        Raises:
            FeatureError: the extractor cannot read the images.
        """
        if self._features is None:
            assert self.extractor is not None  # scoring asks only where there is an extractor
            images, content = self.pictures.part("train"), self.pictures.content_hash()
            if self._imported is None:
                embedded = self.embedded_statistics()
                self._features = embedded or cached_statistics(self.extractor, images, self.name, content)
            else:
                statistics = self._imported.completed(self.extractor)
                if not len(statistics.pooled) and len(images):
                    statistics = with_features(statistics, self.extractor, images, self.pictures.training_name, content)
                self._features = statistics
        return self._features

    def embedded_statistics(self) -> ReferenceStatistics | None:
        """Return the statistics that the package keeps of these images' features, None where it keeps none."""
        assert self.extractor is not None  # as for features
        data = self.pictures
        embedded = data.embedded if isinstance(data, Unseen) else None
        if embedded:
            return embedded_statistics_of(self.extractor, embedded.content, embedded.pixels.n)
        return embedded_statistics_of(self.extractor, data.content_hash(), data.count("train"))

    def exact_scores(self, n: int) -> list[Score]:
        """Return the Frechet distance of n samples of an exact sampler: its mean, spread and 95 % range.

        The scores end in ``_exact``, ``_exact_sd``, ``_exact_low`` and ``_exact_high``.

        An exact sampler draws independent images of the data. Here they are drawn from the training part, with
        replacement and a fixed seed, so that classes are as uneven as chance makes them: 500 times, or 10 times with
        Inception's features, which gives no range. Of a training part of more than 10,000 images not all features are
        kept. Then images are drawn from those that are, without replacement, which is as good as drawing from all while
        they are few. More than a quarter of what is kept have no such scores. Imported statistics have none either,
        since their images are others.

        Args:
            n: as many images as there are samples.
        """
        assert self.extractor is not None  # as for features
        if n not in self._exact_scores:
            name = self.extractor.metrics["frechet"]
            draws = self._draws(name, n)
            values = [draw.value for draw in draws if draw.value is not None]
            numbers: dict[str, float] = {}
            if values:
                numbers = {"exact": float(np.mean(values)), "exact_sd": float(np.std(values, ddof=1))}
            if len(values) == _DRAWS:
                numbers |= {f"exact_{end}": float(np.quantile(values, q)) for end, q in _QUANTILES.items()}
            self._exact_scores[n] = [
                replace(draws[0], metric=f"{name}_{ending}", value=numbers.get(ending)) for ending in _ENDINGS
            ]
        return self._exact_scores[n]

    def _draws(self, name: str, n: int) -> list[Score]:
        """Return the distances of draws of n images, or one empty score."""
        if self._imported is not None:
            reason = "the statistics are imported: draws of the training images would be compared with other images"
            return [Score(name, None, n, self.name, reason)]
        assert self.extractor is not None  # as for features
        features, rng = self.features(), np.random.default_rng(_DRAW_SEED)
        pooled = features.pooled
        draws = _DRAWS if pooled.shape[1] < _WIDE else _FEW_DRAWS
        rows, images = len(pooled), features.n or 0
        if rows < images and n > rows // _FEW:
            reason = f"{n} draws need the features of all {images} training images, of which {rows} are kept"
            return [Score(name, None, n, self.name, reason)]
        numbers = (rng.choice(rows, n, replace=rows == images) for _ in range(draws))
        return [frechet_score(name, pooled[draw], features.moments, self.name) for draw in numbers]

    def gaussian(self, schedule: str, T: int) -> LinearGaussian | None:
        """Return the Gaussian with the data's mean and covariance; None where images are too large or not at hand."""
        if self.law is None:
            return None
        is_discrete = schedule != "edm" and not schedule.startswith("flow")
        return self.law.trained_on(alpha_bars(schedule, T) if is_discrete else None)

    @cached_property
    def law(self) -> LinearGaussian | None:
        """Return the same Gaussian, of no training process."""
        if math.prod(self.data.shape) > LARGEST:
            return None
        if isinstance(self.data, Unseen):
            return self.data.embedded.gaussian
        moments = pixel_moments(self.data)
        return LinearGaussian(moments.mean, moments.cov)
