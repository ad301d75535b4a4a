"""The distance between the ends of a chain x_0 -> x_t -> x_0', and the same distance for an exact sampler.

A real image x_0 is noised to the start level (alpha, sigma), x_t = alpha x_0 + sigma noise, and sampled back to x_0'
(Ning et al. 2023, figure 5 and table 1). Errors are between float images in the [-1, 1] scale: ``l1`` is
E mean_p |x_0' - x_0|, ``rmse`` the root of E mean_p (x_0' - x_0)^2, with means over the pixels p.

Neither is 0 for an exact sampler. It draws x_0' ~ q(x_0 | x_t), which has the law of x_0 given x_t and is independent
of it. At a noisy start the two are unrelated images. Two data laws give this floor in closed form:

* the finite set of training images (:func:`empirical_errors`): a network that has memorised its data;
* a Gaussian with the data's mean and covariance (:func:`gaussian_errors`). It has a floor for the deterministic chains
  of an exact denoiser too (:func:`gaussian_chain_errors`).
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

_ROWS = 256  # images whose distances to all training images are held at a time


@dataclass(frozen=True)
class ChainRow:
    """One row of a chain's ``record.csv``.

    ``start`` is the chain length L, which counts from 1 as in the papers; ``t`` = L - 1 is the training index of its
    start, from 0. Both are empty for images that were not sampled. ``n`` is empty where the value is exact, ``value``
    where there is none, for the reason in ``note``. ``std`` / sqrt(n) is the standard error of the value.
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
    if x.device.type == "mps":  # which has no float64
        x, x0 = x.cpu(), x0.cpu()
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

    q(x_0 = x_j | x_t) is the softmax over j of -||x_t - alpha x_j||^2 / (2 sigma^2). The error expected at x_t is the
    mean of ||x_j - x_0|| over it, in either norm. Nothing is drawn.

    Args:
        x0: images, [N, C, H, W] in [-1, 1].
        noise: their unit noise, [N, C, H, W].
        data: the finite set, [M, C, H, W] in [-1, 1].
        levels: start levels.

    Returns:
        Float64 [levels, N, 2], columns as in :func:`image_errors`, on the host.
    """
    # Distances from differences, not from products, so that an image is exactly 0 from itself.
    mode = "donot_use_mm_for_euclid_dist"
    device = torch.device("cpu") if x0.device.type == "mps" else x0.device  # which has no float64
    images, noises, finite_set = (tensor.to(device).double().flatten(1) for tensor in (x0, noise, data))
    square = finite_set.square().sum(1)
    blocks = []
    for block, unit in zip(images.split(_ROWS), noises.split(_ROWS), strict=True):
        distances = [torch.cdist(block, finite_set, norm, mode) ** norm / block.shape[1] for norm in (1.0, 2.0)]
        expected = []
        for level in levels:
            x = level.alpha * block + level.sigma * unit
            # ||x||^2 is the same for every j, so the softmax does not need it.
            logits = (level.alpha * x @ finite_set.T - level.alpha**2 * square / 2) / level.sigma**2
            weights = logits.softmax(1)  # q(x_j | x_t), [B, M]
            expected.append(torch.stack([(weights * distance).sum(1) for distance in distances], dim=1))
        blocks.append(torch.stack(expected))
    return torch.cat(blocks, dim=1).cpu().numpy()


def gaussian_errors(data: LinearGaussian, level: Level) -> tuple[float | None, float]:
    """Return (l1, rmse) of an exact sampler of Gaussian data; l1 is None where single pixels are not known.

    Given x_t, x_0 and x_0' are independent with the same mean and covariance P = Cov(x_0 | x_t), which does not depend
    on x_t. So x_0' - x_0 ~ N(0, 2 P), and E|x_0' - x_0|_p = sqrt(2 / pi) sqrt(2 P_pp) = 2 sqrt(P_pp / pi).
    """
    variance = 2 * data.posterior(level)  # eigenvalues of 2 P
    return _normal(None if data.squares is None else data.squares @ variance, float(variance.mean()))


def gaussian_chain_errors(data: LinearGaussian, levels: Sequence[Level], method: str) -> tuple[float | None, float]:
    """Return (l1, rmse) of an exact denoiser's chain on Gaussian data, unclipped and unscaled.

    Every step is affine in x, and maps the mean of q(x_t) to that of the next level, so x_0' - x_0 is Gaussian of mean
    0. Its variance follows from the recursion of Cov(x) and Cov(x, x_0). The mean chain ends in E[x_0 | x_t], so its
    error is 1 / sqrt(2) of the exact sampler's: the smaller error is not the better sampler.

    Args:
        data: the data's law.
        levels: from the start level to the clean one.
        method: ``mean`` or ``ddim`` (eta 0).

    Returns:
        As :func:`gaussian_errors`.
    """
    start = data.forward(levels[0])
    *_, end = data.walk(start, levels, PosteriorMean() if method == "mean" else DDIM())
    # Of x - x_0 at the clean level, where alpha is 1.
    residual = end.variance - 2 * end.cross + data.values
    return _normal(data.residual_variance(end), float(residual.mean()))


def _normal(variance: NDArray[np.float64] | None, mean_variance: float) -> tuple[float | None, float]:
    """Return (mean_p E|e_p|, sqrt(mean_p E e_p^2)) of normal errors of mean 0: E|e| = sqrt(2 / pi) std."""
    rmse = math.sqrt(max(mean_variance, 0.0))
    if variance is None:
        return None, rmse
    # A rounding below 0 where a pixel is constant.
    return float(np.sqrt(2 * variance.clip(min=0) / math.pi).mean()), rmse
