"""The instruments on latents: free running and teacher forced, in memory, without files.

Every quantity is that of :mod:`bench.measure.instruments.step_table` with latents for pixels. Latents have no range, so
nothing is
clipped, and ``clipped`` is merely the share of x0_hat's elements at or beyond 1 in magnitude.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor

from bench.data import DataError
from bench.diffusion.corrections import Correction
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, teacher_forced, walk
from bench.diffusion.solvers import Solver
from bench.diffusion.types import Denoiser, Level, Step
from bench.measure.instruments.probes import Selected, WalkProbe
from bench.measure.instruments.step_table import PixelStatistics, Row, to_table


def measure_latents(
    denoiser: Denoiser,
    latents: Tensor,
    levels: Sequence[Level],
    solver: Solver,
    seed: int,
    samples: int,
    *,
    batch: int = 16,
    cond: Tensor | None = None,
    correction: Correction | None = None,
    indices: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Walk a denoiser of latents with every instrument on.

    Args:
        denoiser: the model, on the latents' device.
        latents: real ones, float [N, C, h, w]: the data whose mean and variance the rows refer to, and x0 of the
            teacher-forced arm.
        levels: the walk's, noisiest first, ending in the clean one.
        solver: the update rule.
        seed: of the noise, which belongs to the sample: the batch size changes nothing but rounding.
        samples: free-running samples, at least 2; the first min(samples, N) latents are teacher forced.
        batch: internal batch size; the last batch is padded to it.
        cond: int64 [N], which condition belongs to each latent; sample k takes that of latent k mod N.
        correction: an intervention; None is the plain sampler.
        indices: solver indices of the per-pixel rows (all by default), also those that are teacher forced. Each costs
            100 bytes an element of a latent.

    Returns:
        A table with the columns of ``steps.csv`` and the arms ``free`` and ``forced``.

    Raises:
        DataError: latents or conditions of another shape or kind, not finite, or fewer than two of either.
    """
    _check(latents, cond, samples, batch)
    indices = list(range(len(levels) - 1)) if indices is None else list(indices)
    latents = latents.float()
    cond = None if cond is None else cond.to(latents.device)
    wide = latents.double() if latents.device.type != "mps" else latents.cpu().double()
    data = PixelStatistics(wide.mean(0).cpu().numpy(), wide.var(0).cpu().numpy())
    centre = wide.mean(0).float().to(latents.device)

    def probe(knows_x0: bool) -> WalkProbe:
        return WalkProbe(len(levels) - 1, indices, centre, knows_x0, solver.stages)

    def free(draws: Draws, rows: Tensor) -> Iterator[Step]:
        x = prior(levels[0], draws, latents.shape[1:])
        chosen = None if cond is None else cond[rows]
        return walk(denoiser, levels, x, solver, draws, clip=False, correction=correction, cond=chosen)

    def forced(draws: Draws, rows: Tensor) -> Iterator[Step]:
        chosen = None if cond is None else cond[rows]
        return teacher_forced(
            denoiser, levels, latents[rows], solver, draws,
            clip=False, correction=correction, cond=chosen, indices=set(indices),
        )  # fmt: skip

    arms = {"free": (free, probe(False), samples), "forced": (forced, probe(True), min(samples, len(latents)))}
    table: list[Row] = []
    for arm, (start, observer, count) in arms.items():
        _watch(start, observer, Noise(seed), count, min(batch, count), latents)
        table += WalkProbe.result(arm, observer.state(), indices, levels, data, solver)
    return to_table(table)


def _check(latents: Tensor, cond: Tensor | None, samples: int, batch: int) -> None:
    if latents.ndim != 4 or not latents.is_floating_point():
        raise DataError(f"latents must be floats [N, C, h, w], not {latents.dtype} {tuple(latents.shape)}")
    if len(latents) < 2 or samples < 2 or batch < 1:
        raise DataError("at least two latents, two samples and batches of one are needed to measure a variance")
    if min(latents.shape[2:]) < 2:
        raise DataError(f"latents must be at least 2 high and wide, not {tuple(latents.shape[2:])}")
    if not torch.isfinite(latents).all():
        raise DataError("latents hold values that are not finite; encode the images again")
    if cond is not None and (cond.shape != latents.shape[:1] or cond.dtype != torch.int64):
        raise DataError(f"cond must be int64 [{len(latents)}], one a latent, not {cond.dtype} {tuple(cond.shape)}")


def _watch(
    start: Callable[[Draws, Tensor], Iterator[Step]],
    probe: WalkProbe,
    noise: Noise,
    count: int,
    batch: int,
    latents: Tensor,
) -> None:
    """Walk ``count`` samples in batches of one size, showing the probe the real part of each."""
    for first in range(0, count, batch):
        numbers = torch.arange(first, first + batch, device=latents.device)
        real = Selected(probe, slice(0, min(batch, count - first)))
        for step in start(Draws(noise, numbers), numbers % len(latents)):
            real.update(step)
