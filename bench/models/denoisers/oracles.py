"""Exact denoisers, which only tests use: data distributions whose posterior mean and covariance have a closed form.

They are the ground truth of every instrument: what is measured on them must be what algebra says. All arithmetic is
float64; predictions come back in the state's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from bench.diffusion.types import Level, Prediction


class GaussianOracle:
    """The exact denoiser of x0 ~ N(mean, cov) with full covariance.

    Args:
        mean: [C, H, W].
        cov: [D, D] symmetric positive semi-definite over the flattened image, D = C*H*W.
    """

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        self.mean, self.cov = mean.double(), cov.double()
        self.values, self.vectors = torch.linalg.eigh(self.cov)
        self.values = self.values.clamp(min=0)

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Return E[x0 | x], the eps consistent with it and Cov(x0 | x), for x [B, C, H, W].

        The covariance is [D, D], or [B, D, D] where images have levels of their own.
        """
        alpha, sigma = _factors(level)
        total = alpha**2 * self.values + sigma**2
        gain = alpha * self.values / total
        centred = (x.double().flatten(1) - alpha * self.mean.flatten()) @ self.vectors
        x0 = self.mean + ((centred * gain) @ self.vectors.T).reshape(x.shape)
        # eps = sigma * (x - alpha mean) / total, which needs no division by a vanishing alpha or sigma.
        eps = ((centred * (sigma / total)) @ self.vectors.T).reshape(x.shape)
        spread = (self.vectors * (self.values * sigma**2 / total)[..., None, :]) @ self.vectors.T
        return Prediction(eps.to(x.dtype), x0.to(x.dtype), None, spread)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw images, float64 [count, C, H, W]."""
        z = torch.randn(count, len(self.values), dtype=torch.float64, generator=generator)
        drawn = (z * self.values.sqrt()) @ self.vectors.T
        return self.mean + drawn.reshape(count, *self.mean.shape)


class TimelessOracle(GaussianOracle):
    """The exact denoiser of x0 ~ N(mean, cov) that can be asked without a time: it then answers E[eps | x].

    That is the best answer of a network trained with times dropped, where all levels of ``grid`` are equally likely.

    Args:
        mean: [C, H, W].
        cov: [D, D], see :class:`GaussianOracle`.
        grid: the levels of training.
    """

    def __init__(self, mean: Tensor, cov: Tensor, grid: Sequence[Level]) -> None:
        super().__init__(mean, cov)
        numbers = torch.tensor([(level.alpha, level.sigma) for level in grid], dtype=torch.float64)
        self.grid = numbers[:, :, None].unbind(1)  # alpha and sigma, [L, 1] each

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Return the prediction of x [B, C, H, W] at its level, or, at a level with signal, without its time."""
        if not level.is_timeless:
            return super().__call__(x, level)
        alpha, sigma = self.grid
        total = alpha**2 * self.values + sigma**2  # [L, D]
        state, mean = x.double().flatten(1) @ self.vectors, self.mean.flatten() @ self.vectors
        # p(t | x), from log N(x; alpha mean, total) with its square multiplied out: no array of [B, L, D].
        quadratic = state.square() @ (1 / total).T - 2 * state @ (alpha * mean / total).T
        share = (-0.5 * (quadratic + (alpha**2 * mean**2 / total + total.log()).sum(1))).softmax(1)
        eps = (state * (share @ (sigma / total)) - mean * (share @ (alpha * sigma / total))) @ self.vectors.T
        eps = eps.reshape(x.shape)
        return Prediction(eps.to(x.dtype), ((x - level.sigma * eps) / level.alpha).to(x.dtype))


class MixtureOracle:
    """The exact denoiser of a mixture of Gaussians with full covariances, which only tests use.

    Args:
        weights: [K], summing to 1.
        means: [K, C, H, W].
        covs: [K, D, D].
    """

    def __init__(self, weights: Tensor, means: Tensor, covs: Tensor) -> None:
        self.log_weights = weights.double().log()
        self.parts = [GaussianOracle(mean, cov) for mean, cov in zip(means, covs, strict=True)]

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Return E[x0 | x], eps and Cov(x0 | x) [B, D, D]; x [B, C, H, W]."""
        wide = x.double()
        within = [part(wide, level) for part in self.parts]
        share = torch.stack([self._log_density(part, wide, level) for part in self.parts], dim=1)
        share = (share + self.log_weights).softmax(dim=1)  # [B, K]
        x0s = torch.stack([pred.x0.flatten(1) for pred in within], dim=1)  # [B, K, D]
        epss = torch.stack([pred.eps.flatten(1) for pred in within], dim=1)
        covs = torch.stack([cast("Tensor", pred.x0_cov) for pred in within])  # [K, D, D] or [K, B, D, D]
        x0 = (share[..., None] * x0s).sum(1)
        eps = (share[..., None] * epss).sum(1)
        apart = x0s - x0[:, None]
        averaged = "bk,kij->bij" if covs.dim() == 3 else "bk,kbij->bij"
        cov = torch.einsum(averaged, share, covs) + torch.einsum("bk,bki,bkj->bij", share, apart, apart)
        return Prediction(eps.reshape(x.shape).to(x.dtype), x0.reshape(x.shape).to(x.dtype), None, cov)

    @staticmethod
    def _log_density(part: GaussianOracle, x: Tensor, level: Level) -> Tensor:
        alpha, sigma = _factors(level)
        total = alpha**2 * part.values + sigma**2
        centred = (x.flatten(1) - alpha * part.mean.flatten()) @ part.vectors
        return -0.5 * (centred.square() / total + total.log()).sum(1)


def _factors(level: Level) -> tuple[Any, Any]:
    """Return alpha and sigma: host floats, or float64 [B, 1] where images have levels of their own."""
    numbers: tuple[Any, Any] = level.alpha, level.sigma
    if isinstance(numbers[0], Tensor):
        return numbers[0].double().flatten(1), numbers[1].double().flatten(1)
    return numbers
