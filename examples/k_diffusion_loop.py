"""A loop of k-diffusion, measured by its own callback; see docs/hooks.md.

    python examples/k_diffusion_loop.py results/k && python -m analysis results/k

``sample_euler`` has the arguments and the callback of ``k_diffusion.sampling.sample_euler``, which may take its place.
The model is the exact denoiser of Gaussian data: it has no exposure bias.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.data import load, to_unit
from bench.hooks import record


@torch.no_grad()
def sample_euler(model: Any, x: Tensor, sigmas: Tensor, callback: Callable[[dict[str, Any]], None]) -> Tensor:
    """Return samples from x [B, C, H, W] with noise of ``sigmas[0]``, along sigmas that end in 0."""
    for i, sigma in enumerate(sigmas[:-1]):
        denoised = model(x, sigma * x.new_ones(len(x)))
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = x + (x - denoised) / sigma * (sigmas[i + 1] - sigma)
    return x


def main(out: Path, steps: int = 12, images: int = 64) -> None:
    """Record the loop, then ask the model about real images; print the ratio of the norms of eps at every level."""
    real = to_unit(load("digits").part("train"))
    mean, variance = real.mean(0), real.var(0)  # of each pixel

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return mean + variance / (variance + sigma[:, None, None, None] ** 2) * (x - mean)

    sigmas = torch.cat([torch.linspace(20 ** (1 / 7), 0.01 ** (1 / 7), steps) ** 7, torch.zeros(1)])
    start = sigmas[0] * torch.randn(images, *real.shape[1:], generator=torch.Generator().manual_seed(0))
    asked = lambda x, level: model(x, x.new_full((len(x),), level.sigma))  # noqa: E731
    with record(real=real, out=out, name="euler", network=asked, forced=images) as log:
        sample_euler(model, start, sigmas, callback=log.callback)
    table = log.table()
    norms = table[table["quantity"] == "eps_norm"].pivot_table(index=["i", "sigma"], columns="arm", values="value")
    print((norms["free"] / norms["forced-train"]).iloc[::-1].round(3).to_string())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
