"""Solvers that serve every frame: ancestral sampling, its mean alone, and DDIM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.diffusion.posterior import Posterior, root, sample_exact, step_log_variance
from bench.diffusion.solvers.base import Solver, guided
from bench.diffusion.types import Level, Prediction

VARIANCES = ("learned", "fixed-small", "fixed-large", "exact")


@dataclass(frozen=True)
class Ancestral(Solver):
    """DDPM sampling: the posterior mean of Ho et al. 2020, eq. 7, at x0_hat, plus noise of a chosen variance.

    Attributes:
        variance: ``fixed-small`` is the posterior variance, ``fixed-large`` the beta of the respaced process,
            ``learned`` interpolates their logarithms by the network's fraction, ``exact`` adds the variance of x0 given
            x_t (closed-form denoisers only). The last step, to the clean level, adds no noise, except for ``exact``.

    Raises:
        ValueError: an unknown variance.
    """

    variance: str = "learned"

    def __post_init__(self) -> None:
        """Check the variance."""
        if self.variance not in VARIANCES:
            raise ValueError(f"unknown variance {self.variance!r}; choose {', '.join(VARIANCES)}")

    def is_random(self, level_next: Level) -> bool:
        """Tell whether noise is added: to the clean level by ``exact`` alone."""
        return self.variance == "exact" or not level_next.is_clean

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Draw x_next ~ p(x_next | x)."""
        q = Posterior.between(level, level_next)
        if self.variance == "exact":
            # The denoiser knows the posterior mean itself, so the guided mean is known too.
            return q.c1 * guided(pred, level)[0] + q.c2 * x + sample_exact(q, pred, z)
        mean = q.c1 * pred.x0 + q.c2 * x  # Ho et al. 2020, eq. 7
        if level_next.is_clean:
            return mean
        log_variance = step_log_variance(self.variance, q, pred)
        scale = torch.exp(0.5 * log_variance) if isinstance(log_variance, Tensor) else q.std(self.variance)
        if pred.guidance is not None:
            mean = mean + scale**2 * pred.guidance  # Dhariwal & Nichol 2021, algorithm 1
        return mean + scale * z


@dataclass(frozen=True)
class PosteriorMean(Solver):
    """The mean of Ho et al. 2020, eq. 7, at x0_hat, without noise at any step.

    This is the "deterministic" chain of the DDPM-IP paper (figure 5). It is not DDIM: every state lacks the noise that
    ancestral sampling adds. With an exact denoiser of Gaussian data each step is E[x_next | x], so by the tower rule
    the chain ends in E[x0 | x_t], the blurred guess of least squared error: grey where x_t says nothing about x0.
    """

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Move to the mean of q(x_next | x, x0_hat)."""
        q = Posterior.between(level, level_next)
        return q.c1 * guided(pred, level)[0] + q.c2 * x


@dataclass(frozen=True)
class DDIM(Solver):
    """Song et al. 2021, eq. 12 and 16; ``eta`` = 0 is deterministic, 1 has the posterior variance."""

    eta: float = 0.0

    def is_random(self, level_next: Level) -> bool:
        """Tell whether noise is added: nowhere at ``eta`` 0."""
        return self.eta != 0 and not level_next.is_clean

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Move along x0_hat and eps to the next level."""
        x0, eps = guided(pred, level)
        if not self.is_random(level_next):
            return level_next.alpha * x0 + level_next.sigma * eps
        noise_std = self.eta * Posterior.between(level, level_next).std("fixed-small")  # eq. 16
        direction = root(level_next.sigma**2 - noise_std**2)
        return level_next.alpha * x0 + direction * eps + noise_std * z  # eq. 12
