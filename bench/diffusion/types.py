"""The records that all files of this folder share: levels, predictions, steps, and the two protocols around them.

One frame serves all models: a state is ``x_t = alpha_t * x0 + sigma_t * noise``. Variance-preserving models have
``alpha = sqrt(alpha_bar_t)`` and ``sigma = sqrt(1 - alpha_bar_t)``; EDM has ``alpha = 1``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

NULL_TIME = -1.0  # the t of a level whose network is asked without a time


@dataclass(frozen=True, slots=True)
class Level:
    """A noise level.

    The levels of a walk are floats on the host. A correction may give each image a level, see :func:`batched`.

    Attributes:
        t: the training index, counted from 0, at which the network is asked; :data:`NULL_TIME` for none.
        alpha: factor of the data.
        sigma: factor of the noise.
    """

    t: float
    alpha: float
    sigma: float

    @property
    def is_clean(self) -> bool:
        """Tell whether no noise is left; the levels of :func:`batched` are never clean."""
        sigma: Any = self.sigma
        return not isinstance(sigma, Tensor) and sigma == 0

    @property
    def is_timeless(self) -> bool:
        """Tell whether the network is asked without a time."""
        t: Any = self.t
        return not isinstance(t, Tensor) and t == NULL_TIME


def batched(t: Tensor, alpha: Tensor, sigma: Tensor) -> Level:
    """Return one level for each image: tensors [B, 1, 1, 1] in the state's dtype, all of them noisy."""
    numbers: tuple[Any, ...] = (t, alpha, sigma)
    return Level(*numbers)


CLEAN = Level(t=-1, alpha=1.0, sigma=0.0)  # the data themselves, one step below the least noisy level


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a denoiser predicts from a state x [B, C, H, W].

    Attributes:
        eps: the noise.
        x0: the data, unclipped; x = alpha x0 + sigma eps.
        variance_fraction: the raw second half of a learned-range network's output (Nichol & Dhariwal 2021, eq. 15,
            before the mapping to [0, 1]).
        x0_cov: exact posterior covariance Cov(x0 | x_t), [D, D] or [B, D, D] with D = C*H*W; closed-form denoisers
            alone know it.
        guidance: a score that the solver adds, s grad_x log p(y | x) of a classifier of strength s; eps and x0 do not
            include it.
        plain: under classifier-free or noise awareness guidance, which eps and x0 include, what the model says of its
            condition and time alone.
        calls: network calls that it took.
    """

    eps: Tensor
    x0: Tensor
    variance_fraction: Tensor | None = None
    x0_cov: Tensor | None = None
    guidance: Tensor | None = None
    plain: Prediction | None = None
    calls: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """One network call of a walk. Its tensors belong to the sampler and are valid until the next step.

    Attributes:
        i: solver steps that remain, 0 at the least noisy level (the published code's respaced index).
        stage: network calls before this one in the same solver step. Stage 1 is made at the level that stage 0 reached,
            so its ``level`` and ``level_next`` are equal.
        level: of the state.
        level_next: where the step goes.
        x: the state that the network saw.
        x_next: the new state.
        prediction: what the denoiser answered.
        x0_used: the x0 of the update, after corrections and clipping.
        eps_used: its eps.
        x0: the real images that the walk is paired with, if any.
        completes: whether this call is the last of its solver step, whose ``x_next`` the next step starts from.
    """

    i: int
    stage: int
    level: Level
    level_next: Level
    x: Tensor
    x_next: Tensor
    prediction: Prediction
    x0_used: Tensor
    eps_used: Tensor
    x0: Tensor | None
    completes: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """A network call that a walk is about to make.

    Attributes:
        stage: 0, or 1 for the second call of a Heun step, which is made at the level that was reached.
        level: where the state is taken to be: the network is asked there, and the update starts there.
        level_next: where the update goes; equal to ``level`` at stage 1.
        completes: whether the call is the last of its solver step.
    """

    stage: int
    level: Level
    level_next: Level
    completes: bool


Network = Callable[[Tensor, Level], Prediction]  # a denoiser whose conditioning is bound


class Denoiser(Protocol):
    """A model at a noise level: state x [B, C, H, W] to a :class:`Prediction`; ``cond`` is one entry per sample."""

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Predict the noise and the data of ``x``."""
        ...


class Probe(Protocol):
    """An observer of walks: it reads steps, never writes to them and never draws random numbers."""

    def update(self, step: Step) -> None:
        """Take one step into account, without synchronising with the device."""
        ...
