"""The base of all corrections, several of them in a row, and constants that depend on the level."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.diffusion.types import Call, Level, Network, Prediction


class Correction:
    """The base of all corrections, and the plain sampler bit for bit.

    A walk calls the hooks in the order in which they stand here, once a network call.

    Attributes:
        moves: whether ``before`` or ``after`` changes the state, its level or the target between two steps, which
            solvers that remember earlier steps refuse.
        scales_noise: whether ``noise`` changes anything, which a walk without noise has no use for.
        neutral: the constants that switch it off, by their names in the constructor; None where none do.
        typical: constants at work, for those without a default.
    """

    moves = False
    scales_noise = False
    neutral: ClassVar[Mapping[str, Any] | None] = None
    typical: ClassVar[Mapping[str, Any]] = {}

    def before(self, x: Tensor, call: Call) -> tuple[Tensor, Call]:
        """Change the state, the level it is taken to be at, or the target of the step."""
        return x, call

    def ask(self, network: Network, x: Tensor, level: Level) -> Prediction:
        """Ask the network; the prediction is of x at ``level``, whatever the network gets, and counts its calls."""
        return network(x, level)

    def prediction(self, pred: Prediction, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Return the (x0, eps) that the update uses, before clipping."""
        return pred.x0, pred.eps

    def noise(self, z: Tensor) -> Tensor:
        """Change unit noise [B, C, H, W], that of churn before a step and that of the update."""
        return z

    def after(self, x_next: Tensor, pred: Prediction, call: Call) -> Tensor:
        """Change the new state; ``pred`` holds the x0 and eps that the update used."""
        return x_next


class InOrder(Correction):
    """Several corrections in a row: each hook of the first, then that of the second on the result of the first.

    A correction that asks the network about another state is the nearer to the network the later it comes: the second
    one gets the state that the first asks about.
    """

    def __init__(self, corrections: Sequence[Correction]) -> None:
        self.corrections = tuple(corrections)
        self.moves = any(correction.moves for correction in corrections)
        self.scales_noise = any(correction.scales_noise for correction in corrections)

    def before(self, x: Tensor, call: Call) -> tuple[Tensor, Call]:
        """Change state and call, one after another."""
        for correction in self.corrections:
            x, call = correction.before(x, call)
        return x, call

    def ask(self, network: Network, x: Tensor, level: Level) -> Prediction:
        """Ask through all of them; the last one is next to the network."""
        for correction in reversed(self.corrections):
            network = partial(correction.ask, network)
        return network(x, level)

    def prediction(self, pred: Prediction, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Change x0 and eps, one after another."""
        for correction in self.corrections:
            x0, eps = correction.prediction(pred, x, call)
            pred = replace(pred, x0=x0, eps=eps)
        return pred.x0, pred.eps

    def noise(self, z: Tensor) -> Tensor:
        """Change the noise, one after another."""
        for correction in self.corrections:
            z = correction.noise(z)
        return z

    def after(self, x_next: Tensor, pred: Prediction, call: Call) -> Tensor:
        """Change the new state, one after another."""
        for correction in self.corrections:
            x_next = correction.after(x_next, pred, call)
        return x_next


def with_noise(pred: Prediction, x: Tensor, level: Level, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x0, eps) of a changed eps, x = alpha x0 + sigma eps; the raw pair where alpha is 0.

    Args:
        pred: the raw prediction, which a state without signal keeps: every eps but x itself contradicts it.
        x: state [B, C, H, W] at ``level``.
        level: of the state.
        eps: the changed noise.
    """
    alpha: Any = level.alpha
    if isinstance(alpha, Tensor):
        blind = alpha == 0
        x0 = (x - level.sigma * eps) / torch.where(blind, torch.ones_like(alpha), alpha)
        return torch.where(blind, pred.x0, x0), torch.where(blind, pred.eps, eps)
    if alpha == 0:
        return pred.x0, pred.eps
    return (x - level.sigma * eps) / alpha, eps


_UNIT = 1e-6  # how far from 1 a family's size may round
# What is 1 at every level of a family.
_SIZES: Mapping[str, Callable[[Level], float]] = {
    "edm": lambda level: level.alpha,
    "vp": lambda level: level.alpha**2 + level.sigma**2,
    "flow": lambda level: level.alpha + level.sigma,
}


def is_blind(level: Level) -> bool:
    """Tell whether a state holds no signal, as where a flow starts."""
    alpha: Any = level.alpha
    return not isinstance(alpha, Tensor) and alpha == 0


class Grid:
    """The levels that a network knows, and where others lie among them.

    Args:
        levels: noisiest first, without the clean one.

    Raises:
        ValueError: a clean level, or levels of no known family.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        families = [name for name, size in _SIZES.items() if all(abs(size(level) - 1) < _UNIT for level in levels)]
        if not levels or any(level.is_clean for level in levels) or not families:
            raise ValueError(
                "the grid must hold noisy levels, variance preserving (alpha^2 + sigma^2 = 1), EDM's (alpha = 1) or a"
                " flow's (alpha + sigma = 1)"
            )
        self.family, ascending = families[0], list(reversed(levels))
        self._t = ByLevel([self._position(level) for level in ascending], [level.t for level in ascending])

    def _position(self, level: Level) -> Any:
        """Return where a level lies: at its sigma in a flow, where t is linear in it, else at log(sigma / alpha)."""
        if self.family == "flow":
            return level.sigma
        ratio: Any = level.sigma / level.alpha
        return ratio.log() if isinstance(ratio, Tensor) else math.log(ratio)

    def t_of(self, level: Level) -> Any:
        """Return the t of a level's alpha and sigma, interpolated; beyond the grid that of its end.

        A network that is asked without a time is asked so at every level.
        """
        if level.is_timeless:
            return level.t
        return self._t(self._position(level))

    def scaled(self, level: Level, s: float) -> tuple[Any, Level]:
        """Return c, and the family's level of c alpha and c s sigma: that of c x where x has s times the noise."""
        sigma = s * level.sigma
        c: Any = 1.0  # EDM's frame: the signal keeps its size
        if self.family == "vp":  # back to unit variance: alpha_bar' = c^2 alpha_bar
            c = ((level.alpha**2 + level.sigma**2) / (level.alpha**2 + sigma**2)) ** 0.5
        elif self.family == "flow":  # back to alpha + sigma = 1
            c = 1 / (level.alpha + sigma)
        return c, replace(level, alpha=c * level.alpha, sigma=c * sigma)


class ByLevel:
    """A piecewise linear function of a level's ``t``, constant outside its knots.

    Args:
        t: knots, strictly ascending.
        values: one a knot.
    """

    def __init__(self, t: Sequence[float], values: Sequence[float]) -> None:
        self.t, self.values = np.asarray(t, dtype=np.float64), np.asarray(values, dtype=np.float64)
        if len(self.t) != len(self.values) or not len(self.t) or (np.diff(self.t) <= 0).any():
            raise ValueError("knots must ascend, and have one value each")
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, t: Any) -> Any:
        """Return the value at t, a float; for a tensor ``t``, one value an element."""
        if not isinstance(t, Tensor):
            return float(np.interp(t, self.t, self.values))
        knots, values = self._on(t)
        if len(knots) == 1:
            return values.expand_as(t)
        right = torch.searchsorted(knots, t.contiguous()).clamp(1, len(knots) - 1)
        low, high = values[right - 1], values[right]
        # Linear between the knots on both sides; the clamp makes it constant outside.
        share = ((t - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
        return low + share * (high - low)

    def _on(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return knots and values where ``t`` is; they are copied there once."""
        place = (t.device, t.dtype)
        if place not in self._copies:
            knots, values = (torch.as_tensor(row, dtype=t.dtype, device=t.device) for row in (self.t, self.values))
            self._copies[place] = (knots, values)
        return self._copies[place]
