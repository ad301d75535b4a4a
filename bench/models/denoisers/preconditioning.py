"""Preconditioned networks F behind the denoiser D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

Karras et al. 2022 (EDM), table 1: the four columns of that table, in the frame alpha = 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.diffusion.types import Level, Prediction
from bench.models.denoisers.parameterization import per_image

_TINY, _HUGE = 1e-12, 1e12  # bounds on constants, which a file may set
_MOST_LEVELS = 100_000  # a bound on iDDPM's table, whose length a file may name
_ABOVE_0 = ("a finite number above 0", _TINY, _HUGE)
_RANGES = {  # of the other constants, in words, with their bounds
    "M": (f"an integer from 2 to {_MOST_LEVELS}", 2, _MOST_LEVELS),
    "sigma_min": ("a finite number of at least 0", 0.0, _HUGE),
    "sigma_max": ("a number above 0", _TINY, math.inf),
}


class Coefficients(NamedTuple):
    """The four numbers of a noise level; ``noise`` is what the network is conditioned on.

    Like the level they are host floats, or tensors [B, 1, 1, 1] where images have levels of their own.
    """

    skip: float
    out: float
    into: float
    noise: float


def _functions(sigma: Any) -> Any:
    """Return the module whose sqrt, log and log1p take this number."""
    return torch if isinstance(sigma, Tensor) else math


class Preconditioning(ABC):
    """How a network is wrapped: the coefficients of every noise level.

    Attributes:
        sigma_min: the least noise level that the network was trained on.
        sigma_max: the largest.
    """

    @property
    @abstractmethod
    def sigma_min(self) -> float:
        """Return the least noise level."""

    @property
    @abstractmethod
    def sigma_max(self) -> float:
        """Return the largest noise level."""

    @abstractmethod
    def at(self, sigma: float) -> Coefficients:
        """Return the coefficients of a noise level."""

    def rounded(self, sigma: float) -> float:
        """Return the nearest level that the network was trained on: the level itself where it may be any."""
        return sigma


@dataclass(frozen=True)
class Edm(Preconditioning):
    """EDM's own, for data of standard deviation ``sigma_data``."""

    sigma_data: float = 0.5
    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def at(self, sigma: float) -> Coefficients:
        """Return the coefficients of a noise level."""
        f = _functions(sigma)
        total = sigma**2 + self.sigma_data**2
        return Coefficients(
            skip=self.sigma_data**2 / total,
            out=sigma * self.sigma_data / f.sqrt(total),
            into=1 / f.sqrt(total),  # the input has unit variance
            noise=f.log(sigma) / 4,
        )


@dataclass(frozen=True)
class Vp(Preconditioning):
    """Variance preserving, continuous time (Song et al. 2021): beta(s) = beta_min + beta_d s on s in [epsilon_t, 1]."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000
    epsilon_t: float = 1e-5

    def _sigma(self, s: float) -> float:
        return math.sqrt(math.expm1(0.5 * self.beta_d * s**2 + self.beta_min * s))

    @property
    def sigma_min(self) -> float:
        """Return the noise level at epsilon_t."""
        return self._sigma(self.epsilon_t)

    @property
    def sigma_max(self) -> float:
        """Return the noise level at time 1."""
        return self._sigma(1.0)

    def at(self, sigma: float) -> Coefficients:
        """Return the coefficients; the network sees (M - 1) times the time that has this noise."""
        f = _functions(sigma)
        # The inverse of sigma(s) above: beta_d s^2 / 2 + beta_min s = ln(1 + sigma^2).
        s = (f.sqrt(self.beta_min**2 + 2 * self.beta_d * f.log1p(sigma**2)) - self.beta_min) / self.beta_d
        return Coefficients(1.0, -sigma, 1 / f.sqrt(sigma**2 + 1), (self.M - 1) * s)


@dataclass(frozen=True)
class Ve(Preconditioning):
    """Variance exploding (Song et al. 2021)."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def at(self, sigma: float) -> Coefficients:
        """Return the coefficients of a noise level."""
        return Coefficients(1.0, sigma, 1.0, _functions(sigma).log(0.5 * sigma))


@dataclass(frozen=True)
class Iddpm(Preconditioning):
    """Improved DDPM: the M + 1 levels of a cosine schedule, noisiest first, the last of them 0.

    The published code holds them as float32, this one as float64.
    """

    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000

    def _bar(self, j: int) -> float:
        return math.sin(0.5 * math.pi * j / self.M / (self.C_2 + 1)) ** 2

    @cached_property
    def levels(self) -> NDArray[np.float64]:
        """Return the levels u_0 > ... > u_M = 0, float64 [M + 1]."""
        u = np.zeros(self.M + 1)
        for j in range(self.M, 0, -1):
            ratio = max(self._bar(j - 1) / self._bar(j), self.C_1)
            u[j - 1] = math.sqrt((u[j] ** 2 + 1) / ratio - 1)
        return u

    @property
    def sigma_min(self) -> float:
        """Return the least level above 0."""
        return float(self.levels[self.M - 1])

    @property
    def sigma_max(self) -> float:
        """Return the largest level."""
        return float(self.levels[0])

    def _index(self, sigma: Any) -> Any:
        if isinstance(sigma, Tensor):
            return self.M - torch.searchsorted(_borders(self, sigma.dtype, sigma.device), sigma.contiguous())
        return int(np.abs(self.levels - sigma).argmin())

    def rounded(self, sigma: float) -> float:
        """Return the nearest of the levels."""
        return float(self.levels[self._index(sigma)])

    def at(self, sigma: float) -> Coefficients:
        """Return the coefficients; the network sees the training index (from 0, the least noisy)."""
        index = self._index(sigma)
        return Coefficients(1.0, -sigma, 1 / _functions(sigma).sqrt(sigma**2 + 1), self.M - 1.0 - index)


@cache  # a copy to the device would make every call wait for it
def _borders(iddpm: Iddpm, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the midpoints between the levels, ascending, [M]."""
    ascending = iddpm.levels[::-1]
    return torch.tensor((ascending[1:] + ascending[:-1]) / 2, dtype=dtype, device=device)


PRECONDITIONINGS: Mapping[str, type[Any]] = {"edm": Edm, "vp": Vp, "ve": Ve, "iddpm": Iddpm}


def make_preconditioning(name: str, settings: Mapping[str, Any] | None = None) -> Preconditioning:
    """Return a preconditioning by name: ``edm``, ``vp``, ``ve`` or ``iddpm``, with other constants if given.

    Raises:
        ValueError: the name or a constant is unknown, a constant is no number above 0 (``sigma_min`` may be 0,
            ``sigma_max`` infinite, ``M`` is whole and from 2 to 100000), or they leave no range of noise levels.
    """
    if name not in PRECONDITIONINGS:
        raise ValueError(f"unknown preconditioning {name!r}; choose {', '.join(PRECONDITIONINGS)}")
    settings = settings or {}
    constants = [field.name for field in fields(PRECONDITIONINGS[name])]
    for constant, value in settings.items():
        if constant not in constants:
            raise ValueError(f"preconditioning {name!r} has no constant {constant!r}; known: {', '.join(constants)}")
        needed, least, most = _RANGES.get(constant, _ABOVE_0)
        is_number = isinstance(value, int if constant == "M" else int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            raise ValueError(f"preconditioning {name!r}: {constant} must be {needed}")
    preconditioning: Preconditioning = PRECONDITIONINGS[name](**settings)
    try:
        has_levels = preconditioning.sigma_min < preconditioning.sigma_max
    except (ArithmeticError, ValueError):  # constants so extreme that the levels overflow
        has_levels = False
    if not has_levels:
        raise ValueError(f"preconditioning {name!r}: its constants leave no range of noise levels")
    return preconditioning


class EdmDenoiser:
    """A preconditioned network in the general frame: on levels with alpha below 1 it sees x / alpha.

    Args:
        network: called as ``network(x, noise, class_labels).sample`` in float32, noise [B]. Of a network with more
            output channels than input channels (iDDPM's learned variance) only the first are used, as in EDM.
        preconditioning: how it is wrapped.
    """

    def __init__(self, network: Any, preconditioning: Preconditioning) -> None:
        self.network, self.preconditioning = network, preconditioning

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Predict eps and x0 of x [B, C, H, W] in its own dtype; ``cond`` int64 [B] class labels."""
        c = self.preconditioning.at(level.sigma / level.alpha)
        output = self.network((c.into / level.alpha * x).float(), per_image(c.noise, x).float(), cond).sample
        # D(x / alpha) = c_skip x / alpha + c_out F: equation 7 of the paper.
        x0 = c.skip / level.alpha * x + c.out * output[:, : x.shape[1]].to(x.dtype)
        return Prediction((x - level.alpha * x0) / level.sigma, x0)
