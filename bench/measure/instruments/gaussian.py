"""The exact linear-Gaussian recursion: what a perfect denoiser of Gaussian data does on given levels.

For x0 ~ N(mean, cov) the exact denoiser is linear in x, so mean and covariance of every state follow in closed form
(no clipping). Whatever gap this recursion shows is caused by the step count and the variance mode alone, not by a
network; every measured gap is read against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bench.diffusion.posterior import Posterior
from bench.diffusion.solvers import DDIM, Ancestral, Euler, PosteriorMean, Solver
from bench.diffusion.types import Level

__all__ = ["GaussianState", "LinearGaussian", "ddim_map", "learned_fraction"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class GaussianState:
    """A Gaussian state x at ``level``, joint with the x0 it is paired with.

    ``mean`` [D] and ``cov`` [D, D] are those of x; ``cross`` [D, D] is Cov(x, x0), 0 where x forgot x0.
    """

    level: Level
    mean: Matrix
    cov: Matrix
    cross: Matrix

    def residual_variance(self, x0_cov: Matrix) -> Matrix:
        """Return the per-pixel variance of x - alpha x0, [D]."""
        alpha = self.level.alpha
        return np.diag(self.cov) - 2 * alpha * np.diag(self.cross) + alpha**2 * np.diag(x0_cov)


class LinearGaussian:
    """Gaussian data and the exact denoiser's action on Gaussian states.

    Args:
        mean: [D].
        cov: [D, D].
        learned: noise schedule's alpha_bar [T] of the training process, which a learned variance is tied to;
            needed for variance ``learned`` only.
    """

    def __init__(self, mean: Matrix, cov: Matrix, learned: Matrix | None = None) -> None:
        self.mean, self.cov, self.learned = mean, cov, learned
        values, self.vectors = np.linalg.eigh(cov)
        self.values = values.clip(min=0)

    def prior(self, level: Level) -> GaussianState:
        """Return the state of a walk that starts from sigma * noise."""
        size = len(self.mean)
        return GaussianState(level, np.zeros(size), level.sigma**2 * np.eye(size), np.zeros((size, size)))

    def forward(self, level: Level) -> GaussianState:
        """Return the state of real noised data, q(x_t)."""
        noise = level.sigma**2 * np.eye(len(self.mean))
        return GaussianState(level, level.alpha * self.mean, level.alpha**2 * self.cov + noise, level.alpha * self.cov)

    def gain(self, level: Level) -> tuple[Matrix, Matrix]:
        """Return (G, P): E[x0 | x] = mean + G (x - alpha mean), and P = Cov(x0 | x)."""
        total = level.alpha**2 * self.values + level.sigma**2
        gain = (self.vectors * (level.alpha * self.values / total)) @ self.vectors.T
        return gain, (self.vectors * (self.values * level.sigma**2 / total)) @ self.vectors.T

    def eps_energy(self, state: GaussianState) -> float:
        """Return E||eps_hat||^2 of the exact denoiser on a state.

        eps_hat = sigma Cov(x)^-1 (x - alpha mean), with Cov(x) that of real noised data.
        """
        level = state.level
        factor = level.sigma / (level.alpha**2 * self.values + level.sigma**2)
        shift = self.vectors.T @ (state.mean - level.alpha * self.mean)
        spread = np.diag(self.vectors.T @ state.cov @ self.vectors)
        return float((factor**2 * (spread + shift**2)).sum())

    def ancestral(self, state: GaussianState, level_next: Level, variance: str) -> GaussianState:
        """Take one DDPM step of ``fixed-small``, ``fixed-large``, ``learned``, ``exact`` or no (``none``) variance."""
        level = state.level
        q = Posterior.between(level, level_next)
        gain, post = self.gain(level)
        eye = np.eye(len(self.mean))
        if variance == "exact":
            noise = q.small * eye + q.c1**2 * post
        elif level_next.sigma == 0 or variance == "none":
            noise = 0 * eye
        elif variance == "learned":
            v = learned_fraction(self._alpha_bars(), int(level.t), np.diag(post))
            noise = np.diag(np.exp(v * np.log(q.large) + (1 - v) * np.log(q.small)))
        else:
            noise = q.std(variance) ** 2 * eye
        return self._move(
            state, level_next, q.c1 * gain + q.c2 * eye, q.c1 * (self.mean - level.alpha * gain @ self.mean), noise
        )

    def ddim(self, state: GaussianState, level_next: Level, eta: float) -> GaussianState:
        """Take one DDIM step."""
        level = state.level
        gain, _ = self.gain(level)
        noise = eta**2 * Posterior.between(level, level_next).small
        x0_weight, x_weight = ddim_map(level, level_next, noise)
        eye = np.eye(len(self.mean))
        offset = x0_weight * (self.mean - level.alpha * gain @ self.mean)
        return self._move(state, level_next, x0_weight * gain + x_weight * eye, offset, noise * eye)

    def heun(self, state: GaussianState, level_next: Level, stages: int) -> GaussianState:
        """Take one Euler step (1 stage), corrected (2 stages) unless it ends in the clean level.

        In x / alpha over sigma / alpha the step is x + d eps(x), then x + d (eps(x) + eps(x')) / 2; the exact
        denoiser's eps is affine in x.
        """
        now, then = state.level, level_next
        distance = then.sigma / then.alpha - now.sigma / now.alpha
        eye = np.eye(len(self.mean))
        slope, offset = self._eps_map(now)
        linear, shift = then.alpha * (eye / now.alpha + distance * slope), then.alpha * distance * offset
        if stages == 2 and then.sigma > 0:
            slope_next, offset_next = self._eps_map(then)
            average, middle = (slope + slope_next @ linear) / 2, (offset + slope_next @ shift + offset_next) / 2
            linear, shift = then.alpha * (eye / now.alpha + distance * average), then.alpha * distance * middle
        return self._move(state, then, linear, shift, 0 * eye)

    def _eps_map(self, level: Level) -> tuple[Matrix, Matrix]:
        """Return (A, b) of the exact eps_hat = A x + b = sigma Cov(x)^-1 (x - alpha mean)."""
        factor = level.sigma / (level.alpha**2 * self.values + level.sigma**2)
        slope = (self.vectors * factor) @ self.vectors.T
        return slope, -level.alpha * slope @ self.mean

    @staticmethod
    def stirred(state: GaussianState, solver: Solver) -> GaussianState:
        """Return the state that a solver's step starts from, with the noise of its churn."""
        level, added = solver.churned(state.level)
        return replace(state, level=level, cov=state.cov + added * np.eye(len(state.mean))) if added else state

    def step(self, state: GaussianState, level_next: Level, solver: Solver) -> GaussianState:
        """Take one step of a solver.

        Raises:
            TypeError: a solver that has no closed form here.
        """
        state = self.stirred(state, solver)
        match solver:
            case Ancestral(variance=variance):
                return self.ancestral(state, level_next, variance)
            case PosteriorMean():
                return self.ancestral(state, level_next, "none")
            case DDIM(eta=eta):
                return self.ddim(state, level_next, eta)
            case Euler(stages=stages):
                return self.heun(state, level_next, stages)
        raise TypeError(f"no closed form of {type(solver).__name__} is known")

    def walk(self, start: GaussianState, levels: Sequence[Level], solver: Solver) -> Iterator[GaussianState]:
        """Yield the state after each step of a free-running walk."""
        state = start
        for level_next in levels[1:]:
            state = self.step(state, level_next, solver)
            yield state

    def _alpha_bars(self) -> Matrix:
        if self.learned is None:
            raise ValueError("variance 'learned' needs the training process's alpha_bar")
        return self.learned

    def _move(self, state: GaussianState, level: Level, linear: Matrix, offset: Matrix, noise: Matrix) -> GaussianState:
        cov = linear @ state.cov @ linear.T + noise
        return GaussianState(level, linear @ state.mean + offset, cov, linear @ state.cross)


def ddim_map(level: Level, level_next: Level, noise: float) -> tuple[float, float]:
    """Return the weights of x0_hat and of x in a DDIM step whose noise has variance ``noise``."""
    direction = max(level_next.sigma**2 - noise, 0.0) ** 0.5
    return level_next.alpha - direction * level.alpha / level.sigma, direction / level.sigma


def learned_fraction(alpha_bars: Matrix, t: int, posterior_variance: Matrix) -> Matrix:
    """Return the fraction v in learned range that the variational bound prefers at training index t (from 0).

    At its optimum a network's variance of the full-length process equals the true one, beta-tilde plus
    c1^2 Var(x0 | x_t); samplers of fewer steps reuse the same v between their own bounds. At t = 0, where no noise is
    added, 0 is returned.

    Args:
        alpha_bars: [T] of the training process.
        t: training index.
        posterior_variance: Var(x0 | x_t) per pixel, [D].
    """
    if t == 0:
        return np.zeros_like(posterior_variance)
    now, before = (Level(s, alpha_bars[s] ** 0.5, (1 - alpha_bars[s]) ** 0.5) for s in (t, t - 1))
    q = Posterior.between(now, before)
    wanted = np.log(q.small + q.c1**2 * posterior_variance)
    return (wanted - np.log(q.small)) / (np.log(q.large) - np.log(q.small))
