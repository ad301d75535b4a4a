"""Scheduled sampling: inputs that the network made itself in a few steps, as its sampler would.

Multi-step denoising scheduled sampling (MDSS, Ren et al., AAAI 2024). From its abstract: training inputs are replaced
by the model's own, made by several iterations of small denoising steps, so that errors accumulate as they do in
sampling; a step's error counts both in its output and in the noise that is to be predicted. There is no published
code. The details chosen here:

* the start: ``x_s ~ q(x_s | x0)`` at ``s = t + steps * stride``, at most T - 1, with the image's own noise;
* the steps: DDPM sampling as the suite's default has it, with the learned variance and x0_hat clipped to [-1, 1], by
  the weights that are being trained and without a gradient;
* the target: the noise that leads from x0 to the state reached, ``eps' = (x_hat - alpha_t x0) / sigma_t``;
* the schedule: the replaced share of each batch grows linearly from 0 to a half; it is taken from the front of the
  batch, whose order is random;
* the learned variance: it is trained by the other images alone, since the bound's posterior is that of x_t given x0.

The steps must be small. Given x_s the state x_hat is independent of x0: it forgets its image on the way, and even where
the network is exact the best answer at x_hat is not E[x0 | x_t]. For x0 ~ N(0, v) the best gain is too small by the
factor ``1 - (1 - alpha_s^2 / alpha_t^2) / (alpha_s^2 v + sigma_s^2)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bench.diffusion.noise import Purpose
from bench.diffusion.posterior import Posterior
from bench.diffusion.samplers import Draws
from bench.diffusion.schedules import alpha_bars
from bench.diffusion.types import Level


def replaced_share(largest: float, iteration: int, iterations: int) -> float:
    """Return the share of a batch to replace: 0 at the first iteration, rising linearly to ``largest`` at the last."""
    return largest * iteration / max(iterations - 1, 1)


@dataclass(frozen=True)
class Rollout:
    """The steps from any index t to the index ``stride`` below, float32 [T, 1, 1, 1] each by the index that is reached.

    Coefficients as in :class:`bench.diffusion.posterior.Posterior`, computed in float64. The last row leads from T - 1
    to itself and holds no step.
    """

    steps: int
    stride: int
    alpha: Tensor
    sigma: Tensor
    c1: Tensor
    c2: Tensor
    log_small: Tensor
    log_large: Tensor

    @classmethod
    def make(cls, schedule: str, T: int, steps: int, stride: int, device: torch.device | str = "cpu") -> Rollout:
        """Build the steps of a named schedule's training process."""
        levels = [Level(t, math.sqrt(bar), math.sqrt(1 - bar)) for t, bar in enumerate(alpha_bars(schedule, T))]
        rows = []
        for t, level in enumerate(levels):
            q = Posterior.between(levels[min(t + stride, T - 1)], level)
            logs = math.log(q.small or 1.0), math.log(q.large or 1.0)
            rows.append((level.alpha, level.sigma, q.c1, q.c2, *logs))
        columns = torch.tensor(rows, dtype=torch.float32, device=device).T.reshape(6, T, 1, 1, 1)
        return cls(steps, stride, *columns)

    @torch.no_grad()
    def pair(
        self, network: Callable[[Tensor, Tensor], Tensor], x0: Tensor, t: Tensor, noise: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Return (network input, target), both [B, C, H, W], for real images x0 in [-1, 1] at indices t [B] from 0.

        Args:
            network: called as ``network(x, t)`` ``steps`` times, [B, 2C, H, W]: eps and the raw variance fraction.
            x0: [B, C, H, W].
            t: where the pair belongs, int64 [B].
            noise: unit normals of the start, [B, C, H, W].
            draws: the images' random numbers; step k = 1 .. ``steps`` takes the k-th of ``Purpose.TRAIN_ROLLOUT``.
        """
        last = len(self.alpha) - 1
        path = [(t + k * self.stride).clamp(max=last) for k in range(self.steps, -1, -1)]  # indices [B], s down to t
        x = self.alpha[path[0]] * x0 + self.sigma[path[0]] * noise  # x_s ~ q(x_s | x0)
        for k, (index, index_next) in enumerate(pairwise(path), start=1):
            z = draws.normal(Purpose.TRAIN_ROLLOUT, k, x0.shape[1:])
            x = self._step(network(x, index), x, index, index_next, z)
        # The noise that leads from x0 to the state reached.
        return x, (x - self.alpha[t] * x0) / self.sigma[t]

    def _step(self, output: Tensor, x: Tensor, index: Tensor, index_next: Tensor, z: Tensor) -> Tensor:
        """Take one step of DDPM with a learned variance (Nichol & Dhariwal 2021, eq. 15)."""
        eps, raw = output.chunk(2, dim=1)
        x0_hat = ((x - self.sigma[index] * eps) / self.alpha[index]).clamp(-1, 1)
        fraction = (raw + 1) / 2  # of the way from the small to the large variance, as logarithms
        log_variance = fraction * self.log_large[index_next] + (1 - fraction) * self.log_small[index_next]
        mean = self.c1[index_next] * x0_hat + self.c2[index_next] * x
        x_next = mean + (0.5 * log_variance).exp() * z
        # Near T - 1 the path is shorter than the others': a step from an index to itself does nothing.
        return torch.where((index == index_next).reshape(-1, 1, 1, 1), x, x_next)
