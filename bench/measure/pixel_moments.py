"""Moments of a dataset's pixels, spectra and sub-bands: what measurements in pixel space compare samples with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from bench.data import Dataset, to_unit
from bench.measure.instruments.spectra import RadialBins, haar_energy

__all__ = ["PixelMoments"]

_BLOCK = 8192  # images in float64 at a time


@dataclass(frozen=True)
class PixelMoments:
    """Means over n images, float64: of pixels [C, H, W] with their variance, of spectra [bins], of sub-bands [4]."""

    n: int
    mean: Tensor
    variance: Tensor
    spectrum: Tensor
    haar: Tensor

    @classmethod
    def of(cls, images: Tensor) -> PixelMoments:
        """Measure uint8 images [N, C, H, W]."""
        pixels = to_unit(images).double()
        spectrum = RadialBins(*images.shape[2:]).density(pixels.float()).double().mean(0)
        variance = pixels.var(0, correction=min(1, len(pixels) - 1))  # 0 of one image, which adds no scatter
        return cls(len(pixels), pixels.mean(0), variance, spectrum, haar_energy(pixels).mean(0))

    @classmethod
    def of_training(cls, data: Dataset) -> PixelMoments:
        """Measure the training part block by block, so that memory does not grow with its size."""
        blocks = torch.arange(data.count("train")).split(_BLOCK)
        return reduce(cls.merged, (cls.of(data.pick("train", rows)) for rows in blocks))

    def merged(self, other: PixelMoments) -> PixelMoments:
        """Return those of both sets together (Chan, Golub & LeVeque 1983)."""
        n, share, apart = self.n + other.n, other.n / (self.n + other.n), other.mean - self.mean
        scatter = (self.n - 1) * self.variance + (other.n - 1) * other.variance
        scatter = scatter + apart.square() * (self.n * share)
        spectrum, haar = (a + (b - a) * share for a, b in ((self.spectrum, other.spectrum), (self.haar, other.haar)))
        return PixelMoments(n, self.mean + apart * share, scatter / (n - 1), spectrum, haar)
