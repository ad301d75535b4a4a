"""What samples are compared with: statistics and features of the data a model was trained on."""

from __future__ import annotations

from bench.data import Dataset, to_unit
from bench.diffusion.schedules import alpha_bars
from bench.measure.features import Extractor
from bench.measure.metrics import FeatureSet
from bench.measure.recursion import LinearGaussian
from bench.measure.spectra import RadialBins
from bench.measure.steps import PixelStatistics

__all__ = ["Reference"]

_GAUSSIAN_PIXELS = 1024  # the exact recursion multiplies D x D matrices at every step


class Reference:
    """What samples are compared with: the data's statistics and, on first use, their features."""

    def __init__(self, data: Dataset, extractor: Extractor | None) -> None:
        self.data, self.extractor = data, extractor
        self._features: FeatureSet | None = None
        pixels = to_unit(data.part("train")).double()
        self.centre = pixels.mean(0)
        self.statistics = PixelStatistics(self.centre.numpy(), pixels.var(0).numpy())
        self.spectrum = RadialBins(*data.shape[1:]).density(pixels.float()).double().mean(0).numpy()

    @property
    def name(self) -> str:
        """Return what tables call the reference."""
        part = "train" if self.data.heldout.any() else "all"
        return f"{self.data.name}-{part} ({len(self.data.part('train'))})"

    def key(self) -> str:
        """Return what the scores depend on besides the samples."""
        return self.extractor.name + "-" + self.extractor.weights_hash[:16] if self.extractor else "none"

    def features(self) -> FeatureSet:
        """Return the features of the training part."""
        if self._features is None:
            assert self.extractor is not None  # scoring asks only where there is an extractor
            self._features = FeatureSet(*self.extractor.extract(self.data.part("train")))
        return self._features

    def gaussian(self, schedule: str, T: int) -> LinearGaussian | None:
        """Return a Gaussian with the data's mean and covariance, None for images too large for it."""
        pixels = to_unit(self.data.part("train")).double().flatten(1)
        if pixels.shape[1] > _GAUSSIAN_PIXELS:
            return None
        return LinearGaussian(pixels.mean(0).numpy(), pixels.T.cov().numpy(), alpha_bars(schedule, T))
