"""Streaming moments: counts, sums and sums of squares in float64, mergeable and independent of the number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data import Dataset, to_unit
from bench.measure.instruments.spectra import RadialBins, haar_energy

Arrays = dict[str, NDArray[np.float64]]


class Moments:
    """First and second moments of values of a fixed shape, apart for each row (noise level).

    Sums in float64 are safe because the mean of these values is never large against their spread. They are on the
    device of the values, or on the CPU where the device has no float64.

    Args:
        rows: number of levels.
        shape: shape of one value, () for scalars.
        device: device of the values.
    """

    def __init__(self, rows: int, shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.count = np.zeros(rows)  # on the host: adding a batch size needs no device
        double = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
        self._sums = torch.zeros((2, rows, *shape), dtype=torch.float64, device=double)  # of x and of x^2

    def add(self, row: int, values: Tensor) -> None:
        """Add a batch of values [B, *shape] to a row."""
        wide = values.to(self._sums.device).double()
        self.count[row] += len(wide)
        self._sums[0, row] += wide.sum(0)
        self._sums[1, row] += wide.square().sum(0)

    def state(self) -> Arrays:
        """Return count [rows], mean and second (the raw second moment) [rows, *shape]; the only device-to-host copy."""
        sums = self._sums.cpu().numpy()
        divisor = np.maximum(self.count, 1).reshape(-1, *[1] * (sums.ndim - 2))
        return {"count": self.count.copy(), "mean": sums[0] / divisor, "second": sums[1] / divisor}

    @staticmethod
    def merge(parts: Sequence[Mapping[str, NDArray[np.float64]]]) -> Arrays:
        """Merge states in the given order, which is part of the result: float addition is not associative."""
        count = np.sum([part["count"] for part in parts], axis=0)
        merged: Arrays = {"count": count}
        for name in ("mean", "second"):
            total = np.zeros_like(parts[0][name])
            for part in parts:
                weight = part["count"].reshape(-1, *[1] * (total.ndim - 1))
                total += weight * part[name]
            merged[name] = total / np.maximum(count, 1).reshape(-1, *[1] * (total.ndim - 1))
        return merged

    @staticmethod
    def variance(state: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the unbiased variance [rows, *shape] of a state, NaN for fewer than two values."""
        count = state["count"].reshape(-1, *[1] * (state["mean"].ndim - 1))
        spread = np.maximum(state["second"] - state["mean"] ** 2, 0.0)  # E x^2 - (E x)^2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(count > 1, spread * count / (count - 1), np.nan)


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
        """Measure images [N, C, H, W], uint8 or floats in [-1, 1], or latents."""
        pixels = (images if images.is_floating_point() else to_unit(images)).double()
        spectrum = RadialBins(*images.shape[2:]).density(pixels.float()).double().mean(0)
        variance = pixels.var(0, correction=min(1, len(pixels) - 1))  # 0 for one image, which adds no scatter
        return cls(len(pixels), pixels.mean(0), variance, spectrum, haar_energy(pixels).mean(0))

    @classmethod
    def of_training(cls, data: Dataset) -> PixelMoments:
        """Measure the training part in blocks, so that memory does not grow with its size."""
        blocks = torch.arange(data.count("train")).split(_BLOCK)
        return reduce(cls.merged, (cls.of(data.pick("train", rows)) for rows in blocks))

    def merged(self, other: PixelMoments) -> PixelMoments:
        """Return the moments of both sets together (Chan, Golub & LeVeque 1983)."""
        n, share, difference = self.n + other.n, other.n / (self.n + other.n), other.mean - self.mean
        scatter = (self.n - 1) * self.variance + (other.n - 1) * other.variance
        scatter = scatter + difference.square() * (self.n * share)
        spectrum, haar = (a + (b - a) * share for a, b in ((self.spectrum, other.spectrum), (self.haar, other.haar)))
        return PixelMoments(n, self.mean + difference * share, scatter / (n - 1), spectrum, haar)
