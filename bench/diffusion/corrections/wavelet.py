"""Differential correction (DCW; Yu et al. 2026, arXiv 2604.16044): each new state is moved away from x0_hat, by bands.

After a step, x_next += lambda (x_next - x0_hat) in each sub-band of one orthonormal Haar transform (eq. 18), with
x0_hat the last one of the step, as its update took it. The transform is linear and orthonormal, and its LL band alone
transforms back to the mean of each 2 x 2 block, so nothing is transformed: the blocks' means of the difference are its
low band, and the rest its three high ones.

On exact Gaussian data a positive coefficient repairs what few steps lose, without any exposure bias: an Euler step in
the frame alpha = 1, from sigma_1 to sigma_2 on variance v, ends exactly at v + sigma_2^2 with lambda =
(sqrt((v + sigma_1^2) (v + sigma_2^2)) - v - sigma_1 sigma_2) / (sigma_1 sigma_2), which is positive, and 0 in the limit
of small steps. The step to the clean level, which published code corrects too, ends in x0_hat and does not move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.diffusion.corrections.base import ByLevel, Correction
from bench.diffusion.posterior import Posterior
from bench.diffusion.types import Call, Level, Prediction

_UNIT = 1e-6  # how far from 1 the alpha^2 + sigma^2 of variance-preserving levels may round


class DifferentialCorrection(Correction):
    """Coefficients ``w low`` and ``(1 - w) high``, w = sigma / sigma_max of the level that the step starts from.

    This is the released code's (``generate.py``, alpha = 1, sigma_max the walk's first level), of which only the low
    band is switched on there. Variance-preserving levels take their own sigma, which is our reading: the code has none,
    and the paper's own form for them is :class:`ReverseStdCorrection`. A step that adds noise first (churn) counts from
    the level before it, as in the code.

    Images must be of even height and width. States keep their dtype, where the code makes them float32.

    Args:
        levels: the whole walk's levels, noisiest first, ending in the clean level.
        low: lambda_l, in the LL band; .005 in the code's example (EDM on CIFAR-10, 13 Euler steps).
        high: lambda_h, in the other three. Both 0 are the plain sampler, bit for bit.

    Raises:
        ValueError: a coefficient is not finite.
    """

    moves = True
    neutral: ClassVar[Mapping[str, Any]] = {"low": 0.0, "high": 0.0}
    typical: ClassVar[Mapping[str, Any]] = {"low": 0.05}

    def __init__(self, levels: Sequence[Level], low: float, high: float = 0.0) -> None:
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"coefficients must be finite, not low {low} and high {high}")
        self.low, self.high = low, high
        # By the level reached, which both calls of a corrected step name.
        self._weight = ByLevel([level.t for level in reversed(levels[1:])], self._weights(levels)[::-1])

    def _weights(self, levels: Sequence[Level]) -> list[float]:
        """Return w of each step, in the order of the walk."""
        return [level.sigma / levels[0].sigma for level in levels[:-1]]

    def after(self, x_next: Tensor, pred: Prediction, call: Call) -> Tensor:
        """Move the state that a step ends in.

        Raises:
            ValueError: images whose height or width is odd.
        """
        if not call.completes or not (self.low or self.high):
            return x_next
        weight = self._weight(call.level_next.t)
        difference = x_next - pred.x0
        low = _low_band(difference)
        # eq. 18, transformed back band by band
        return x_next + weight * self.low * low + (1 - weight) * self.high * (difference - low)


class ReverseStdCorrection(DifferentialCorrection):
    """The same with w the standard deviation of the reverse step, sqrt(beta_tilde) (the paper's eq. 20).

    That is the spread of an ancestral step with the fixed-small variance; other samplers take it for the same two
    levels. The paper's search on CIFAR-10 ended at low = .052, high = .010 (A-DPM, cosine, 25 steps; appendix G). Its
    eq. 21 prints (1 - lambda_h) sigma_t for the high bands; that grows with the noise, against the text around it and
    the released code, so it is taken for a misprint of (1 - sigma_t) lambda_h.

    Raises:
        ValueError: a coefficient is not finite, or levels that are not variance preserving.
    """

    def _weights(self, levels: Sequence[Level]) -> list[float]:
        if any(abs(level.alpha**2 + level.sigma**2 - 1) > _UNIT for level in levels):
            raise ValueError("eq. 20 is for variance-preserving levels; on others use DifferentialCorrection")
        return [Posterior.between(level, after).std("fixed-small") for level, after in pairwise(levels)]


class PiecewiseCorrection(DifferentialCorrection):
    """Constant coefficients, of one kind of band at a time: low while t >= threshold, high after that (eqs. 42 and 43).

    Args:
        levels: the whole walk's levels, noisiest first, ending in the clean level.
        low: w_l, in the LL band of steps that start at t >= threshold.
        high: w_h, in the other three bands of steps that start below it. Both 0 are the plain sampler, bit for bit.
        threshold: t_s, in the t of the levels. The paper names none; the code's example is the low band of the first 10
            of 13 EDM steps, those from sigma .17 on, which is t = 100 of a cosine schedule of 1000.

    Raises:
        ValueError: a coefficient or the threshold is not finite.
    """

    typical: ClassVar[Mapping[str, Any]] = {"low": 0.02, "high": 0.0, "threshold": 100.0}

    def __init__(self, levels: Sequence[Level], low: float, high: float, threshold: float) -> None:
        if not math.isfinite(threshold):
            raise ValueError(f"the threshold must be finite, not {threshold}")
        self._threshold = threshold
        super().__init__(levels, low, high)

    def _weights(self, levels: Sequence[Level]) -> list[float]:
        return [float(level.t >= self._threshold) for level in levels[:-1]]


class PixelCorrection(Correction):
    """The same in all bands alike, x_next += c (x_next - x0_hat) (eq. 17), with the released code's constant c.

    Args:
        levels: not looked at, since c does not depend on the level.
        c: the coefficient; 0 is the plain sampler, bit for bit.

    Raises:
        ValueError: c is not finite.
    """

    moves = True
    neutral: ClassVar[Mapping[str, Any]] = {"c": 0.0}
    typical: ClassVar[Mapping[str, Any]] = {"c": 0.02}

    def __init__(self, levels: Sequence[Level], c: float) -> None:
        if not math.isfinite(c):
            raise ValueError(f"the coefficient must be finite, not {c}")
        self.c = c

    def after(self, x_next: Tensor, pred: Prediction, call: Call) -> Tensor:
        """Move the state that a step ends in."""
        return x_next + self.c * (x_next - pred.x0) if call.completes and self.c else x_next


def _low_band(images: Tensor) -> Tensor:
    """Return the image of the LL band alone, [B, C, H, W]: the mean of each 2 x 2 block."""
    height, width = images.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(
            f"the wavelet bands of DCW need images of even size, not {height} x {width}; PixelCorrection takes any"
        )
    # The transform is orthonormal: LL alone, transformed back, is the mean of each block.
    means = torch.nn.functional.avg_pool2d(images, 2)
    return means.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
