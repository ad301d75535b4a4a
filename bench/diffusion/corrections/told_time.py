"""What the network is told of the time: less noise than there is, or, a second time, nothing.

Sigma lying is what users of ComfyUI do ("lying sigma sampler"). Noise awareness guidance (NAG) is of Zhong et al., ICLR
2026, arXiv 2510.12497.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from bench.diffusion.corrections.base import Correction, Grid, is_blind
from bench.diffusion.types import NULL_TIME, Level, Network, Prediction


class SigmaLying(Correction):
    """Tell the network that a state's noise is sigma (1 - d); the update keeps the true sigma.

    With D(y; sigma) the denoiser in the frame alpha = 1, x0_hat = D(y; (1 - d) sigma), and eps is made anew from the
    state and that x0_hat. So d > 0 leaves noise in x0_hat, which ends as detail. A flow is told t (1 - d) about the
    unscaled state, x0_hat = x - (1 - d) t v, as ComfyUI's velocity models are; its first level, without any signal, is
    told the truth. Variance-preserving states are shrunk to the level of that ratio sigma / alpha. The released sampler
    (``lying_sigma_sampler``, which adds d with the other sign, for a range of levels) has no paper.

    A learned variance's fraction is passed on as the network gave it at the other level. ``x0_cov`` is dropped.

    Args:
        grid: every level the network knows, noisiest first, without the clean one.
        d: the share of sigma that is kept from the network, below 1; 0 is the plain sampler, bit for bit.

    Raises:
        ValueError: d is not between -1 and 1, or the grid is of no known family.
    """

    neutral: ClassVar[Mapping[str, Any]] = {"d": 0.0}

    def __init__(self, grid: Sequence[Level], d: float = 0.05) -> None:
        if not -1 < d < 1:
            raise ValueError(f"d must lie between -1 and 1, not {d}; 0 switches it off")
        self.d, self._grid = d, Grid(grid)

    def ask(self, network: Network, x: Tensor, level: Level) -> Prediction:
        """Ask about the state at the level that the network is told; the prediction is of x at ``level``."""
        if self.d == 0 or is_blind(level):  # off: not even a rounding error
            return network(x, level)
        if self._grid.family == "flow":
            sigma = (1 - self.d) * level.sigma
            told, c = Level(0.0, 1 - sigma, sigma), 1.0
        else:
            c, told = self._grid.scaled(level, 1 - self.d)
        pred = network(c * x, replace(told, t=self._grid.t_of(told)))
        guidance = None if pred.guidance is None else c * pred.guidance
        eps = (x - level.alpha * pred.x0) / level.sigma
        return replace(pred, eps=eps, x0_cov=None, guidance=guidance)


class NoiseAwareness(Correction):
    """Ask twice, with the time and without, and go on from (w + 1) s(x, t) - w s(x).

    The network must have been trained with some of its times dropped. The two answers about one state are mixed as eps
    and x0_hat, which is the mixture of scores -eps / sigma at the state's level. With s(x) the score of the mixture of
    all levels' laws, the added w (s(x, t) - s(x)) is the gradient of w log p(t | x) (Bayes; see
    ``examples/noise_awareness.py`` for what it does to an exact denoiser). A learned variance is that of the call with
    the time.

    Read in others' notes on the paper and in its reviews; the method's section and the code could not be. That the
    network's outputs are mixed, rather than scores of the level that the blind network guesses, is our reading.

    Args:
        w: strength; 0 is the plain sampler, bit for bit, with one call.

    Raises:
        ValueError: w is not a finite number of at least 0.
    """

    neutral: ClassVar[Mapping[str, Any]] = {"w": 0.0}

    def __init__(self, w: float = 1.0) -> None:
        if not 0 <= w < math.inf:
            raise ValueError(f"w must be a finite number of at least 0, not {w}; 0 switches it off")
        self.w = w

    def ask(self, network: Network, x: Tensor, level: Level) -> Prediction:
        """Ask with the time and without; ``plain`` is the former, or what that one calls so.

        The first level of a flow, without any signal, is asked about once.
        """
        told = network(x, level)
        if self.w == 0 or is_blind(level):  # off: not even a rounding error
            return told
        blind = network(x, replace(level, t=NULL_TIME))
        eps, x0 = (a + self.w * (a - b) for a, b in ((told.eps, blind.eps), (told.x0, blind.x0)))
        calls = told.calls + blind.calls
        return replace(told, eps=eps, x0=x0, x0_cov=None, plain=told.plain or told, calls=calls)
