"""The update of a loop of one's own, read from its states, so that an exact denoiser can walk in its place.

A step is recognised where x_next = a x + b x0_hat + c z with the weights of a known solver, or with weights that least
squares recover and that leave no residual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.diffusion.solvers import DDIM, Ancestral, PosteriorMean, Solver
from bench.diffusion.types import CLEAN, Level, Prediction

KNOWN = (DDIM(), Ancestral("fixed-small"), Ancestral("fixed-large"), PosteriorMean())  # Euler's step is DDIM's
_RESIDUAL = 1e-4  # of the terms' size, in an exact step
_ROUNDING = 1e-6  # of x0_hat made of an eps in float32, in units of sigma / alpha
_ERRORS = 6.0  # standard errors that random steps may be off
_LEAST = 1e-6  # alpha that this is said of
_START = 0.05  # that the variance of the first states may be off
_DEPENDENT = 1e-5  # of 1 - correlation^2 between x and x0_hat, below which their weights cannot be told apart


@dataclass(frozen=True)
class LinearSteps(Solver):
    """Steps x_next = a x + b x0_hat of given weights.

    Attributes:
        weights: (a, b) by the level that a step starts from.
    """

    weights: Mapping[Level, tuple[float, float]]
    multistep = True  # in closed form it is walked as these are, see bench.measure.instruments.gaussian

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Take a step."""
        a, b = self.weights[level]
        return a * x + b * pred.x0


class StepProducts:
    """Inner products of x_next, x, x0_hat and x0_hat clipped to -1 and 1, over all images of one step of a loop."""

    def __init__(self) -> None:
        self._sums: NDArray[np.float64] = np.zeros((4, 4))
        self._count = 0

    def add(self, x_next: Tensor, x: Tensor, x0: Tensor) -> None:
        """Add a batch of a step; all are float32 [B, C, H, W]."""
        rows = torch.stack([x_next, x, x0, x0.clamp(-1, 1)]).flatten(1).cpu().double()
        self._sums += (rows @ rows.T).numpy()
        self._count += rows.shape[1]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Return the mean products of the values, [4, 4]."""
        return self._sums / self._count

    def is_noise_of(self, level: Level) -> bool:
        """Tell whether the states are about as large as pure noise at a level."""
        return abs(self.mean[1, 1] / level.sigma**2 - 1) < _START + _ERRORS * math.sqrt(2 / self._count)

    def fits(self, solver: Solver, level: Level, level_next: Level) -> bool:
        """Tell whether the step is a solver's, x0_hat clipped or not."""
        a, b, c = weights_of(solver, level, level_next)
        return any(self._fits(np.insert([1, -a, 0], place, -b), place, c, level) for place in (2, 3))

    def _fits(self, weights: NDArray[np.float64], place: int, c: float, level: Level) -> bool:
        products = self.mean
        residual = float(weights @ products @ weights)
        rounding = _ROUNDING * abs(weights[place]) * level.sigma / max(level.alpha, _LEAST)
        size = math.sqrt((weights**2 * np.diag(products)).sum())
        if c == 0:
            return residual <= (_RESIDUAL * size + rounding) ** 2
        # The residual is noise of variance c^2, and independent of what the step started from.
        error = _ERRORS / math.sqrt(self._count)
        covariances = (weights @ products)[[1, place]] / np.sqrt(np.diag(products)[[1, place]])
        return abs(residual / c**2 - 1) < error * math.sqrt(2) and bool((np.abs(covariances) < error * c).all())

    def recovered(self) -> tuple[tuple[float, float] | None, float]:
        """Return (a, b) by least squares, None where they leave a residual or cannot be told apart; and the residual.

        The residual is relative to the size of x_next.
        """
        products = self.mean
        square = products[1:3, 1:3]
        independent = np.linalg.det(square) / math.prod(np.diag(square))
        a, b = np.linalg.lstsq(square, products[1:3, 0])[0]
        weights = np.array([1, -a, -b, 0])
        residual = math.sqrt(max(float(weights @ products @ weights), 0) / products[0, 0])
        is_exact = independent > _DEPENDENT and residual < _RESIDUAL
        return ((float(a), float(b)) if is_exact else None), residual


def weights_of(solver: Solver, level: Level, level_next: Level) -> tuple[float, float, float]:
    """Return (a, b, c) of a solver's step x_next = a x + b x0_hat + c z."""
    numbers = torch.eye(3, dtype=torch.float64)  # x, x0_hat and z, one of them 1
    x, x0, z = numbers.unbind()
    a, b, c = solver.update(x, Prediction((x - level.alpha * x0) / level.sigma, x0), level, level_next, z).tolist()
    return a, b, c


def update_of(levels: Sequence[Level], steps: Sequence[StepProducts]) -> tuple[Solver | None, str]:
    """Return the solver that a loop took its steps by, or None and the reason in one line.

    Args:
        levels: of the steps, noisiest first; the last step ends in clean data.
        steps: their products.
    """
    if not steps[0].is_noise_of(levels[0]):
        return None, "the loop does not begin with noise of its first level"
    pairs = list(zip(steps, pairwise((*levels, CLEAN)), strict=True))
    for solver in KNOWN:
        if all(step.fits(solver, *ends) for step, ends in pairs):
            return solver, ""
    weights = {}
    for number, (step, (level, _)) in enumerate(pairs):
        found, residual = step.recovered()
        if found is None:
            return None, (
                f"step {number + 1} is neither DDIM's, Euler's nor an ancestral one, and no other a x + b x0_hat can be"
                f" read from its states (residual {residual:.2g})"
            )
        weights[level] = found
    return LinearSteps(weights), ""
