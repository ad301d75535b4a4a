"""Samplers as generators: a walk along levels that yields one :class:`Step` per network call.

Euler and Heun steps are in :mod:`bench.diffusion.edm`. A walk has a start (:func:`prior` or :func:`paired`) and a
source: free running, or teacher forced, where every state is replaced by ``q(x_t | x0)`` before its step. Solver
indices i count down to 0, the least noisy level.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from bench.diffusion.corrections import Identity
from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.posterior import Posterior, root, sample_exact, step_log_variance
from bench.diffusion.types import Call, Correction, Denoiser, Level, Prediction, Step

__all__ = [
    "DDIM", "VARIANCES", "Ancestral", "Draws", "PosteriorMean", "Solver", "paired", "prior", "teacher_forced", "walk",
]  # fmt: skip

VARIANCES = ("learned", "fixed-small", "fixed-large", "exact")


class Solver(Protocol):
    """One update from a level to the next, given what the denoiser said.

    ``stages`` is the most network calls a step makes, 1 or 2; ``dtype`` that of the states, None for the start's.
    """

    @property
    def stages(self) -> int:
        """Return 2 for a solver with a correction."""
        ...

    @property
    def dtype(self) -> torch.dtype | None:
        """Return the dtype of the states."""
        ...

    def stirred(self, level: Level) -> tuple[Level, float]:
        """Return the level a step starts from, and the variance of the noise that is added to get there."""
        ...

    def is_random(self, level_next: Level) -> bool:
        """Tell whether the update to a level takes noise."""
        ...

    def update(
        self, x: Tensor, x0: Tensor, eps: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor
    ) -> Tensor:
        """Return x_next; ``z`` [B, C, H, W] is this step's unit noise, a single 0 where the update takes none."""
        ...

    def correct(self, x: Tensor, eps: Tensor, eps_next: Tensor, level: Level, level_next: Level) -> Tensor:
        """Return x_next anew, with the eps of the level that was reached."""
        ...


class _OneCall:
    """What solvers of one call a step have in common."""

    stages = 1
    dtype: torch.dtype | None = None

    def stirred(self, level: Level) -> tuple[Level, float]:
        """Leave the level, and add nothing."""
        return level, 0.0

    def is_random(self, level_next: Level) -> bool:
        """Tell that no noise is added."""
        return False

    def correct(self, x: Tensor, eps: Tensor, eps_next: Tensor, level: Level, level_next: Level) -> Tensor:
        """Refuse: there is no second call."""
        raise TypeError(f"{type(self).__name__} makes one call a step and corrects nothing")


def _guided(x0: Tensor, eps: Tensor, pred: Prediction, level: Level) -> tuple[Tensor, Tensor]:
    """Return the (x0, eps) of the score with a classifier's added (Dhariwal & Nichol 2021, algorithm 2)."""
    if pred.guidance is None:
        return x0, eps
    return x0 + level.sigma**2 / level.alpha * pred.guidance, eps - level.sigma * pred.guidance


@dataclass(frozen=True)
class Ancestral(_OneCall):
    """DDPM sampling: the posterior mean of Ho et al. 2020, eq. 7, at x0_hat plus noise of a chosen variance.

    ``fixed-small`` is the posterior variance, ``fixed-large`` beta of the respaced process, ``learned`` interpolates
    their logarithms by the network's fraction, ``exact`` adds the variance of x0 given x_t (closed-form denoisers
    only). The last step, to the clean level, adds no noise.
    """

    variance: str = "learned"

    def __post_init__(self) -> None:
        """Refuse an unknown variance."""
        if self.variance not in VARIANCES:
            raise ValueError(f"unknown variance {self.variance!r}; choose {', '.join(VARIANCES)}")

    def is_random(self, level_next: Level) -> bool:
        """Tell whether noise is added: towards the clean level by ``exact`` alone."""
        return self.variance == "exact" or not level_next.is_clean

    def update(
        self, x: Tensor, x0: Tensor, eps: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor
    ) -> Tensor:
        """Draw x_next ~ p(x_next | x)."""
        q = Posterior.between(level, level_next)
        mean = q.c1 * x0 + q.c2 * x
        if self.variance == "exact":  # the posterior mean itself is known, so its guided form is too
            return q.c1 * _guided(x0, eps, pred, level)[0] + q.c2 * x + sample_exact(q, pred, z)
        if level_next.is_clean:
            return mean
        log_variance = step_log_variance(self.variance, q, pred)
        scale = torch.exp(0.5 * log_variance) if isinstance(log_variance, Tensor) else q.std(self.variance)
        if pred.guidance is not None:  # guidance of the mean: Dhariwal & Nichol 2021, algorithm 1
            mean = mean + scale**2 * pred.guidance
        return mean + scale * z


@dataclass(frozen=True)
class PosteriorMean(_OneCall):
    """The mean of Ho et al. 2020, eq. 7, at x0_hat, and no noise at any step.

    The "deterministic" chain of the DDPM-IP paper (figure 5). It is not DDIM: what ancestral sampling adds as noise is
    missing from every state. For an exact denoiser of Gaussian data each step is E[x_next | x], so by the tower rule
    the chain ends in E[x0 | x_t], the blurred guess of least squared error: grey where x_t tells nothing of x0.
    """

    def update(
        self, x: Tensor, x0: Tensor, eps: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor
    ) -> Tensor:
        """Move to the mean of q(x_next | x, x0_hat)."""
        q = Posterior.between(level, level_next)
        return q.c1 * _guided(x0, eps, pred, level)[0] + q.c2 * x


@dataclass(frozen=True)
class DDIM(_OneCall):
    """Song et al. 2021, eq. 12 and 16; ``eta`` = 0 is deterministic, 1 has the posterior variance."""

    eta: float = 0.0

    def is_random(self, level_next: Level) -> bool:
        """Tell whether noise is added: nowhere at ``eta`` 0."""
        return self.eta != 0 and not level_next.is_clean

    def update(
        self, x: Tensor, x0: Tensor, eps: Tensor, pred: Prediction, level: Level, level_next: Level, z: Tensor
    ) -> Tensor:
        """Move along x0_hat and eps to the next level."""
        x0, eps = _guided(x0, eps, pred, level)
        if not self.is_random(level_next):
            return level_next.alpha * x0 + level_next.sigma * eps
        noise_std = self.eta * Posterior.between(level, level_next).std("fixed-small")
        direction = root(level_next.sigma**2 - noise_std**2)
        return level_next.alpha * x0 + direction * eps + noise_std * z


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch: a noise stream and the samples' numbers, int64 [B] on the batch's device."""

    noise: Noise
    samples: Tensor

    def normal(self, purpose: Purpose, step: int, shape: Sequence[int]) -> Tensor:
        """Draw float32 [B, *shape] of one purpose and step."""
        return self.noise.normal(self.samples, purpose, step, shape)


def prior(level: Level, draws: Draws, shape: Sequence[int]) -> Tensor:
    """Start from noise: ``sigma_T * noise``, float32 [B, *shape], whatever signal the level would keep."""
    return level.sigma * draws.normal(Purpose.START, 0, shape)


def paired(level: Level, draws: Draws, x0: Tensor) -> Tensor:
    """Start from real images in [-1, 1]: ``alpha * x0 + sigma * noise`` with the same noise as :func:`prior`."""
    return level.alpha * x0 + prior(level, draws, x0.shape[1:])


@torch.no_grad()
def walk(
    denoiser: Denoiser,
    levels: Sequence[Level],
    x: Tensor,
    solver: Solver,
    draws: Draws,
    *,
    clip: bool = True,
    correction: Correction | None = None,
    x0: Tensor | None = None,
    cond: Tensor | None = None,
) -> Iterator[Step]:
    """Let a denoiser feed itself from ``x`` at ``levels[0]`` down to the clean level.

    Args:
        denoiser: the model.
        levels: noisiest first, ending in the clean level. A paired walk from level i takes ``levels[-(i + 2):]``,
            which keeps indices and noise those of the full walk.
        x: start state [B, C, H, W].
        solver: the update rule.
        draws: the batch's random numbers.
        clip: clamp x0_hat to [-1, 1] and re-derive eps, as the published code does.
        correction: an intervention; None is the plain sampler.
        x0: real images the walk is paired with; recorded, never used.
        cond: per-sample conditioning, passed to the denoiser.

    Yields:
        One step per network call.
    """
    stepper = _Stepper(denoiser, solver, draws, Purpose.ANCESTRAL, clip, correction or Identity(), cond)
    x = _as_state(x, solver)
    for i, level, level_next in _indexed(levels):
        for step in stepper.steps(i, level, level_next, x, x0):
            yield step
            x_next = step.x_next
        x = x_next


@torch.no_grad()
def teacher_forced(
    denoiser: Denoiser,
    levels: Sequence[Level],
    x0: Tensor,
    solver: Solver,
    draws: Draws,
    *,
    clip: bool = True,
    correction: Correction | None = None,
    cond: Tensor | None = None,
    indices: Collection[int] | None = None,
) -> Iterator[Step]:
    """Take single steps from real noised data: before each, x ~ q(x_t | x0) with noise of its own.

    Args as in :func:`walk`; ``x0`` [B, C, H, W] in [-1, 1] is what the states are made of, and ``indices`` the
    solver indices to visit (all by default).
    """
    stepper = _Stepper(denoiser, solver, draws, Purpose.FORCED_ANCESTRAL, clip, correction or Identity(), cond)
    for i, level, level_next in _indexed(levels):
        if indices is None or i in indices:
            x = level.alpha * x0 + level.sigma * draws.normal(Purpose.FORCED, i, x0.shape[1:])
            yield from stepper.steps(i, level, level_next, _as_state(x, solver), x0)


def _indexed(levels: Sequence[Level]) -> Iterator[tuple[int, Level, Level]]:
    count = len(levels) - 1
    for position in range(count):
        yield count - 1 - position, levels[position], levels[position + 1]


def _as_state(x: Tensor, solver: Solver) -> Tensor:
    """Convert a start to the solver's dtype; Apple's devices have no float64."""
    return x if solver.dtype is None or x.device.type == "mps" else x.to(solver.dtype)


@dataclass(frozen=True)
class _Stepper:
    """What every step of a walk shares."""

    denoiser: Denoiser
    solver: Solver
    draws: Draws
    purpose: Purpose
    clip: bool
    hooks: Correction
    cond: Tensor | None

    def steps(self, i: int, level: Level, level_next: Level, x: Tensor, x0: Tensor | None) -> Iterator[Step]:
        """Make one solver step: one network call, or two where the solver corrects."""
        noise = partial(self.draws.normal, self.purpose, i, x.shape[1:])  # the same at every call
        level, added = self.solver.stirred(level)
        x = x + added**0.5 * noise() if added else x
        corrects = self.solver.stages == 2 and not level_next.is_clean
        start, call, pred, used = self._ask(x, Call(0, level, level_next, completes=not corrects))
        z = noise() if self.solver.is_random(call.level_next) else torch.zeros((), device=x.device)
        x_next = self.solver.update(start, used.x0, used.eps, pred, call.level, call.level_next, z)
        x_next = self.hooks.after(x_next, used, call)
        yield Step(i, 0, level, level_next, x, x_next, pred, used.x0, used.eps, x0, not corrects)
        if corrects:
            _, again, pred, reached = self._ask(x_next, Call(1, level_next, level_next, completes=True))
            corrected = self.solver.correct(start, used.eps, reached.eps, call.level, call.level_next)
            corrected = self.hooks.after(corrected, reached, again)
            yield Step(i, 1, level_next, level_next, x_next, corrected, pred, reached.x0, reached.eps, x0, True)

    def _ask(self, x: Tensor, call: Call) -> tuple[Tensor, Call, Prediction, Prediction]:
        """Make one network call; return the state and step it is for, what was said, and what the update shall take."""
        x, call = self.hooks.before(x, call)
        pred = self.hooks.ask(lambda seen, level: self.denoiser(seen, level, self.cond), x, call.level)
        x0, eps = self.hooks.prediction(pred, x, call)
        if self.clip:
            clamped = x0.clamp(-1.0, 1.0)
            eps = eps + (call.level.alpha / call.level.sigma) * (x0 - clamped)
            x0 = clamped
        return x, call, pred, replace(pred, x0=x0, eps=eps)
