"""Does a description fit its network? The slope of the true noise on the predicted one, at several noise levels.

A network trained by squared error predicts a conditional mean, eps_hat = E[eps | x]. Then E<eps_hat, eps> =
E<eps_hat, eps_hat>, so the slope <eps_hat, eps> / <eps_hat, eps_hat> is 1 at every level, however good the network is.
A network that is read with another prediction, schedule, training length or image range has other slopes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.diffusion.schedules import FLOW_T, alpha_bars, edm_position
from bench.diffusion.types import Denoiser, Level
from bench.models.denoisers.preconditioning import Preconditioning

LEVELS = 8  # that are tried
TOLERANCE = 0.2  # of a slope about 1; right descriptions stay within .06
_LEAST_SIGMA = 0.1  # below it eps_hat is small, and its errors decide
_LEAST_ALPHA = 0.05  # below it every network sees noise alone
_LEAST_IMAGES, MOST_IMAGES = 16, 128  # a level
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


def slope_levels(schedule: str, T: int, preconditioning: Preconditioning | None = None) -> tuple[Level, ...]:
    """Return the levels to try, least noisy first: sigma / alpha = tan(angle) at evenly spread angles.

    Of two schedules the levels are the same up to the distance of training indices, so that losses can be compared.

    Args:
        schedule: of the description.
        T: training length.
        preconditioning: of an EDM network, whose range of levels is kept to.
    """
    angles = np.linspace(math.asin(_LEAST_SIGMA), math.pi / 2 - _LEAST_ALPHA, LEVELS)
    if schedule == "edm":
        sigmas = np.tan(angles)
        if preconditioning is not None:
            sigmas = sigmas.clip(preconditioning.sigma_min, preconditioning.sigma_max)
            sigmas = np.array([preconditioning.rounded(sigma) for sigma in sigmas])
        return tuple(Level(edm_position(sigma), 1.0, float(sigma)) for sigma in np.unique(sigmas) if sigma > 0)
    if schedule.startswith("flow"):
        sigmas = np.tan(angles) / (1 + np.tan(angles))  # sigma / (1 - sigma) = tan(angle)
        return tuple(Level(FLOW_T * float(sigma), 1 - float(sigma), float(sigma)) for sigma in sigmas)
    bars = alpha_bars(schedule, T)
    trained = np.arccos(np.sqrt(bars))  # the angle of each index
    indices = {int(np.abs(trained - angle).argmin()) for angle in angles}
    return tuple(Level(t, math.sqrt(bars[t]), math.sqrt(1 - bars[t])) for t in sorted(indices))


def slope_at(
    denoiser: Denoiser, images: Tensor, level: Level, cond: Tensor | None = None, batch: int = MOST_IMAGES
) -> Slope:
    """Show images with noise of one level and return the slope.

    Args:
        denoiser: the model, without guidance or corrections.
        images: real ones in [-1, 1], float32 [N, C, H, W], on the model's device.
        level: noisy.
        cond: class labels, int64 [N], if the model takes them.
        batch: how many images the network sees at once.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator).to(images)
    states = (level.alpha * images + level.sigma * noise).split(batch)
    labels = [None] * len(states) if cond is None else cond.split(batch)
    with torch.no_grad():
        eps = torch.cat([denoiser(x, level, part).eps for x, part in zip(states, labels, strict=True)])
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
    calls: int = LEVELS * MOST_IMAGES,
    batch: int = MOST_IMAGES,
) -> list[Slope]:
    """Return the slope at each level, with more images where too few leave it vague.

    Args:
        denoiser: as :func:`slope_at` takes it.
        images: at most 128 of them are shown at a level.
        levels: from :func:`slope_levels`.
        cond: the images' class labels, int64 [N], if the model takes them.
        calls: how many images may be shown in all at first; at least 16 a level are.
        batch: how many images the network sees at once.
    """
    count = min(max(calls // len(levels), _LEAST_IMAGES), MOST_IMAGES, len(images))
    results = []
    for level in levels:
        size = count
        slope = slope_at(denoiser, images[:size], level, None if cond is None else cond[:size], batch)
        while slope.is_vague and size < min(MOST_IMAGES, len(images)):
            size = min(2 * size, MOST_IMAGES, len(images))
            slope = slope_at(denoiser, images[:size], level, None if cond is None else cond[:size], batch)
        results.append(slope)
    return results


def worst(results: Sequence[Slope]) -> Slope | None:
    """Return the slope that is off by most, None where all may be those of a rightly described network."""
    off = [slope for slope in results if slope.is_off]
    return max(off, key=lambda slope: abs(slope.value - 1) if slope.value == slope.value else math.inf, default=None)
