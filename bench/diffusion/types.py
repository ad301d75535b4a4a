"""The records every other file speaks in: levels, predictions, steps, and the two protocols around them.

One frame for all models: a state is ``x_t = alpha_t * x0 + sigma_t * noise``. Variance-preserving models have
``alpha = sqrt(alpha_bar_t)`` and ``sigma = sqrt(1 - alpha_bar_t)``; EDM has ``alpha = 1``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Level:
    """A noise level: ``t`` the 0-based training index the network is conditioned on, and the frame's two factors.

    The levels of a walk are host floats; those that a correction makes may be one an image, see :func:`batched`.
    """

    t: float
    alpha: float
    sigma: float

    @property
    def is_clean(self) -> bool:
        """Tell whether no noise is left; levels of one an image never are clean."""
        sigma: Any = self.sigma
        return not isinstance(sigma, Tensor) and sigma == 0


def batched(t: Tensor, alpha: Tensor, sigma: Tensor) -> Level:
    """Return a level of its own for each image: tensors [B, 1, 1, 1] in the state's dtype, all of them noisy."""
    numbers: tuple[Any, ...] = (t, alpha, sigma)
    return Level(*numbers)


CLEAN = Level(t=-1, alpha=1.0, sigma=0.0)  # the data themselves, one step below the least noisy level


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a denoiser says about a state x [B, C, H, W]; ``eps`` and ``x0`` are consistent and unclipped.

    ``variance_fraction`` is the raw second half of a learned-range network's output (Nichol & Dhariwal 2021,
    eq. 15, before the mapping to [0, 1]); ``x0_cov`` is an exact posterior covariance Cov(x0 | x_t), [D, D] or
    [B, D, D] with D = C*H*W, which only closed-form denoisers know. ``guidance`` is a score that the solver adds,
    s grad_x log p(y | x) of a classifier of strength s; eps and x0 do not hold it.
    """

    eps: Tensor
    x0: Tensor
    variance_fraction: Tensor | None = None
    x0_cov: Tensor | None = None
    guidance: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One network call of a walk. Tensors are shared with the sampler and valid until the next step.

    ``i`` counts solver steps down to 0, the least noisy (the published code's respaced index); ``stage`` counts the
    network calls within one solver step, and the last of them ``completes`` it: its ``x_next`` is what the next step
    starts from. A correction (stage 1) sees the level that the step reached, so ``level`` and ``level_next`` are equal.
    ``prediction`` is raw; ``x0_used`` and ``eps_used`` are what the update took after corrections and clipping. ``x0``
    is the real image the walk is paired with, where there is one.
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
    """A network call that a walk is about to make, and the step it is for.

    ``level`` is where the state stands: the network is told so, and the update starts from there. ``level_next`` is
    where the update goes. The correcting call of a Heun step (``stage`` 1) is made at the level that was reached, so
    that both are equal. ``completes`` marks the last call of a solver step, whose new state the next one starts from.
    """

    stage: int
    level: Level
    level_next: Level
    completes: bool


Network = Callable[[Tensor, Level], Prediction]  # a denoiser whose conditioning is bound


class Denoiser(Protocol):
    """A model at a noise level: state x [B, C, H, W] to a :class:`Prediction`; ``cond`` is drawn per sample."""

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Predict the noise and the data of ``x``."""
        ...


class Probe(Protocol):
    """An observer of walks: reads steps, never writes to them and never draws random numbers."""

    def update(self, step: Step) -> None:
        """Take one step into account, without synchronising with the device."""
        ...
