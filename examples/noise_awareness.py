"""What noise awareness guidance does to an exact denoiser, and to one with a known bias; see docs/remedies.md.

python examples/noise_awareness.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.diffusion.corrections import NoiseAwareness
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM
from bench.diffusion.types import Level, Prediction
from bench.models.denoisers.oracles import TimelessOracle

SPREAD, STEPS, IMAGES = 0.5, 100, 1024
GRID = levels("cosine", 1000, 250)[:-1]  # a quarter of the levels of training


def variance(values: int, w: float, scale: float) -> float:
    """Return the variance of finished images over the data's, with every eps of the network times ``scale``."""
    shape = (1, 1, values)
    exact = TimelessOracle(torch.zeros(shape), SPREAD**2 * torch.eye(values), GRID)

    def network(x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        eps = scale * exact(x, level).eps
        return Prediction(eps, (x - level.sigma * eps) / level.alpha)

    path, draws = levels("cosine", 1000, f"ddim{STEPS}"), Draws(Noise(0), torch.arange(IMAGES))
    x = prior(path[0], draws, shape).double()
    for step in walk(network, path, x, DDIM(), draws, clip=False, correction=NoiseAwareness(w)):
        x = step.x_next
    return float(x.var() / SPREAD**2)


print("| values | bias of eps | w = 0 | w = 1 | w = 4 |\n|---|---|---|---|---|")
for values in (1, 64, 256):
    for scale in (1.0, 1.02):
        row = " | ".join(f"{variance(values, w, scale):.3f}" for w in (0.0, 1.0, 4.0))
        print(f"| {values} | {scale - 1:+.0%} | {row} |")
