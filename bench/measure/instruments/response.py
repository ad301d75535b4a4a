"""The response of a network at one noise level to states of every noise level.

At a fixed conditioning s the network gets x_t = alpha_t x_0 + sigma_t noise for levels t below, at and above s, and the
norm ||eps(x_t, s)||_2 is recorded (Yu et al. 2026, "DCW", figure 1; t and s are training indices, from 0). Where the
norm rises with t, the curve can be inverted: the norm of a sampler's states gives the level that they resemble to the
network, which is exposure bias in units of timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from bench.diffusion.types import Denoiser, Level
from bench.measure.instruments.moments import Moments

_SPREAD = 16  # levels over the whole training process
_OFFSETS = (0, 1, 2, 4, 8, 16, 32, 64)  # of 1000 training steps, on both sides of s: where the curve is read


@dataclass(frozen=True)
class ResponseRow:
    """One row of a response's ``record.csv``.

    ``s`` is the training index of the conditioning and ``t`` that of the states, both from 0. ``norm`` is the mean over
    the n images of ||eps||_2, ``norm_std`` its std over images (divisor n - 1, empty for one image), ``energy`` the
    mean of ||eps||_2^2.
    """

    model: str
    steps: int
    s: int
    t: int
    n: int
    part: str
    norm: float
    norm_std: float
    energy: float


RESPONSE_COLUMNS = tuple(field.name for field in fields(ResponseRow))


def response_grid(s: int, T: int) -> list[int]:
    """Return the training indices of the states at conditioning s, ascending: over all of 0..T-1, closer around s."""
    offsets = {round(offset * T / 1000) for offset in _OFFSETS}
    near = {min(max(s + sign * offset, 0), T - 1) for offset in offsets for sign in (-1, 1)}
    return sorted(near | {round(float(t)) for t in np.linspace(0, T - 1, _SPREAD)})


@torch.no_grad()
def response_norms(
    denoiser: Denoiser,
    pairs: Sequence[tuple[Level, Level]],
    x0: Tensor,
    noise: Tensor,
    moments: Moments,
    valid: int,
    progress: Callable[[int], None],
) -> None:
    """Add the norms of a batch to the record of every pair of levels.

    Args:
        denoiser: the network, without any correction.
        pairs: levels of the conditioning and of the states; rows of ``moments`` follow their order.
        x0: real images, [B, C, H, W] in [-1, 1].
        noise: their unit noise, [B, C, H, W]; the same at every level, so that curves are smooth in t.
        moments: moments of scalars, one row a pair.
        valid: number of images of the batch that count; the rest is padding.
        progress: called with the number of images of each network call.
    """
    for row, (conditioning, level) in enumerate(pairs):
        x = level.alpha * x0 + level.sigma * noise  # x_t
        eps = denoiser(x, conditioning).eps
        moments.add(row, eps[:valid].flatten(1).norm(dim=1))
        progress(valid)
