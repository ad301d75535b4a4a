"""Solvers: the update of a state from one level to the next, given a prediction.

Ancestral, PosteriorMean, DDIM and the multistep solvers serve every frame. Euler and Heun (Karras et al. 2022,
algorithms 1 and 2) solve dx / dsigma = eps of the frame alpha = 1; written for x / alpha and sigma / alpha they serve
every frame with a signal at its start. A flow has none: there they solve dx / dsigma = eps - x0 (``straight``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.posterior import Posterior, root, sample_exact, step_log_variance
from bench.diffusion.schedules import edm_position
from bench.diffusion.types import Level, Prediction

VARIANCES = ("learned", "fixed-small", "fixed-large", "exact")


class Solver:
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

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Return x_next.

        Args:
            x: state [B, C, H, W] at ``level``.
            pred: the prediction for x; its x0 and eps are corrected and clipped.
            level: where the step starts.
            level_next: where it goes.
            z: unit noise [B, C, H, W], a single 0 where the update takes none.
        """
        raise NotImplementedError

    def correct(self, x: Tensor, pred: Prediction, pred_next: Prediction, level: Level, level_next: Level) -> Tensor:
        """Return x_next anew, from the predictions at both ends of the step; solvers of two stages alone do."""
        raise TypeError(f"{type(self).__name__} makes one call a step and corrects nothing")


def _guided(pred: Prediction, level: Level) -> tuple[Tensor, Tensor]:
    """Return the (x0, eps) of the score with a classifier's added (Dhariwal & Nichol 2021, algorithm 2)."""
    if pred.guidance is None:
        return pred.x0, pred.eps
    return pred.x0 + level.sigma**2 / level.alpha * pred.guidance, pred.eps - level.sigma * pred.guidance


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
            return q.c1 * _guided(pred, level)[0] + q.c2 * x + sample_exact(q, pred, z)
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
        return q.c1 * _guided(pred, level)[0] + q.c2 * x


@dataclass(frozen=True)
class DDIM(Solver):
    """Song et al. 2021, eq. 12 and 16; ``eta`` = 0 is deterministic, 1 has the posterior variance."""

    eta: float = 0.0

    def is_random(self, level_next: Level) -> bool:
        """Tell whether noise is added: nowhere at ``eta`` 0."""
        return self.eta != 0 and not level_next.is_clean

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Move along x0_hat and eps to the next level."""
        x0, eps = _guided(pred, level)
        if not self.is_random(level_next):
            return level_next.alpha * x0 + level_next.sigma * eps
        noise_std = self.eta * Posterior.between(level, level_next).std("fixed-small")  # eq. 16
        direction = root(level_next.sigma**2 - noise_std**2)
        return level_next.alpha * x0 + direction * eps + noise_std * z  # eq. 12


@dataclass(frozen=True)
class Churn:
    """Noise added before a step, which raises sigma by a factor of at most sqrt(2) (Karras et al. 2022, algorithm 2).

    Attributes:
        amount: S_churn, shared out over the steps.
        steps: of the walk.
        least: S_min, the least sigma that is raised.
        most: S_max, the largest.
        noise: S_noise, a factor of the added noise.
        rounded: maps the raised sigma to the nearest that the network knows.
    """

    amount: float
    steps: int
    least: float = 0.0
    most: float = math.inf
    noise: float = 1.0
    rounded: Callable[[float], float] = float

    def raised(self, level: Level) -> Level:
        """Return the noisier level, at which the network is asked."""
        if not self.least <= level.sigma <= self.most:
            return level
        gamma = min(self.amount / self.steps, math.sqrt(2) - 1)  # algorithm 2, line 4
        sigma = self.rounded(level.sigma * (1 + gamma))
        return replace(level, t=edm_position(sigma), sigma=sigma)

    def added_variance(self, level: Level) -> float:
        """Return the variance of the noise that is added at a level."""
        return max(self.raised(level).sigma ** 2 - level.sigma**2, 0.0) * self.noise**2


@dataclass(frozen=True)
class Euler(Solver):
    """First order: one network call a step. States are float64 (float32 where the device has none).

    Attributes:
        churn: noise added before each step; EDM's levels alone.
        straight: solve in the frame of a flow, alpha + sigma = 1, where dx / dsigma = eps - x0. The step is DDIM's.
    """

    churn: Churn | None = None
    straight: bool = False
    dtype = torch.float64

    def churned(self, level: Level) -> tuple[Level, float]:
        """Return the level that a step starts from, and the variance of the noise added to the state to reach it."""
        if self.churn is None:
            return level, 0.0
        return self.churn.raised(level), self.churn.added_variance(level)

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Move along eps to the next level.

        Raises:
            ValueError: the prediction is guided, which these solvers do not know.
        """
        if pred.guidance is not None:
            raise ValueError("Euler and Heun steps know no classifier guidance; use Ancestral or DDIM")
        return self._move(x, pred.x0, pred.eps, level, level_next)

    def _move(self, x: Tensor, x0: Tensor, eps: Tensor, level: Level, level_next: Level) -> Tensor:
        if self.straight:
            return x + (level_next.sigma - level.sigma) * (eps - x0)  # no division by alpha, 0 at the start
        distance = level_next.sigma / level_next.alpha - level.sigma / level.alpha
        return level_next.alpha * (x / level.alpha + distance * eps)  # d(x / alpha) / d(sigma / alpha) = eps


@dataclass(frozen=True)
class Heun(Euler):
    """Second order: a second call, at the level a step reached, corrects the step unless that level is clean."""

    stages = 2

    def correct(self, x: Tensor, pred: Prediction, pred_next: Prediction, level: Level, level_next: Level) -> Tensor:
        """Move from x along the mean direction of both ends of the step."""
        x0, eps = (pred.x0 + pred_next.x0) / 2, (pred.eps + pred_next.eps) / 2
        return self._move(x, x0, eps, level, level_next)


@dataclass(frozen=True)
class FlowSDE(Solver):
    """The reverse SDE of a flow with diffusion coefficient w = sigma (SiT, Ma et al. 2024), by Euler-Maruyama.

    dx = (v - w s / 2) dsigma + sqrt(w) dW with the velocity v = eps - x0 and the score s = -eps / sigma. The last step,
    to the clean level, adds no noise and ends in x0_hat.
    """

    dtype = torch.float64

    def is_random(self, level_next: Level) -> bool:
        """Tell whether noise is added: everywhere but to the clean level."""
        return not level_next.is_clean

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Draw x_next.

        Raises:
            ValueError: the prediction is guided by a classifier.
        """
        if pred.guidance is not None:
            raise ValueError("steps of a flow know no classifier guidance; use Ancestral or DDIM")
        if level_next.is_clean:
            return pred.x0
        step = level.sigma - level_next.sigma  # positive: time runs backwards
        drift = pred.eps - pred.x0 + pred.eps / 2  # v - w s / 2, where w s = -eps
        return x - step * drift + root(level.sigma * step) * z


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
        self._reached: Tensor | None = None  # the state that the last step ended in

    def begin(self) -> Solver:
        """Return a solver without memory."""
        return type(self)()

    def _check(self, x: Tensor, pred: Prediction) -> None:
        if pred.guidance is not None:
            raise ValueError(f"{type(self).__name__} knows no classifier guidance; use Ancestral or DDIM")
        if self._reached is not None and x is not self._reached:
            raise ValueError(f"{type(self).__name__} goes on from its own states; leave out remedies that move them")

    def _predicted(self, x: Tensor, level: Level, level_next: Level, weight: Callable[[float], float]) -> Tensor:
        """Return the second-order step from x in data prediction, of first order without an earlier x0_hat.

        Args:
            x: state at ``level``.
            level: where the step starts.
            level_next: where it goes.
            weight: of the change of x0_hat, as a function of h, the step in lambda.
        """
        now, x0 = self._memory[0]
        h = _log_snr(level_next) - now
        x_next = level_next.sigma / level.sigma * x - level_next.alpha * math.expm1(-h) * x0  # DDIM's step
        if len(self._memory) == 1:
            return x_next
        earlier, x0_earlier = self._memory[1]
        change = h / (now - earlier) / 2 * (x0 - x0_earlier)
        return x_next + level_next.alpha * weight(h) * change


class DPMSolverPP2M(_Multistep):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): order 2 from one earlier x0_hat.

    The first step is of first order, and the last, to the clean level, ends in x0_hat.
    """

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Move to the next level.

        Raises:
            ValueError: guidance, levels of one an image, or a state that is not the solver's own.
        """
        self._check(x, pred)
        self._memory = [(_log_snr(level), pred.x0), *self._memory[:1]]
        self._reached = pred.x0
        if not level_next.is_clean:
            self._reached = self._predicted(x, level, level_next, lambda h: -math.expm1(-h))
        return self._reached


class UniPC(_Multistep):
    """UniPC of order 2 with B(h) = h (Zhao et al. 2023, arXiv 2302.04867, "bh1"), in data prediction.

    Every x0_hat first corrects the state it was predicted at, without another call; the predictor then goes on from the
    corrected state. So a step's ``x`` is the predicted state, which the network saw. A step from a level without signal
    (alpha = 0), where h is infinite, is not corrected.
    """

    def __init__(self) -> None:
        super().__init__()
        self._start: tuple[Level, Tensor] | None = None  # where the last step began, corrected

    def update(self, x: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor) -> Tensor:
        """Correct the state with the new x0_hat, then predict the next one.

        Raises:
            ValueError: guidance, levels of one an image, or a state that is not the solver's own.
        """
        self._check(x, pred)
        now = _log_snr(level)
        if self._start is not None and math.isfinite(self._memory[0][0]):
            x = self._corrected(pred.x0, now, level, *self._start)
        self._memory = [(now, pred.x0), *self._memory[:1]]
        self._start = (level, x)
        self._reached = pred.x0
        if not level_next.is_clean:
            self._reached = self._predicted(x, level, level_next, lambda h: h)  # B(h) = h
        return self._reached

    def _corrected(self, x0: Tensor, now: float, level: Level, level_before: Level, x_before: Tensor) -> Tensor:
        """Return the state at ``level`` anew, from the one before it and the x0_hat at both ends (UniC-2, UniC-1)."""
        before, x0_before = self._memory[0]
        h = now - before
        change = x0 - x0_before
        correction = change / 2
        if len(self._memory) > 1 and math.isfinite(self._memory[1][0]):
            earlier, x0_earlier = self._memory[1]
            r = (earlier - before) / h  # negative
            # The weights solve [[1, 1], [r, 1]] rho = b, b = (phi_2, 2 phi_3) of -h (the paper's eq. 11, B(h) = h).
            phi_1 = math.expm1(-h) / -h
            phi_2 = (phi_1 - 1) / -h
            phi_3 = (phi_2 - 0.5) / -h
            rho_earlier = (phi_2 - 2 * phi_3) / (1 - r)
            correction = rho_earlier / r * (x0_earlier - x0_before) + (phi_2 - rho_earlier) * change
        moved = level.sigma / level_before.sigma * x_before - level.alpha * math.expm1(-h) * x0_before
        return moved + level.alpha * h * correction
