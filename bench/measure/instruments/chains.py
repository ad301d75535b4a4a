"""How far a chain x_0 -> x_t -> x_0' ends from where it began, and how far it ends for an exact sampler.

A real image x_0 is noised to the start level (alpha, sigma), x_t = alpha x_0 + sigma noise, and sampled back to x_0'
(Ning et al. 2023, figure 5 and table 1). Errors are between float images in the [-1, 1] scale: ``l1`` is
E mean_p |x_0' - x_0|, ``rmse`` the root of E mean_p (x_0' - x_0)^2, with means over the pixels p.

Neither is 0 for an exact sampler. It draws x_0' ~ q(x_0 | x_t), independent of x_0 given x_t but of the same law, so
that at a noisy start the two are unrelated images. Two data laws give that floor in closed form:

* the training images as a finite set (:func:`empirical_errors`): all a network can know from its data, memorised;
* a Gaussian with the data's mean and covariance (:func:`gaussian_errors`), where the deterministic chains of an exact
  denoiser have one too (:func:`gaussian_chain_errors`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.diffusion.solvers import DDIM, PosteriorMean
from bench.diffusion.types import Level
from bench.measure.instruments.gaussian import LinearGaussian

__all__ = [
    "CHAIN_COLUMNS", "ChainRow", "empirical_errors", "error_summary", "gaussian_chain_errors", "gaussian_errors",
    "image_errors", "to_table",
]  # fmt: skip

_ROWS = 256  # images whose distances to all training images are held at a time


@dataclass(frozen=True)
class ChainRow:
    """One row of a chain's ``record.csv``.

    ``start`` is the chain length L, which counts from 1 as the papers do; ``t`` = L - 1 the training index it starts
    at, from 0. Both are empty for images that were not sampled, ``n`` where the answer is exact, ``value`` where it
    cannot be had (``note`` says why). ``std`` / sqrt(n) is the value's standard error.
    """

    model: str
    method: str
    start: int | None
    t: int | None
    seed: int
    n: int | None
    quantity: str
    value: float | None
    std: float | None
    reference: str
    note: str = ""


CHAIN_COLUMNS = tuple(field.name for field in fields(ChainRow))


def to_table(rows: Sequence[ChainRow]) -> pd.DataFrame:
    """Return rows as a table, in their order."""
    table = pd.DataFrame([astuple(row) for row in rows], columns=list(CHAIN_COLUMNS))
    return table.astype({"start": "Int64", "t": "Int64", "n": "Int64", "value": float, "std": float})


def image_errors(x: Tensor, x0: Tensor) -> Tensor:
    """Return each image's mean absolute and mean squared difference, float64 [N, 2], of images [N, C, H, W]."""
    difference = (x.double() - x0.double()).flatten(1)
    return torch.stack([difference.abs().mean(1), difference.square().mean(1)], dim=1)


def error_summary(errors: NDArray[np.float64]) -> Iterator[tuple[str, float, float | None]]:
    """Yield (``l1`` | ``rmse``, value, std over images) of errors [N, 2]; std is None for a single image."""
    l1, square = errors.mean(0).tolist()
    rmse = math.sqrt(square)
    if len(errors) == 1:
        yield from (("l1", l1, None), ("rmse", rmse, None))
        return
    l1_std, square_std = errors.std(0, ddof=1).tolist()
    yield "l1", l1, l1_std
    # Spread of a root by the delta method: d sqrt(m) = dm / (2 sqrt(m)).
    yield "rmse", rmse, square_std / (2 * rmse) if rmse else 0.0


@torch.no_grad()
def empirical_errors(x0: Tensor, noise: Tensor, data: Tensor, levels: Sequence[Level]) -> NDArray[np.float64]:
    """Return the errors of an exact sampler of the finite set ``data``, expected given each noised image.

    q(x_0 = x_j | x_t) is the softmax over j of -||x_t - alpha x_j||^2 / (2 sigma^2), and the error expected at x_t the
    mean of ||x_j - x_0|| over it, in either norm. No draw is made.

    Args:
        x0: images, [N, C, H, W] in [-1, 1].
        noise: their unit noise, [N, C, H, W].
        data: all images there are, [M, C, H, W] in [-1, 1].
        levels: start levels.

    Returns:
        Float64 [levels, N, 2], columns as in :func:`image_errors`, on the host.
    """
    # By differences, not products: the distance of an image to itself is then exactly 0.
    exactly = "donot_use_mm_for_euclid_dist"
    place = torch.device("cpu") if x0.device.type == "mps" else x0.device  # where there is float64
    images, noises, every = (tensor.to(place).double().flatten(1) for tensor in (x0, noise, data))
    square = every.square().sum(1)
    blocks = []
    for near, unit in zip(images.split(_ROWS), noises.split(_ROWS), strict=True):
        apart = [torch.cdist(near, every, norm, exactly) ** norm / near.shape[1] for norm in (1.0, 2.0)]
        expected = []
        for level in levels:
            x = level.alpha * near + level.sigma * unit
            # ||x||^2 is the same for every j and leaves the softmax as it is.
            logits = (level.alpha * x @ every.T - level.alpha**2 * square / 2) / level.sigma**2
            weights = logits.softmax(1)
            expected.append(torch.stack([(weights * distance).sum(1) for distance in apart], dim=1))
        blocks.append(torch.stack(expected))
    return torch.cat(blocks, dim=1).cpu().numpy()


def gaussian_errors(data: LinearGaussian, level: Level) -> tuple[float, float]:
    """Return (l1, rmse) of an exact sampler of Gaussian data.

    Given x_t, x_0 and x_0' are independent with the same mean and covariance P = Cov(x_0 | x_t), whatever x_t is, so
    x_0' - x_0 ~ N(0, 2 P) and E|x_0' - x_0|_p = sqrt(2 / pi) sqrt(2 P_pp) = 2 sqrt(P_pp / pi).
    """
    return _normal(2 * np.diag(data.gain(level)[1]))


def gaussian_chain_errors(data: LinearGaussian, levels: Sequence[Level], method: str) -> tuple[float, float]:
    """Return (l1, rmse) of an exact denoiser's chain on Gaussian data, unclipped and unscaled.

    Every step is linear in x, and maps the mean of q(x_t) to that of the next level, so x_0' - x_0 is Gaussian of mean
    0; its variance follows from the recursion of Cov(x) and Cov(x, x_0). The mean chain ends in E[x_0 | x_t], so its
    error is 1 / sqrt(2) of the exact sampler's: the smaller error is not the better sampler.

    Args:
        data: the data's law.
        levels: from the start level to the clean one.
        method: ``mean`` or ``ddim`` (eta 0).
    """
    start = data.forward(levels[0])
    *_, end = data.walk(start, levels, PosteriorMean() if method == "mean" else DDIM())
    return _normal(end.residual_variance(data.cov))


def _normal(variance: NDArray[np.float64]) -> tuple[float, float]:
    """Return (mean_p E|e_p|, sqrt(mean_p E e_p^2)) of normal errors of mean 0: E|e| = sqrt(2 / pi) std."""
    variance = variance.clip(min=0)  # a rounding below 0 where a pixel is constant
    return float(np.sqrt(2 * variance / math.pi).mean()), float(np.sqrt(variance.mean()))
