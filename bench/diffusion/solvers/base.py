"""The base of all solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from bench.diffusion.types import Level, Prediction


class Solver(ABC):
    """The base of all solvers.

    Attributes:
        stages: the most network calls of a step, 1 or 2.
        dtype: of the states, None for that of the start.
        multistep: whether a step uses predictions of earlier ones.
    """

    stages = 1
    dtype: torch.dtype | None = None
    multistep = False

    def begin(self) -> Solver:
        """Return the solver for one walk: multistep solvers return one without memory."""
        return self

    def churned(self, level: Level) -> tuple[Level, float]:
        """Return the level that a step starts from, and the variance of the noise added to the state to reach it."""
        return level, 0.0

    def is_random(self, level_next: Level) -> bool:
        """Tell whether the update to a level takes noise."""
        return False

    @abstractmethod
    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Return x_next.

        Args:
            x: state [B, C, H, W] at ``level``.
            pred: the prediction for x; its x0 and eps are corrected and clipped.
            level: where the step starts.
            level_next: where it goes.
            z: unit noise [B, C, H, W], a single 0 where the update takes none.
        """

    def correct(self, x: Tensor, pred: Prediction, pred_next: Prediction, level: Level, level_next: Level) -> Tensor:
        """Return x_next anew, from the predictions at both ends of the step; solvers of two stages alone do."""
        raise TypeError(f"{type(self).__name__} makes one call a step and corrects nothing")


def guided(pred: Prediction, level: Level) -> tuple[Tensor, Tensor]:
    """Return the (x0, eps) of the score with a classifier's added (Dhariwal & Nichol 2021, algorithm 2)."""
    if pred.guidance is None:
        return pred.x0, pred.eps
    return pred.x0 + level.sigma**2 / level.alpha * pred.guidance, pred.eps - level.sigma * pred.guidance
