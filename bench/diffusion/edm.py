"""Levels and solvers of EDM (Karras et al. 2022, algorithm 1 and 2), in the frame alpha = 1.

Both solve dx / dsigma = eps, so they are written for x / alpha and sigma / alpha and serve any frame.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.diffusion.types import CLEAN, Level, Prediction

__all__ = ["Churn", "Euler", "Heun", "edm_grid", "edm_levels", "edm_position"]

_RHO = 7.0
_SIGMA_MIN, _SIGMA_MAX = 0.002, 80.0
_T = 1000  # a scale for plots beside models of 1000 training steps; no network sees it


def _sigma(u: float, low: float, high: float) -> float:
    """Return the noise level at u in [0, 1], 0 the noisiest."""
    return (high ** (1 / _RHO) + u * (low ** (1 / _RHO) - high ** (1 / _RHO))) ** _RHO


def edm_position(sigma: float) -> float:
    """Return where sigma lies on EDM's scale, rho = 7: 0 at sigma .002, 999 at sigma 80. It is a level's ``t``."""
    low, high = _SIGMA_MIN ** (1 / _RHO), _SIGMA_MAX ** (1 / _RHO)
    return (_T - 1) * (sigma ** (1 / _RHO) - low) / (high - low)


def edm_levels(
    steps: int, low: float = 0.0, high: float = math.inf, rounded: Callable[[float], float] = float
) -> tuple[Level, ...]:
    """Return ``steps`` EDM levels, noisiest first, and the clean one (ibid., eq. 5; rho 7, sigma from 80 to .002).

    Args:
        steps: solver steps, at least 1; one step starts at the noisiest level.
        low: least noise level the network knows, which replaces .002 if it is larger.
        high: largest one, which replaces 80 if it is smaller.
        rounded: maps a level to the nearest that the network knows.

    Raises:
        ValueError: no steps, or so many that two of them fall on one level.
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least one step, not {steps}")
    low, high = max(_SIGMA_MIN, low), min(_SIGMA_MAX, high)
    sigmas = [rounded(_sigma(i / max(steps - 1, 1), low, high)) for i in range(steps)]
    if any(a <= b for a, b in itertools.pairwise(sigmas)):
        raise ValueError(f"{steps} steps are more than this model has noise levels; use fewer")
    return (*(Level(edm_position(sigma), 1.0, sigma) for sigma in sigmas), CLEAN)


def edm_grid(low: float = 0.0, high: float = math.inf, rounded: Callable[[float], float] = float) -> tuple[Level, ...]:
    """Return the levels that a network knows, noisiest first, at most 1000 of them; arguments as in edm_levels."""
    low, high = max(_SIGMA_MIN, low), min(_SIGMA_MAX, high)
    sigmas = dict.fromkeys(rounded(_sigma(i / (_T - 1), low, high)) for i in range(_T))
    return tuple(Level(edm_position(sigma), 1.0, sigma) for sigma in sigmas)


@dataclass(frozen=True)
class Churn:
    """Noise added before a step, as much as raises sigma by a factor of at most sqrt(2) (ibid., algorithm 2).

    ``amount`` is S_churn, spread over ``steps``; only levels with sigma in [least, most] are churned; ``noise`` scales
    the noise, S_noise; ``rounded`` maps the raised level to the nearest that the network knows.
    """

    amount: float
    steps: int
    least: float = 0.0
    most: float = math.inf
    noise: float = 1.0
    rounded: Callable[[float], float] = float

    def raised(self, level: Level) -> Level:
        """Return the noisier level that the network is told."""
        if not self.least <= level.sigma <= self.most:
            return level
        sigma = self.rounded(level.sigma * (1 + min(self.amount / self.steps, math.sqrt(2) - 1)))
        return replace(level, t=edm_position(sigma), sigma=sigma)

    def added_variance(self, level: Level) -> float:
        """Return the variance of the noise that is added at a level."""
        return max(self.raised(level).sigma ** 2 - level.sigma**2, 0.0) * self.noise**2


@dataclass(frozen=True)
class Euler:
    """First order: one network call a step. States are float64 (float32 where the device has none)."""

    churn: Churn | None = None
    stages = 1
    dtype = torch.float64

    def stirred(self, level: Level) -> tuple[Level, float]:
        """Return the level the step starts from, and the variance of the noise added to get there."""
        return (level, 0.0) if self.churn is None else (self.churn.raised(level), self.churn.added_variance(level))

    def is_random(self, level_next: Level) -> bool:
        """Tell that the move itself adds no noise; churn does, before it."""
        return False

    def update(
        self, x: Tensor, x0: Tensor, eps: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor
    ) -> Tensor:
        """Move along eps to the next level.

        Raises:
            ValueError: the prediction is guided, which these solvers do not know.
        """
        if pred.guidance is not None:
            raise ValueError("Euler and Heun steps know no classifier guidance; use Ancestral or DDIM")
        return _move(x, eps, level, level_next)

    def correct(self, x: Tensor, eps: Tensor, eps_next: Tensor, level: Level, level_next: Level) -> Tensor:
        """Move from x along the mean of the eps of both ends of the step."""
        return _move(x, (eps + eps_next) / 2, level, level_next)


@dataclass(frozen=True)
class Heun(Euler):
    """Second order: a step is corrected by a second call at the level it reached, unless that is the clean one."""

    stages = 2


def _move(x: Tensor, eps: Tensor, level: Level, level_next: Level) -> Tensor:
    distance = level_next.sigma / level_next.alpha - level.sigma / level.alpha
    return level_next.alpha * (x / level.alpha + distance * eps)
