"""Input perturbation without training: what a network trained with it would say, asked of one trained without.

DDPM-IP (Ning et al. 2023, algorithm 1) shows the network y = alpha x0 + sigma (eps + gamma xi) and wants eps back. With
s = sqrt(1 + gamma^2) that noise is s eps', eps' = (eps + gamma xi) / s, and eps = eps' / s + r, where r, of variance
gamma^2 / s^2, is independent of eps' and so of y. Hence the regression's optimum is f(y) = E[eps' | y] / s, and y is an
ordinary state, only at the noisier level (alpha, s sigma). Shrunk by c to one that the plain network knows, (c alpha,
c s sigma), it is what the network's own optimum answers: f(y, t) = eps*(c y, t') / s. DDPM-y, the paper's control
(table 7), has eps' for its target: the same without the division.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from bench.diffusion.corrections.base import Correction, Grid, is_blind
from bench.diffusion.types import Level, Network, Prediction

_MOST = 1e6


class InputPerturbation(Correction):
    """Ask about the state as if its noise were s = sqrt(1 + gamma^2) times as strong, and divide eps by s.

    Exact where the network is: this is the optimum of the input-perturbed loss in closed form. A trained ADM-IP differs
    from it by what training adds, so that the two tell regularisation from the two deterministic effects, the shift in
    time and the scaling. It acts in ``ask``: every other correction and every sampler sees a prediction of x at its own
    level, with x0 = (x - sigma eps) / alpha.

    The network is asked on its own family of levels. Variance-preserving: c = 1 / sqrt(alpha^2 + s^2 sigma^2), so that
    alpha_bar' = c^2 alpha_bar. EDM (alpha = 1): c = 1 and sigma' = s sigma, so that D_IP(x; sigma) =
    x - (x - D(x; s sigma)) / s^2. A flow (alpha + sigma = 1): c = 1 / (alpha + s sigma); its first level, without any
    signal, is left as it is. The index t' need not be whole: it is interpolated in the grid, linearly in
    log(sigma / alpha) (a flow's in sigma). Beyond the noisiest level t' stays that level's, while the level's factors
    go on.

    A learned variance's fraction is passed on as the plain network gave it at t'. A trained ADM-IP's own would differ:
    its variational bound takes y for x_t, so it learns the spread of a step from y. A classifier's score is multiplied
    by c, the chain rule's factor. ``x0_cov`` is dropped: at t' it is Cov(x0 | y) of the perturbed process, not the
    Cov(x0 | x_t) that the variance ``exact`` is about, which therefore refuses.

    Args:
        grid: every level the network knows, noisiest first, without the clean one.
        gamma: the perturbation's strength; 0 is the plain sampler, bit for bit.
        scale: divide by s; False emulates DDPM-y.

    Raises:
        ValueError: gamma is negative or not finite, or the grid is of no known family.
    """

    neutral: ClassVar[Mapping[str, Any]] = {"gamma": 0.0}
    typical: ClassVar[Mapping[str, Any]] = {"gamma": 0.1}

    def __init__(self, grid: Sequence[Level], gamma: float, scale: bool = True) -> None:
        if not 0 <= gamma <= _MOST:
            raise ValueError(f"gamma must lie between 0 and {_MOST:g}, not {gamma}")
        self.s, self.scale, self._grid = math.sqrt(1 + gamma**2), scale, Grid(grid)

    def noisier(self, level: Level) -> tuple[float, Level]:
        """Return c, and the level of c y: t' and its factors c alpha and c s sigma (tensors, if one an image)."""
        c, noisier = self._grid.scaled(level, self.s)
        return c, replace(noisier, t=self._grid.t_of(noisier))

    def ask(self, network: Network, x: Tensor, level: Level) -> Prediction:
        """Ask about c x at the noisier level; the prediction is of x at ``level``."""
        if self.s == 1 or is_blind(level):  # off: not even a rounding error
            return network(x, level)
        c, noisier = self.noisier(level)
        pred = network(c * x, noisier)
        eps = pred.eps / self.s if self.scale else pred.eps  # f(y, t) = eps*(c y, t') / s
        guidance = None if pred.guidance is None else c * pred.guidance  # grad_x log p(y | c x) = c grad log p
        x0 = (x - level.sigma * eps) / level.alpha
        return replace(pred, eps=eps, x0=x0, x0_cov=None, guidance=guidance)
