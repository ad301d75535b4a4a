"""Euler, Heun and Euler-Maruyama steps along the ODE or SDE of a frame.

Euler and Heun (Karras et al. 2022, algorithms 1 and 2) solve dx / dsigma = eps of the frame alpha = 1; written for
x / alpha and sigma / alpha they serve every frame with a signal at its start. A flow has none: there they solve
dx / dsigma = eps - x0 (``straight``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.diffusion.posterior import root
from bench.diffusion.schedules import edm_position
from bench.diffusion.solvers.base import Solver
from bench.diffusion.types import Level, Prediction


@dataclass(frozen=True)
class Churn:
    """Noise added before a step, which raises sigma by a factor of at most sqrt(2) (Karras et al. 2022, algorithm 2).

    Attributes:
        amount: S_churn, shared out over the steps.
        steps: of the walk.
        least: S_min, the least sigma that is raised.
        most: S_max, the largest.
        noise: S_noise, a factor of the added noise.
        rounded: maps the raised sigma to the nearest that the network knows.
    """

    amount: float
    steps: int
    least: float = 0.0
    most: float = math.inf
    noise: float = 1.0
    rounded: Callable[[float], float] = float

    def raised(self, level: Level) -> tuple[Level, float]:
        """Return the noisier level, at which the network is asked, and the variance of the noise added to reach it."""
        if not self.least <= level.sigma <= self.most:
            return level, 0.0
        gamma = min(self.amount / self.steps, math.sqrt(2) - 1)  # algorithm 2, line 4
        sigma = self.rounded(level.sigma * (1 + gamma))
        added_variance = max(sigma**2 - level.sigma**2, 0.0) * self.noise**2
        return replace(level, t=edm_position(sigma), sigma=sigma), added_variance


@dataclass(frozen=True)
class Euler(Solver):
    """First order: one network call a step. States are float64 (float32 where the device has none).

    Attributes:
        churn: noise added before each step; EDM's levels alone.
        straight: solve in the frame of a flow, alpha + sigma = 1, where dx / dsigma = eps - x0. The step is DDIM's.
    """

    churn: Churn | None = None
    straight: bool = False
    dtype = torch.float64

    def churned(self, level: Level) -> tuple[Level, float]:
        """Return the level that a step starts from, and the variance of the noise added to the state to reach it."""
        return (level, 0.0) if self.churn is None else self.churn.raised(level)

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Move along eps to the next level.

        Raises:
            ValueError: the prediction is guided, which these solvers do not know.
        """
        if pred.guidance is not None:
            raise ValueError("Euler and Heun steps know no classifier guidance; use Ancestral or DDIM")
        return self._move(x, pred.x0, pred.eps, level, level_next)

    def _move(self, x: Tensor, x0: Tensor, eps: Tensor, level: Level, level_next: Level) -> Tensor:
        if self.straight:
            return x + (level_next.sigma - level.sigma) * (eps - x0)  # no division by alpha, 0 at the start
        distance = level_next.sigma / level_next.alpha - level.sigma / level.alpha
        return level_next.alpha * (x / level.alpha + distance * eps)  # d(x / alpha) / d(sigma / alpha) = eps


@dataclass(frozen=True)
class Heun(Euler):
    """Second order: a second call, at the level a step reached, corrects the step unless that level is clean."""

    stages = 2

    def correct(self, x: Tensor, pred: Prediction, pred_next: Prediction, level: Level, level_next: Level) -> Tensor:
        """Move from x along the mean direction of both ends of the step."""
        x0, eps = (pred.x0 + pred_next.x0) / 2, (pred.eps + pred_next.eps) / 2
        return self._move(x, x0, eps, level, level_next)


@dataclass(frozen=True)
class FlowSDE(Solver):
    """The reverse SDE of a flow with diffusion coefficient w = sigma (SiT, Ma et al. 2024), by Euler-Maruyama.

    dx = (v - w s / 2) dsigma + sqrt(w) dW with the velocity v = eps - x0 and the score s = -eps / sigma. The last step,
    to the clean level, adds no noise and ends in x0_hat.
    """

    dtype = torch.float64

    def is_random(self, level_next: Level) -> bool:
        """Tell whether noise is added: everywhere but to the clean level."""
        return not level_next.is_clean

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Draw x_next.

        Raises:
            ValueError: the prediction is guided by a classifier.
        """
        if pred.guidance is not None:
            raise ValueError("steps of a flow know no classifier guidance; use Ancestral or DDIM")
        if level_next.is_clean:
            return pred.x0
        step = level.sigma - level_next.sigma  # positive: time runs backwards
        drift = pred.eps - pred.x0 + pred.eps / 2  # v - w s / 2, where w s = -eps
        return x - step * drift + root(level.sigma * step) * z
