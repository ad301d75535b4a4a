"""The reverse step's Gaussian: q(x_next | x, x0) in the general frame, and the variances a sampler may use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.types import Level, Prediction


def root(value: Any) -> Any:
    """Return the square root of a float, or of a tensor of one level an image; 0 for negative values."""
    return value.clamp(min=0).sqrt() if isinstance(value, Tensor) else math.sqrt(max(value, 0.0))


def _log(value: Any) -> Any:
    return value.log() if isinstance(value, Tensor) else math.log(value)


@dataclass(frozen=True, slots=True)
class Posterior:
    """q(x_next | x, x0) = N(c1 x0 + c2 x, small), and ``large``, the variance of q(x | x_next).

    In the variance-preserving frame (Ho et al. 2020, eq. 7) ``large`` is beta of the respaced process and
    ``small`` is beta-tilde; towards the clean level ``small`` is 0.
    """

    c1: float
    c2: float
    small: float
    large: float

    @classmethod
    def between(cls, level: Level, level_next: Level) -> Posterior:
        """Compute the coefficients in float64 from two levels of the frame x = alpha x0 + sigma noise."""
        ratio = level.alpha / level_next.alpha  # q(x | x_next) = N(ratio x_next, large)
        large = level.sigma**2 - ratio**2 * level_next.sigma**2
        share = level_next.sigma**2 / level.sigma**2  # of the noise that x_next has already
        return cls(level_next.alpha * large / level.sigma**2, ratio * share, large * share, large)

    def std(self, variance: str) -> float:
        """Return the standard deviation of ``fixed-small`` or ``fixed-large``."""
        std: float = root(self.small if variance == "fixed-small" else self.large)
        return std


def step_log_variance(variance: str, q: Posterior, pred: Prediction) -> Tensor | float:
    """Return the log variance of a noisy step: a float where it is fixed, [B, C, H, W] where it is learned.

    Learned range (Nichol & Dhariwal 2021, eq. 15): v = (fraction + 1) / 2 weighs log ``large`` against log
    ``small`` and is not clamped.

    Raises:
        ValueError: the denoiser does not predict a variance.
    """
    if variance != "learned":
        fixed: float = 2 * _log(q.std(variance))
        return fixed
    if pred.variance_fraction is None:
        raise ValueError("this model does not learn its variance; choose --variance fixed-small or fixed-large")
    v = (pred.variance_fraction + 1) / 2  # [-1, 1] to [0, 1]
    return v * _log(q.large) + (1 - v) * _log(q.small)  # eq. 15


def sample_exact(q: Posterior, pred: Prediction, z: Tensor) -> Tensor:
    """Turn unit noise z [B, C, H, W] into a draw of covariance ``small * I + c1**2 Cov(x0 | x_t)``.

    This is the covariance of x_next given x when x0 is unknown; with it a Gaussian's marginals are exact at any
    step count. Towards the clean level it draws x0 itself.

    Raises:
        ValueError: the denoiser does not know the posterior covariance.
    """
    if pred.x0_cov is None:
        raise ValueError("variance 'exact' needs a closed-form denoiser that knows Cov(x0 | x_t)")
    # A symmetric root, not Cholesky: the covariance of x0 may be singular.
    values, vectors = torch.linalg.eigh(pred.x0_cov.double())
    std = (q.small + q.c1**2 * values.clamp(min=0)).sqrt()  # Var(x_next | x) = small + c1^2 Var(x0 | x)
    flat = z.flatten(1).double()[..., None]
    drawn = vectors @ (std[..., None] * (vectors.mT @ flat))
    return drawn[..., 0].reshape(z.shape).to(z.dtype)
