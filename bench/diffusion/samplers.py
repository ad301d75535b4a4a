"""Samplers as generators: a walk along levels yields one :class:`Step` per network call.

A walk has a start (:func:`prior` or :func:`paired`) and a source of states: free running, or teacher forced, where
``q(x_t | x0)`` replaces every state before its step. Solver indices i count down to 0, the least noisy level.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.corrections import Correction
from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.solvers import Solver
from bench.diffusion.types import Call, Denoiser, Level, Prediction, Step


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch: a noise stream and the samples' numbers, int64 [B] on the batch's device."""

    noise: Noise
    samples: Tensor

    def normal(self, purpose: Purpose, step: int, shape: Sequence[int]) -> Tensor:
        """Draw float32 [B, *shape] of one purpose and step."""
        return self.noise.normal(self.samples, purpose, step, shape)


def prior(level: Level, draws: Draws, shape: Sequence[int]) -> Tensor:
    """Return a start of noise alone, ``sigma_T * noise``, float32 [B, *shape], whatever signal the level keeps."""
    return level.sigma * draws.normal(Purpose.START, 0, shape)


def paired(level: Level, draws: Draws, x0: Tensor) -> Tensor:
    """Return real images in [-1, 1] with noise, ``alpha * x0 + sigma * noise``; the noise is that of :func:`prior`."""
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
    """Sample freely: a denoiser is fed its own states, from ``x`` at ``levels[0]`` down to the clean level.

    Args:
        denoiser: the model.
        levels: noisiest first, ending in the clean level. A paired walk from level i takes ``levels[-(i + 2):]``,
            which keeps the indices and noise of the full walk.
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
    stepper = _Stepper(denoiser, solver.begin(), draws, Purpose.ANCESTRAL, clip, correction or Correction(), cond)
    x = _in_dtype(x, solver)
    for i, (level, level_next) in _indexed(levels):
        for step in stepper.steps(i, level, level_next, x, x0):
            yield step
            x = step.x_next


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
    """Take single steps from real noised data: before each, x ~ q(x_t | x0) with fresh noise.

    Args:
        denoiser: as in :func:`walk`.
        levels: noisiest first, ending in the clean level.
        x0: real images [B, C, H, W] in [-1, 1].
        solver: the update rule.
        draws: the batch's random numbers.
        clip: clamp x0_hat.
        correction: an intervention.
        cond: per-sample conditioning.
        indices: the solver indices to visit, None for all.

    Yields:
        One step per network call.
    """
    correction = correction or Correction()
    for i, (level, level_next) in _indexed(levels):
        if indices is None or i in indices:
            # Each step is a walk of its own: a multistep solver remembers nothing.
            stepper = _Stepper(denoiser, solver.begin(), draws, Purpose.FORCED_ANCESTRAL, clip, correction, cond)
            x = level.alpha * x0 + level.sigma * draws.normal(Purpose.FORCED, i, x0.shape[1:])
            yield from stepper.steps(i, level, level_next, _in_dtype(x, solver), x0)


def _indexed(levels: Sequence[Level]) -> Iterator[tuple[int, tuple[Level, Level]]]:
    """Return each step's index, and its start and target."""
    return zip(reversed(range(len(levels) - 1)), pairwise(levels), strict=True)


def _in_dtype(x: Tensor, solver: Solver) -> Tensor:
    """Convert a start to the solver's dtype; Apple's devices have no float64."""
    return x if solver.dtype is None or x.device.type == "mps" else x.to(solver.dtype)


@dataclass(frozen=True)
class _Stepper:
    """What all steps of a walk share."""

    denoiser: Denoiser
    solver: Solver
    draws: Draws
    purpose: Purpose
    clip: bool
    correction: Correction
    cond: Tensor | None

    def steps(self, i: int, level: Level, level_next: Level, x: Tensor, x0: Tensor | None) -> Iterator[Step]:
        """Make one solver step: one network call, or two if the solver corrects."""
        noise = partial(self.draws.normal, self.purpose, i, x.shape[1:])  # the same at every call
        level, added_variance = self.solver.churned(level)
        if added_variance:
            x = x + added_variance**0.5 * self.correction.noise(noise())
        corrects = self.solver.stages == 2 and not level_next.is_clean
        start, call, raw, used = self._ask(x, Call(0, level, level_next, completes=not corrects))
        is_random = self.solver.is_random(call.level_next)
        z = self.correction.noise(noise()) if is_random else torch.zeros((), device=x.device)
        x_next = self.solver.update(start, used, call.level, call.level_next, z)
        x_next = self.correction.after(x_next, used, call)
        yield Step(i, 0, level, level_next, x, x_next, raw, used.x0, used.eps, x0, not corrects)
        if not corrects:
            return
        # The second stage is asked at the state and level that the first one reached.
        _, second, raw, reached = self._ask(x_next, Call(1, level_next, level_next, completes=True))
        corrected = self.solver.correct(start, used, reached, call.level, call.level_next)
        corrected = self.correction.after(corrected, reached, second)
        yield Step(i, 1, level_next, level_next, x_next, corrected, raw, reached.x0, reached.eps, x0, True)

    def _ask(self, x: Tensor, call: Call) -> tuple[Tensor, Call, Prediction, Prediction]:
        """Make one network call; return the state, its call, the raw prediction and the one the update uses."""
        x, call = self.correction.before(x, call)
        raw = self.correction.ask(lambda state, level: self.denoiser(state, level, self.cond), x, call.level)
        x0, eps = self.correction.prediction(raw, x, call)
        if self.clip:
            clamped = x0.clamp(-1.0, 1.0)
            eps = eps + (call.level.alpha / call.level.sigma) * (x0 - clamped)  # keeps alpha x0 + sigma eps
            x0 = clamped
        return x, call, raw, replace(raw, x0=x0, eps=eps)
