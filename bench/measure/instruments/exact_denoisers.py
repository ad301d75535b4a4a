"""Stand-ins for the law of the data, with denoisers in closed form: the training images themselves, and a mixture.

Both know the variance that they would learn. Walks of such a denoiser show what the step count and the variance mode do
without any error of a network. A Gaussian (:mod:`bench.measure.instruments.gaussian`), a mixture and the finite set of
training images differ, so a part of a gap is a network's only where all three agree.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.diffusion.types import Level, Prediction
from bench.measure.instruments.gaussian import learned_fraction

_NEAREST, _REST = 32, 1e-7  # images that are enough where the others have less weight than the rest
_DOUBLE = 2**20  # values of all images: up to so many the arithmetic is float64, beyond float32


class ExactDenoiser(ABC):
    """A law of the data with an exact denoiser.

    ``learned`` is the alpha_bar [T] of the training process that the learned variance refers to, None without one.
    """

    learned: NDArray[np.float64] | None = None

    def trained_on(self, alpha_bars: NDArray[np.float64] | None) -> Self:
        """Return the same law with the alpha_bar [T] of another training process, or without one."""
        law = copy.copy(self)
        law.learned = alpha_bars
        return law

    @abstractmethod
    def posterior(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each pixel of x0 given x, both [B, D], for x [B, D]."""

    @abstractmethod
    def sample(self, count: int, seed: int) -> Tensor:
        """Draw images, float32 [count, C, H, W]."""

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Return E[x0 | x], the eps consistent with it, and the learned variance's fraction, for x [B, C, H, W]."""
        mean, variance = self.posterior(x.flatten(1), level)
        x0 = mean.reshape(x.shape).to(x.dtype)
        eps = ((x - level.alpha * x0) / level.sigma).to(x.dtype)
        if self.learned is None:
            return Prediction(eps, x0)
        v = learned_fraction(self.learned, int(level.t), variance.clamp(min=0).cpu().double().numpy())
        # Where the posterior has several modes its variance can exceed what learned range expresses.
        fraction = torch.from_numpy(2 * v.clip(0, 1) - 1).reshape(x.shape).to(x.device, x.dtype)
        return Prediction(eps, x0, fraction)


class FiniteSet(ExactDenoiser):
    """The law of drawing one of the training images.

    Args:
        images: float [M, C, H, W] in [-1, 1], on the device of the walk.
    """

    def __init__(self, images: Tensor) -> None:
        self.images, self.rows = images, images.flatten(1).to(_dtype(images))  # rows [M, D]
        self.energy = self.rows.square().sum(1)  # ||x_j||^2

    def posterior(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Return the moments of q(x_j | x), the softmax over j of -||x - alpha x_j||^2 / (2 sigma^2)."""
        # ||x||^2 is the same for every j, so the softmax does not need it.
        products = x.to(self.rows.dtype) @ self.rows.T
        weights = ((level.alpha * products - level.alpha**2 / 2 * self.energy) / level.sigma**2).softmax(1)  # [B, M]
        largest, numbers = weights.topk(min(_NEAREST, len(self.rows)))
        if bool((largest.sum(1) > 1 - _REST).all()):  # far from pure noise a few images have all of the weight
            nearest = self.rows[numbers]  # [B, k, D]
            mean, second = (torch.einsum("bk,bkd->bd", largest, y) for y in (nearest, nearest.square()))
        else:
            mean, second = weights @ self.rows, weights @ self.rows.square()
        return mean, second - mean.square()

    def sample(self, count: int, seed: int) -> Tensor:
        """Draw images of the set, without replacement as far as they go."""
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))
        return self.images[order.repeat(-(-count // len(order)))[:count].to(self.images.device)].float()


class ClassMixture(ExactDenoiser):
    """A Gaussian for each class, with the full covariance of its images.

    Args:
        images: float [M, C, H, W] in [-1, 1], on the device of the walk.
        labels: int64 [M]; every class has at least two images.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.shape, self.parts = images.shape[1:], list[_Component]()
        dtype = _dtype(images)
        for label in labels.unique().tolist():
            rows = images[(labels == label).to(images.device)].flatten(1).cpu().double()
            parts = rows.mean(0), *_principal(rows)
            mean, values, vectors = (part.to(dtype).to(images.device) for part in parts)
            self.parts.append(_Component(len(rows) / len(images), mean, values, vectors))

    def posterior(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Return the moments of the mixture of the posteriors of its parts."""
        scores, means, variances = [], [], []
        for part in self.parts:
            total = level.alpha**2 * part.values + level.sigma**2  # eigenvalues of Cov(x), [r]
            centred = x.to(part.mean.dtype) - level.alpha * part.mean
            rotated = centred @ part.vectors  # [B, r]
            scores.append(math.log(part.share) - (rotated.square() / total + total.log()).sum(1) / 2)
            if (rest := len(part.mean) - len(total)) > 0:  # directions of no spread have noise alone
                outside = centred.square().sum(1) - rotated.square().sum(1)
                scores[-1] -= (outside / level.sigma**2 + rest * math.log(level.sigma**2)) / 2
            means.append(part.mean + (rotated * (level.alpha * part.values / total)) @ part.vectors.T)
            variances.append(part.vectors.square() @ (part.values * level.sigma**2 / total))
        weights = torch.stack(scores, dim=1).softmax(1)  # [B, parts]
        first = torch.einsum("bk,kbd->bd", weights, torch.stack(means))
        seconds = torch.stack([m.square() + v for m, v in zip(means, variances, strict=True)])
        return first, torch.einsum("bk,kbd->bd", weights, seconds) - first.square()

    def sample(self, count: int, seed: int) -> Tensor:
        """Draw classes by their shares, and an image of each class's Gaussian."""
        rng = np.random.default_rng(seed)
        images = []
        for number in rng.choice(len(self.parts), count, p=[part.share for part in self.parts]).tolist():
            part = self.parts[number]
            z = torch.from_numpy(rng.standard_normal(len(part.values))).to(part.mean)
            images.append(part.mean + part.vectors @ (part.values.sqrt() * z))
        return torch.stack(images).reshape(count, *self.shape).float()


@dataclass(frozen=True)
class _Component:
    """A Gaussian of a mixture: its share, mean [D], and r eigenvalues and eigenvectors [D, r]; the others are 0."""

    share: float
    mean: Tensor
    values: Tensor
    vectors: Tensor


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues [r] and eigenvectors [D, r] of the covariance of rows [N, D], r = min(N, D)."""
    if len(rows) > rows.shape[1]:
        values, vectors = torch.linalg.eigh(rows.T.cov())
        return values.clamp(min=0), vectors
    _, roots, vectors = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return roots.square() / (len(rows) - 1), vectors.T


def _dtype(images: Tensor) -> torch.dtype:
    return torch.float64 if images.numel() <= _DOUBLE and images.device.type != "mps" else torch.float32
