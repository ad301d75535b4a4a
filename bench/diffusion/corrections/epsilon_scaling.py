"""Epsilon scaling (Ning et al. 2024): the predicted noise is divided by b + k i, in four published ways."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from bench.diffusion.corrections.base import ByLevel, Correction, with_noise
from bench.diffusion.types import Call, Level, Prediction

_UNIT = 1e-6  # how far from 1 the alpha + sigma of a flow may round


class EpsilonScaling(Correction):
    """Divide eps by ``b + k*i`` in x0_hat and in the direction (ADM-ES; EDM-ES, ``edm_sampler``).

    i = 0 is the least noisy of the visited levels, as in the published code, which divides eps inside x0_hat only;
    its DDIM re-derives eps from x0_hat, so both terms of a step use the scaled eps. b > 1 removes less noise.
    The learned variance is untouched, and so is a level without signal (alpha = 0, where a flow starts). At a level
    between two visited ones, which churn and the time shift make, the divisor is interpolated in t.

    Args:
        levels: the walk's levels, noisiest first, ending in the clean level.
        b: divisor at i = 0.
        k: slope a solver step.

    Raises:
        ValueError: a divisor of the walk is not positive and finite.
    """

    neutral: ClassVar[Mapping[str, Any]] = {"b": 1.0, "k": 0.0}
    typical: ClassVar[Mapping[str, Any]] = {"b": 1.02}

    def __init__(self, levels: Sequence[Level], b: float, k: float = 0.0) -> None:
        # By index, least noisy first: lambda_t = k t + b of the paper.
        divisors = [b + k * i for i in range(len(levels) - 1)]
        if not all(0 < divisor < math.inf for divisor in divisors):
            raise ValueError(
                f"epsilon scaling by {b} + {k}*i reaches {min(divisors):g}; it must stay positive and finite"
            )
        self._divisor = ByLevel([level.t for level in reversed(levels[:-1])], divisors)

    def prediction(self, pred: Prediction, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Return x0_hat of the scaled eps, and the scaled eps."""
        divisor = self._divisor(call.level.t)
        if isinstance(divisor, float) and divisor == 1.0:  # off: not even a rounding error
            return pred.x0, pred.eps
        return with_noise(pred, x, call.level, pred.eps / divisor)


class X0Scaling(EpsilonScaling):
    """The same in x0_hat alone, the direction keeping the raw eps (LDM-ES, ``ddim.py``).

    Ancestral steps take no direction, so there it is :class:`EpsilonScaling`; Euler and Heun steps take nothing else.
    """

    def prediction(self, pred: Prediction, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Return x0_hat of the scaled eps, and the raw eps; clipping that x0_hat moves it (LDM-ES clips none)."""
        return super().prediction(pred, x, call)[0], pred.eps


class FirstCallScaling(EpsilonScaling):
    """The same, but not in the correcting call of a Heun step (EDM-ES, ``ablation_sampler``)."""

    def prediction(self, pred: Prediction, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Scale a step's first call only."""
        return (pred.x0, pred.eps) if call.stage else super().prediction(pred, x, call)


class VelocityScaling(EpsilonScaling):
    """Divide x - x0_hat by ``b + k*i``, as the epsilon scaling of ComfyUI does.

    In EDM's frame x - x0_hat is sigma eps, so this is :class:`EpsilonScaling`; in a flow it is sigma times the velocity
    eps - x0, the level without signal included.

    Raises:
        ValueError: a divisor is not positive and finite, or levels of another frame, where x - x0_hat is neither.
    """

    def __init__(self, levels: Sequence[Level], b: float, k: float = 0.0) -> None:
        super().__init__(levels, b, k)
        if not all(level.alpha == 1 or abs(level.alpha + level.sigma - 1) < _UNIT for level in levels):
            raise ValueError("velocity scaling is for the levels of EDM and of flows; use epsilon scaling")

    def prediction(self, pred: Prediction, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Return x0_hat of the scaled difference, and the eps that goes with it."""
        divisor = self._divisor(call.level.t)
        if isinstance(divisor, float) and divisor == 1.0:  # off: not even a rounding error
            return pred.x0, pred.eps
        x0 = x - (x - pred.x0) / divisor
        return x0, (x - call.level.alpha * x0) / call.level.sigma  # x = alpha x0 + sigma eps
