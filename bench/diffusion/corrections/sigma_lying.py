"""Sigma lying: the network is told less noise than there is, as users of ComfyUI do ("lying sigma sampler")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from bench.diffusion.corrections.base import Correction, Grid, is_blind
from bench.diffusion.types import Level, Network, Prediction


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
