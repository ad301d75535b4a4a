"""Does a description fit its network? The slope of the true noise on the predicted one, at several noise levels.

A network trained by squared error predicts a conditional mean, eps_hat = E[eps | x]. Then E<eps_hat, eps> =
E<eps_hat, eps_hat>, so the slope <eps_hat, eps> / <eps_hat, eps_hat> is 1 at every level, however good the network is.
A network that is read with another prediction, schedule, training length or image range has other slopes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.diffusion.schedules import alpha_bars, edm_levels
from bench.diffusion.types import Denoiser, Level

LEVELS = 8  # that are tried
TOLERANCE = 0.2  # of a slope about 1; right descriptions stay within .06
_LEAST_SIGMA = 0.1  # below it eps_hat is small, and its errors decide
_LEAST_IMAGES, _MOST_IMAGES = 16, 128  # a level
_ERRORS = 4  # standard errors that a slope must be off by


@dataclass(frozen=True)
class Slope:
    """The slope at a level.

    Attributes:
        level: where the network was asked.
        value: <eps_hat, eps> / <eps_hat, eps_hat>, sums over the images.
        error: its standard error, from the images' own terms.
        loss: the mean squared error of eps_hat, per pixel.
        images: how many were shown.
    """

    level: Level
    value: float
    error: float
    loss: float
    images: int

    @property
    def is_off(self) -> bool:
        """Tell whether the slope cannot be that of a rightly described network."""
        distance = abs(self.value - 1)
        return not distance <= TOLERANCE and not distance <= _ERRORS * self.error  # NaN is off

    @property
    def is_vague(self) -> bool:
        """Tell whether more images are needed to decide."""
        return abs(self.value - 1) > TOLERANCE and not self.is_off


def slope_levels(schedule: str, T: int, sigma_max: float = math.inf) -> tuple[Level, ...]:
    """Return the levels to try: evenly spread training indices with sigma above .1, or EDM's levels above it.

    Args:
        schedule: of the description.
        T: training length.
        sigma_max: the largest level that an EDM network was trained on.
    """
    if schedule == "edm":
        path = [level for level in edm_levels(4 * LEVELS) if _LEAST_SIGMA <= level.sigma <= sigma_max]
    else:
        bars = alpha_bars(schedule, T)
        path = [Level(t, math.sqrt(bar), math.sqrt(1 - bar)) for t, bar in enumerate(bars) if 1 - bar > _LEAST_SIGMA**2]
    chosen = torch.linspace(0, len(path) - 1, LEVELS).round().int().unique().tolist()
    return tuple(path[k] for k in chosen)


def slope_at(denoiser: Denoiser, images: Tensor, level: Level, cond: Tensor | None = None) -> Slope:
    """Show images with noise of one level and return the slope.

    Args:
        denoiser: the model, without guidance or corrections.
        images: real ones in [-1, 1], float32 [N, C, H, W], on the model's device.
        level: noisy.
        cond: class labels, int64 [N], if the model takes them.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator).to(images)
    with torch.no_grad():
        eps = denoiser(level.alpha * images + level.sigma * noise, level, cond).eps
    # Sums of an image's pixels, float64 on the CPU: not every device has it.
    product, square, error = (
        (a * b).flatten(1).cpu().double().sum(1) for a, b in ((eps, noise), (eps, eps), (eps - noise, eps - noise))
    )
    value = product.sum() / square.sum()
    # Of a ratio of sums: the terms' deviations from the line.
    count = len(images)
    spread = (product - value * square).square().sum() * count / max(count - 1, 1)
    loss = error.sum() / images.numel()
    return Slope(level, float(value), float(spread.sqrt() / square.sum()), float(loss), count)


def slopes(
    denoiser: Denoiser,
    images: Tensor,
    levels: Sequence[Level],
    cond: Tensor | None = None,
    calls: int = LEVELS * _MOST_IMAGES,
) -> list[Slope]:
    """Return the slope at each level, with more images where too few leave it vague.

    Args:
        denoiser: as :func:`slope_at` takes it.
        images: at most 128 of them are shown at a level.
        levels: from :func:`slope_levels`.
        cond: the images' class labels, int64 [N], if the model takes them.
        calls: how many images may be shown in all at first; at least 16 a level are.
    """
    count = min(max(calls // len(levels), _LEAST_IMAGES), _MOST_IMAGES, len(images))
    results = []
    for level in levels:
        size = count
        slope = slope_at(denoiser, images[:size], level, None if cond is None else cond[:size])
        while slope.is_vague and size < min(_MOST_IMAGES, len(images)):
            size = min(2 * size, _MOST_IMAGES, len(images))
            slope = slope_at(denoiser, images[:size], level, None if cond is None else cond[:size])
        results.append(slope)
    return results


def worst(results: Sequence[Slope]) -> Slope | None:
    """Return the slope that is off by most, None where all may be those of a rightly described network."""
    off = [slope for slope in results if slope.is_off]
    return max(off, key=lambda slope: abs(slope.value - 1) if slope.value == slope.value else math.inf, default=None)
