"""The exact sampler of Gaussian data: what a perfect denoiser does on given levels, in closed form.

For x0 ~ N(mean, cov) the exact denoiser is affine in x, and its matrix has the eigenvectors V of cov. So every state is
Gaussian, and its law follows number by number in the basis of V (without clipping). With ``lin`` the eigenvalues of a
step and ``noise`` the variance it adds per pixel:

    var' = lin^2 var + (V * V)^T noise           diagonal of Cov(V^T x)
    S'   = (lin lin^T) * S + V^T diag(noise) V   all of Cov(V^T x)

The diagonal is enough for sums over all pixels (norms, mean variances). Where the noise is the same for all pixels the
matrix stays diagonal, and the diagonal is enough for everything. Only learned variances, which differ between pixels,
need the second line for variances of single pixels and for spectra: a product of D x D matrices at every step.

A gap that this recursion shows is caused by the step count and the variance mode, not by a network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.diffusion.posterior import Posterior
from bench.diffusion.solvers import DDIM, Ancestral, Euler, FlowSDE, PosteriorMean, Solver
from bench.diffusion.types import Level, Prediction

Matrix = NDArray[np.float64]
Energy = Callable[[Matrix], Matrix]  # energies [n, bands] of images [n, D]
LARGEST = 3072  # values of an image whose covariance is decomposed
_ALWAYS, _STEPS = 768, 100  # full matrices are followed up to so many values at all step counts, beyond up to so many


@dataclass(frozen=True)
class GaussianState:
    """A Gaussian state x at a level, joint with the x0 it is paired with, in the basis of the data's eigenvectors V.

    Attributes:
        level: where x stands.
        mean: mean of V^T x, [D].
        variance: diagonal of Cov(V^T x), [D].
        cross: diagonal of Cov(V^T x, V^T x0), [D], which has no other entries; 0 where x is independent of x0.
        inner: Cov(V^T x) without ``noise``: its diagonal [D] where it has no other entries, else [D, D]; None where the
            other entries were not followed.
        noise: variance per pixel [D] of the noise of the last step, None where ``inner`` holds it.
        rows: what a multistep solver made and goes on from, float64 [3, D], None where none did: see
            :meth:`LinearGaussian.step`.
    """

    level: Level
    mean: Matrix
    variance: Matrix
    cross: Matrix
    inner: Matrix | None
    noise: Matrix | None = None
    rows: Tensor | None = None


class LinearGaussian:
    """Gaussian data and the action of the exact denoiser on Gaussian states.

    Args:
        mean: [D].
        cov: [D, D]; decomposed once.
        learned: alpha_bar [T] of the training process, which variance ``learned`` refers to.
    """

    def __init__(self, mean: Matrix, cov: Matrix, learned: Matrix | None = None) -> None:
        values, vectors = np.linalg.eigh(cov)
        self._set(values, vectors.T @ mean, vectors, learned)

    def _set(self, values: Matrix, mean: Matrix, vectors: Matrix | None, learned: Matrix | None) -> None:
        self.values, self.mean, self.learned = values.clip(min=0), mean, learned
        self._recorded: tuple[Matrix, Matrix] | None = None
        self.vectors = vectors
        self.squares = None if vectors is None else vectors**2  # V * V
        self._energies: dict[Energy, Matrix] = {}

    @classmethod
    def of_eigenvalues(cls, values: Matrix, mean: Matrix) -> LinearGaussian:
        """Return the law of eigenvalues [D] and a mean V^T mean [D] whose V is not at hand: sums over pixels only."""
        law = cls.__new__(cls)
        law._set(values, mean, None, None)
        return law

    def trained_on(self, alpha_bars: Matrix | None) -> LinearGaussian:
        """Return the same law with the alpha_bar [T] of another training process; nothing is decomposed again."""
        law = copy.copy(self)
        law.learned = alpha_bars
        return law

    def recorded(self, t: Matrix, fractions: Matrix) -> LinearGaussian:
        """Return the same law whose learned variance is one that a network was seen to predict.

        Args:
            t: training indices [levels], ascending; between them fractions are linear in t, beyond them constant.
            fractions: mean of v per pixel, [levels, D], which weighs log ``large`` against log ``small``.
        """
        law = copy.copy(self)
        law._recorded = t, fractions
        return law

    def follows(self, steps: int) -> bool:
        """Tell whether full matrices are affordable: D products of D x D matrices a step."""
        return len(self.mean) <= _ALWAYS or steps <= _STEPS

    def prior(self, level: Level) -> GaussianState:
        """Return the state of a walk that starts from sigma * noise."""
        zero = np.zeros_like(self.mean)
        variance = zero + level.sigma**2
        return GaussianState(level, zero, variance, zero, variance)

    def forward(self, level: Level) -> GaussianState:
        """Return the state of real noised data, q(x_t)."""
        variance = level.alpha**2 * self.values + level.sigma**2
        return GaussianState(level, level.alpha * self.mean, variance, level.alpha * self.values, variance)

    def gain(self, level: Level) -> Matrix:
        """Return g [D] with E[V^T x0 | x] = V^T mean + g (V^T x - alpha V^T mean)."""
        return level.alpha * self.values / (level.alpha**2 * self.values + level.sigma**2)

    def posterior(self, level: Level) -> Matrix:
        """Return the eigenvalues [D] of Cov(x0 | x)."""
        return self.values * level.sigma**2 / (level.alpha**2 * self.values + level.sigma**2)

    def eps_energy(self, state: GaussianState) -> float:
        """Return E||eps_hat||^2 of the exact denoiser, eps_hat = sigma Cov(q(x_t))^-1 (x - alpha mean)."""
        factor, offset = self._eps_map(state.level)
        return float((factor**2 * state.variance + (factor * state.mean + offset) ** 2).sum())

    def error_energy(self, state: GaussianState) -> float:
        """Return E||x0_hat - x0||^2 of the exact denoiser on a state paired with x0."""
        # x0_hat - x0 = g (x - alpha mean) - (x0 - mean)
        g, shift = self.gain(state.level), state.mean - state.level.alpha * self.mean
        return float((g**2 * (state.variance + shift**2) - 2 * g * state.cross + self.values).sum())

    def _eps_map(self, level: Level) -> tuple[Matrix, Matrix]:
        """Return (a, b), [D] each, of V^T eps_hat = a V^T x + b."""
        slope = level.sigma / (level.alpha**2 * self.values + level.sigma**2)
        return slope, -level.alpha * slope * self.mean

    def step(self, state: GaussianState, level_next: Level, solver: Solver, follow: bool = True) -> GaussianState:
        """Take one step of a solver.

        Multistep solvers are linear in the state and the earlier x0_hat, so that they walk the mean, the standard
        deviations and the covariances with x0 as they walk states: three rows, of which the mean alone has an offset.

        Args:
            state: where the step starts; :meth:`churned` states are churned again.
            level_next: where it goes.
            solver: the update rule; a multistep solver that has begun goes on from its earlier steps.
            follow: whether to follow the full matrix where the noise differs between pixels.

        Raises:
            TypeError: a solver without a closed form.
        """
        state = self.churned(self.folded(state, follow), solver)
        match solver:
            case Ancestral(variance=variance):
                return self._ancestral(state, level_next, variance)
            case PosteriorMean():
                return self._ancestral(state, level_next, "none")
            case DDIM(eta=eta):
                return self._ddim(state, level_next, eta)
            case Euler(stages=stages, straight=straight):
                return self._heun(state, level_next, stages, straight)
            case FlowSDE():
                return self._sde(state, level_next)
            case _ if solver.multistep:
                return self._multistep(state, level_next, solver)
        raise TypeError(f"no closed form of {type(solver).__name__} is known")

    def walk(
        self, start: GaussianState, levels: Sequence[Level], solver: Solver, follow: bool = True
    ) -> Iterator[GaussianState]:
        """Yield the state after each step of a free-running walk; arguments as in :meth:`step`."""
        state, solver = start, solver.begin()
        for level_next in levels[1:]:
            state = self.step(state, level_next, solver, follow)
            yield state

    def folded(self, state: GaussianState, follow: bool = True) -> GaussianState:
        """Return a state whose ``inner`` holds the noise too; it is None where that is not followed."""
        if state.noise is None:
            return state
        if state.inner is None or self.vectors is None or not follow:
            return replace(state, inner=None, noise=None)
        # Beyond 768 values a full matrix is float32, with a relative error of 1e-6.
        dtype: Any = np.float64 if len(self.mean) <= _ALWAYS else np.float32
        roots = (np.sqrt(state.noise)[:, None] * self.vectors).astype(dtype)
        inner = roots.T @ roots  # V^T diag(noise) V
        inner += np.diag(state.inner) if state.inner.ndim == 1 else state.inner
        return replace(state, inner=inner, noise=None)

    @staticmethod
    def churned(state: GaussianState, solver: Solver) -> GaussianState:
        """Return the state that a step starts from, with the noise of the solver's churn."""
        level, added = solver.churned(state.level)
        if not added:
            return state
        assert state.inner is None or state.inner.ndim == 1  # these solvers add the same noise to all pixels
        variance = state.variance + added
        return replace(state, level=level, variance=variance, inner=None if state.inner is None else variance)

    def _ancestral(self, state: GaussianState, level_next: Level, variance: str) -> GaussianState:
        """Take one DDPM step (Ho et al. 2020, eq. 7): c1 x0_hat + c2 x and noise of a variance mode, or ``none``."""
        level = state.level
        q, g = Posterior.between(level, level_next), self.gain(level)
        linear, offset = q.c1 * g + q.c2, q.c1 * (1 - level.alpha * g) * self.mean
        if variance == "exact":  # Cov(x_next | x) has the same eigenvectors
            return self._move(state, level_next, linear, offset, q.small + q.c1**2 * self.posterior(level))
        if level_next.sigma == 0 or variance == "none":
            return self._move(state, level_next, linear, offset, 0.0)
        if variance != "learned":
            return self._move(state, level_next, linear, offset, q.std(variance) ** 2)
        # The noise of each pixel waits outside of the matrix until a further step needs it there.
        reached = self._move(state, level_next, linear, offset, 0.0)
        noise = self._learned_noise(level, q)
        if noise is None or self.squares is None:
            raise ValueError("variance 'learned' needs the training process's alpha_bar and the data's eigenvectors")
        return replace(reached, variance=reached.variance + self.squares.T @ noise, noise=noise)

    def _learned_noise(self, level: Level, q: Posterior) -> Matrix | None:
        """Return the variance per pixel that the exact denoiser would learn, or that a network was seen to, [D]."""
        if self.squares is None or (self.learned is None and self._recorded is None):
            return None
        if self._recorded is not None:
            t, fractions = self._recorded
            place = float(np.interp(level.t, t, np.arange(len(t))))
            low, high = math.floor(place), math.ceil(place)
            v = fractions[low] + (place - low) * (fractions[high] - fractions[low])
        else:
            assert self.learned is not None  # asked above
            variance = self.squares @ self.posterior(level)  # Var(x0 | x) per pixel
            v = learned_fraction(self.learned, int(level.t), variance)
        return np.exp(v * np.log(q.large) + (1 - v) * np.log(q.small))

    def _ddim(self, state: GaussianState, level_next: Level, eta: float) -> GaussianState:
        level = state.level
        g, noise = self.gain(level), eta**2 * Posterior.between(level, level_next).small
        direction = max(level_next.sigma**2 - noise, 0.0) ** 0.5
        x0_weight, x_weight = level_next.alpha - direction * level.alpha / level.sigma, direction / level.sigma
        offset = x0_weight * (1 - level.alpha * g) * self.mean  # x0_hat = g x + (1 - alpha g) mean
        return self._move(state, level_next, x0_weight * g + x_weight, offset, noise)

    def _heun(self, state: GaussianState, level_next: Level, stages: int, straight: bool) -> GaussianState:
        """Take one Euler step (1 stage), corrected (2 stages) unless it ends in the clean level.

        In x / alpha over sigma / alpha the step is x + d eps(x), then x + d (eps(x) + eps(x')) / 2. On a straight path
        it is the same in x over sigma, with the velocity eps - x0.
        """
        now, then = state.level, level_next
        slopes = self._velocity_map if straight else self._eps_map
        start, end = (1.0, 1.0) if straight else (now.alpha, then.alpha)
        distance = then.sigma / end - now.sigma / start
        slope, offset = slopes(now)
        linear, shift = end * (1 / start + distance * slope), end * distance * offset
        if stages == 2 and then.sigma > 0:  # the mean of the slopes at both ends
            slope_next, offset_next = slopes(then)
            slope = (slope + slope_next * linear) / 2
            offset = (offset + slope_next * shift + offset_next) / 2
            linear, shift = end * (1 / start + distance * slope), end * distance * offset
        return self._move(state, then, linear, shift, 0.0)

    def _velocity_map(self, level: Level) -> tuple[Matrix, Matrix]:
        """Return (a, b), [D] each, of V^T (eps_hat - x0_hat) = a V^T x + b."""
        (slope, offset), g = self._eps_map(level), self.gain(level)
        return slope - g, offset - (1 - level.alpha * g) * self.mean

    def _sde(self, state: GaussianState, level_next: Level) -> GaussianState:
        """Take one step of :class:`FlowSDE`: x - d (3 eps / 2 - x0) and noise of variance sigma d; the last is x0."""
        level, g = state.level, self.gain(state.level)
        if level_next.sigma == 0:
            return self._move(state, level_next, g, (1 - level.alpha * g) * self.mean, 0.0)
        step = level.sigma - level_next.sigma
        (slope, offset), (eps_slope, eps_offset) = self._velocity_map(level), self._eps_map(level)
        drift, shift = slope + eps_slope / 2, offset + eps_offset / 2
        return self._move(state, level_next, 1 - step * drift, -step * shift, level.sigma * step)

    def _multistep(self, state: GaussianState, level_next: Level, solver: Solver) -> GaussianState:
        """Take one step of a solver that remembers, see :meth:`step`."""
        level, g = state.level, torch.from_numpy(self.gain(state.level))
        x = state.rows  # the very tensor that the solver made
        if x is None:
            x = torch.from_numpy(np.stack([state.mean, np.sqrt(state.variance), state.cross]))
        x0 = g * x
        x0[0] += (1 - level.alpha * g) * torch.from_numpy(self.mean)
        pred = Prediction((x - level.alpha * x0) / level.sigma, x0)
        rows = solver.update(x, pred, level, level_next, torch.zeros(()))
        mean, std, cross = rows.numpy()
        return GaussianState(level_next, mean, std**2, cross, std**2, rows=rows)

    @staticmethod
    def _move(
        state: GaussianState, level: Level, linear: Matrix, offset: Matrix, noise: Matrix | float
    ) -> GaussianState:
        """Return the law of linear * V^T x + offset plus noise that is independent in the basis of V."""
        variance, inner = linear**2 * state.variance + noise, state.inner
        if inner is not None and inner.ndim == 1:
            inner = variance
        elif inner is not None:  # (lin lin^T) * S + noise on the diagonal
            inner = inner * np.outer(linear, linear).astype(inner.dtype)
            inner[np.diag_indices_from(inner)] += noise
        return GaussianState(level, linear * state.mean + offset, variance, linear * state.cross, inner)

    def denoised(self, state: GaussianState) -> GaussianState:
        """Return the law of x0_hat on a folded state, as a state of no noise."""
        g = self.gain(state.level)
        clean = replace(state, mean=state.mean - state.level.alpha * self.mean)
        return self._move(clean, replace(state.level, alpha=1.0, sigma=0.0), g, self.mean, 0.0)

    def pixel_variance(self, state: GaussianState) -> Matrix | None:
        """Return the variance of each pixel of x, [D], None where it is not known."""
        if self.vectors is None or self.squares is None or state.inner is None:
            return None
        if state.inner.ndim == 1:
            variance = self.squares @ state.inner
        else:  # diagonal of V S V^T
            vectors = self.vectors.astype(state.inner.dtype)
            variance = ((vectors @ state.inner) * vectors).sum(1, dtype=np.float64)
        return variance if state.noise is None else variance + state.noise

    def residual_variance(self, state: GaussianState) -> Matrix | None:
        """Return the variance of each pixel of x - alpha x0, [D], None where it is not known."""
        variance, alpha = self.pixel_variance(state), state.level.alpha
        if variance is None or self.squares is None:
            return None
        return variance + self.squares @ (alpha**2 * self.values - 2 * alpha * state.cross)

    def band_energy(self, state: GaussianState, energy: Energy) -> Matrix | None:
        """Return the expected energies of bands of x, [bands], None where they are not known.

        Args:
            state: the law of x.
            energy: quadratic energies of images, such as a radial spectrum.
        """
        if self.vectors is None or state.inner is None:
            return None
        images = self.vectors.T  # [D, D], one eigenvector a row
        if state.inner.ndim == 1:
            if energy not in self._energies:
                self._energies[energy] = energy(images)
            total = state.inner @ self._energies[energy]
        else:
            # The sum over k of the bilinear form of v_k and (V S)_k; q(a + b) - q(a - b) is four times that form.
            others = state.inner @ images.astype(state.inner.dtype)
            total = (energy(images + others) - energy(images - others)).sum(0) / 4
        if state.noise is not None:  # independent pixels
            total = total + energy(np.diag(np.sqrt(state.noise))).sum(0)
        mean_image = self.vectors @ state.mean
        return total + energy(mean_image[None])[0]


def learned_fraction(alpha_bars: Matrix, t: int, posterior_variance: Matrix) -> Matrix:
    """Return the fraction v in learned range that the variational bound prefers at training index t (from 0).

    At its optimum the variance of the full-length process equals the true one, beta-tilde plus c1^2 Var(x0 | x_t).
    Samplers of fewer steps use the same v between their own bounds. At t = 0, where no noise is added, v is 0.

    Args:
        alpha_bars: [T] of the training process.
        t: training index.
        posterior_variance: Var(x0 | x_t) per pixel, any shape.
    """
    if t == 0:
        return np.zeros_like(posterior_variance)
    now, before = (Level(s, alpha_bars[s] ** 0.5, (1 - alpha_bars[s]) ** 0.5) for s in (t, t - 1))
    q = Posterior.between(now, before)
    true_log = np.log(q.small + q.c1**2 * posterior_variance)
    return (true_log - np.log(q.small)) / (np.log(q.large) - np.log(q.small))
