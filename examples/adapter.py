"""An adapter: a function that returns a network, here a closed form. ``adapter.toml`` names it; see docs/adapters.md.

    python run_bench.py --config examples/adapter.toml --models pixelwise,karras,adm --sampler ddim --steps 20 --seeds 0

For independent Gaussian pixels with the digits' means and variances the best guess of x0 given x is linear. Many steps
along it give every pixel its mean and variance and no pixel its neighbours: no digit is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bench.data import load as load_dataset
from bench.data import to_unit
from bench.diffusion.schedules import alpha_bars


def load() -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the posterior mean E[x0 | x] of independent Gaussian pixels, as ``prediction = "x0"`` promises."""
    pixels = to_unit(load_dataset("digits").part("train"))
    mean, variance = pixels.mean(0), pixels.var(0)
    alpha_bar = torch.from_numpy(alpha_bars("cosine", 1000)).float().reshape(-1, 1, 1, 1)

    def network(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        bar = alpha_bar[t.long().cpu()]
        gain = bar.sqrt() * variance / (bar * variance + 1 - bar)
        return mean.to(x) + gain.to(x) * (x - (bar.sqrt() * mean).to(x))

    return network


def load_karras() -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the same of a denoiser D(x0 + sigma noise, sigma), as those of EDM, EDM2 and k-diffusion are called."""
    pixels = to_unit(load_dataset("digits").part("train"))
    mean, variance = pixels.mean(0), pixels.var(0)
    bars = alpha_bars("linear", 1000)
    sigmas = np.sqrt((1 - bars) / bars)  # by t, from 0.01 to 157

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        return mean.to(x) + variance.to(x) / (variance.to(x) + sigma**2) * (x - mean.to(x))

    def network(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        at_t = np.interp(t.cpu().numpy(), np.arange(1000), sigmas)  # t may lie between two steps
        sigma = torch.from_numpy(at_t).float().to(x.device).reshape(-1, 1, 1, 1)
        return D(x * (1 + sigma**2).sqrt(), sigma)  # x / alpha = x0 + sigma noise

    return network
