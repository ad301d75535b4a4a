"""A hand-written PyTorch loop, measured by one line in it; see docs/hooks.md.

python examples/custom_loop.py results/own && python -m analysis results/own
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from bench.data import load, to_unit
from bench.diffusion.schedules import alpha_bars
from bench.hooks import record
from bench.models.checkpoints.formats import open_network
from bench.suite.registry.registry import load_registry


@torch.no_grad()
def main(out: Path, steps: int = 10, images: int = 64) -> None:
    """Sample the embedded model by DDIM, batch by batch, and print the error of x0_hat where it is known."""
    model = load_registry([], "digits").model("adm")
    network = open_network(model.weights, model.description)
    real = to_unit(load("digits").part("train"))

    def eps(x: torch.Tensor, t: float) -> torch.Tensor:
        return network(x, torch.full((len(x),), int(t)), None).sample[:, :1]  # the rest is a learned variance

    def asked(x: torch.Tensor, level: Any) -> torch.Tensor:
        return eps(x, level.t)

    bars = alpha_bars("cosine", 1000).tolist()
    times = [1000 // steps * k for k in reversed(range(steps))]
    generator = torch.Generator().manual_seed(0)
    with record(real=real, out=out, name="ddim", network=asked, forced=images) as log:
        for _ in range(2):  # batches: memory does not grow with their number
            x = torch.randn(images // 2, 1, 8, 8, generator=generator)
            for t, t_next in zip(times, [*times[1:], None], strict=True):
                bar, bar_next = bars[t], 1.0 if t_next is None else bars[t_next]
                alpha, sigma = bar**0.5, (1 - bar) ** 0.5
                noise = eps(x, t)
                x0 = ((x - sigma * noise) / alpha).clamp(-1, 1)
                x_next = bar_next**0.5 * x0 + (1 - bar_next) ** 0.5 * (x - alpha * x0) / sigma
                log.step(t=t, alpha=alpha, sigma=sigma, x=x, prediction=noise, x_next=x_next)
                x = x_next
    table = log.table()
    print(table[table["quantity"] == "x0_rmse"][["i", "t", "value", "n"]].round(3).to_string(index=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
