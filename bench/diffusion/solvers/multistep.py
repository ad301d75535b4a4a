"""Multistep solvers of second order: DPM-Solver++(2M) and UniPC, in data prediction, for every frame."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.solvers.base import Solver
from bench.diffusion.types import Level, Prediction


def _log_snr(level: Level) -> float:
    """Return lambda = log(alpha / sigma), minus infinity without signal.

    Raises:
        ValueError: a level of one an image, as the time shift makes.
    """
    alpha: Any = level.alpha
    if isinstance(alpha, Tensor):
        raise ValueError("multistep solvers take the walk's own levels; leave the time shift out")
    return math.log(level.alpha / level.sigma) if alpha > 0 else -math.inf


class _Multistep(Solver):
    """What solvers that remember earlier predictions of x0 share. One object walks once, see :meth:`begin`."""

    dtype: torch.dtype | None = torch.float64
    multistep = True

    def __init__(self) -> None:
        self._memory: list[tuple[float, Tensor]] = []  # (lambda, x0_hat), the latest first
        self._start: tuple[Level, Tensor] | None = None  # where the last step began, corrected
        self._reached: Tensor | None = None  # the state that it ended in

    def begin(self) -> Solver:
        """Return a solver without memory."""
        return type(self)()

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Move to the next level, at last to x0_hat; a solver that corrects makes the state anew before.

        Raises:
            ValueError: guidance, levels of one an image, or a state that is not the solver's own.
        """
        if pred.guidance is not None:
            raise ValueError(f"{type(self).__name__} knows no classifier guidance; use Ancestral or DDIM")
        if self._reached is not None and x is not self._reached:
            raise ValueError(f"{type(self).__name__} goes on from its own states; leave out remedies that move them")
        now = _log_snr(level)
        x = self._corrected(x, pred.x0, now, level)
        self._start = (level, x)
        self._memory = [(now, pred.x0), *self._memory[:1]]
        self._reached = pred.x0 if level_next.is_clean else self._predicted(x, level, level_next)
        return self._reached

    def _corrected(self, x: Tensor, x0: Tensor, now: float, level: Level) -> Tensor:
        """Return the state at ``level``, whose lambda is ``now``, anew from the x0_hat predicted there."""
        return x

    @abstractmethod
    def _weight(self, h: float) -> float:
        """Return the weight of the change of x0_hat, for a step of h in lambda."""

    def _predicted(self, x: Tensor, level: Level, level_next: Level) -> Tensor:
        """Return the second-order step from x in data prediction, of first order without an earlier x0_hat."""
        now, x0 = self._memory[0]
        h = _log_snr(level_next) - now
        # x0_hat held over the step, DDIM's: x' = sigma' / sigma x + alpha' (1 - e^-h) x0_hat.
        x_next = level_next.sigma / level.sigma * x - level_next.alpha * math.expm1(-h) * x0
        if len(self._memory) == 1:
            return x_next
        earlier, x0_earlier = self._memory[1]
        # Half the difference of x0_hat over r = (lambda - lambda_earlier) / h, the length of the step before in h.
        change = h / (now - earlier) / 2 * (x0 - x0_earlier)
        return x_next + level_next.alpha * self._weight(h) * change


class DPMSolverPP2M(_Multistep):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): order 2 from one earlier x0_hat.

    The first step is of first order, and the last, to the clean level, ends in x0_hat.
    """

    def _weight(self, h: float) -> float:
        return -math.expm1(-h)  # 1 - e^-h, that of x0_hat itself


class UniPC(_Multistep):
    """UniPC of order 2 with B(h) = h (Zhao et al. 2023, arXiv 2302.04867, "bh1"), in data prediction.

    Every x0_hat first corrects the state it was predicted at, without another call; the predictor then goes on from the
    corrected state. So a step's ``x`` is the predicted state, which the network saw. A step from a level without signal
    (alpha = 0), where h is infinite, is not corrected.
    """

    def _weight(self, h: float) -> float:
        return h  # B(h)

    def _corrected(self, x: Tensor, x0: Tensor, now: float, level: Level) -> Tensor:
        """Return the state at ``level`` anew, from the one before it and the x0_hat at both ends (UniC-2, UniC-1)."""
        if self._start is None or math.isinf(self._memory[0][0]):
            return x
        (level_before, x_before), (before, x0_before) = self._start, self._memory[0]
        h = now - before
        change = x0 - x0_before
        # UniC-1: one difference, of weight 1/2.
        correction = change / 2
        if len(self._memory) > 1 and math.isfinite(self._memory[1][0]):
            earlier, x0_earlier = self._memory[1]
            r = (earlier - before) / h  # negative
            # The weights solve [[1, 1], [r, 1]] rho = b, b = (phi_2, 2 phi_3) of -h (the paper's eq. 11, B(h) = h).
            # phi_(k+1)(z) = (phi_k(z) - 1 / k!) / z at z = -h, from phi_1(z) = (e^z - 1) / z.
            phi_1 = math.expm1(-h) / -h
            phi_2 = (phi_1 - 1) / -h
            phi_3 = (phi_2 - 0.5) / -h
            rho_earlier = (phi_2 - 2 * phi_3) / (1 - r)
            correction = rho_earlier / r * (x0_earlier - x0_before) + (phi_2 - rho_earlier) * change
        # The first-order step from the corrected state, then alpha B(h) times the weighted differences.
        moved = level.sigma / level_before.sigma * x_before - level.alpha * math.expm1(-h) * x0_before
        return moved + level.alpha * h * correction
