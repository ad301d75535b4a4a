"""Corrections: training-free interventions on a walk, three hooks each the identity by default."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from bench.diffusion.types import Level, Prediction

__all__ = ["EpsilonScaling", "Identity"]


class Identity:
    """The base of all corrections, and the plain sampler bit for bit."""

    def before(self, x: Tensor, level: Level) -> tuple[Tensor, Level]:
        """Leave state and level."""
        return x, level

    def prediction(self, pred: Prediction, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Use the raw prediction."""
        return pred.x0, pred.eps

    def after(self, x_next: Tensor, pred: Prediction, level_next: Level) -> Tensor:
        """Leave the new state."""
        return x_next


class EpsilonScaling(Identity):
    """Divide eps by ``b + k*i`` before x0_hat is formed (Ning et al. 2024, ADM-ES).

    i = 0 is the least noisy of the visited levels, as in the published code, which divides eps inside x0_hat only;
    its DDIM re-derives eps from x0_hat, so both terms of a step use the scaled eps. b > 1 removes less noise.
    The learned variance is untouched.

    Args:
        levels: the walk's levels, noisiest first, ending in the clean level.
        b: divisor at i = 0.
        k: slope a solver step.

    Raises:
        ValueError: a divisor of the walk is not positive and finite.
    """

    def __init__(self, levels: Sequence[Level], b: float, k: float = 0.0) -> None:
        noisy = list(reversed(levels[:-1]))
        self._divisor = {level: b + k * i for i, level in enumerate(noisy)}
        self._uniform = b if k == 0 else None  # also at levels that churn made
        if not all(0 < divisor < math.inf for divisor in self._divisor.values()):
            worst = min(self._divisor.values())
            raise ValueError(f"epsilon scaling by {b} + {k}*i reaches {worst:g}; it must stay positive and finite")

    def prediction(self, pred: Prediction, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Return x0_hat of the scaled eps, and the scaled eps."""
        divisor = self._divisor[level] if self._uniform is None else self._uniform
        if divisor == 1.0:  # off: not even a rounding error
            return pred.x0, pred.eps
        eps = pred.eps / divisor
        return (x - level.sigma * eps) / level.alpha, eps
