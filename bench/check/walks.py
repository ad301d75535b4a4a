"""What corrections are checked on: levels and solvers of every frame, and an exact denoiser with known biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.corrections import Correction
from bench.diffusion.corrections.base import Grid, is_blind
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, walk
from bench.diffusion.schedules import edm_grid, edm_levels, flow_grid, flow_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, Churn, DPMSolverPP2M, Euler, FlowSDE, Heun, Solver, UniPC
from bench.diffusion.types import Denoiser, Level, Prediction
from bench.models.denoisers.oracles import GaussianOracle, TimelessOracle

_STEPS, _SHAPE, _SEED = 10, (1, 8, 8), 0
MANY = 256  # images of a law
_SIZE = 0.02  # of the biases
FRAMES: Mapping[str, tuple[Sequence[Level], Sequence[Level]]] = {
    "vp": (levels("cosine", 1000, f"ddim{_STEPS}"), levels("cosine", 1000, 1000)[:-1]),
    "edm": (edm_levels(_STEPS), edm_grid()),
    "flow": (flow_levels("flow", _STEPS), flow_grid()),
}
SOLVERS: Mapping[tuple[str, str], Solver] = {
    ("vp", "ddpm"): Ancestral("fixed-small"),
    ("vp", "ddim"): DDIM(),
    ("edm", "euler"): Euler(),
    ("edm", "heun"): Heun(),
    ("edm", "heun, churn"): Heun(Churn(4.0, _STEPS)),
    ("flow", "euler"): Euler(straight=True),
    ("flow", "heun"): Heun(straight=True),
    ("flow", "sde"): FlowSDE(),
    **{(frame, "dpmpp-2m"): DPMSolverPP2M() for frame in FRAMES},
    **{(frame, "unipc"): UniPC() for frame in FRAMES},
}
SHOWN = (("vp", "ddim"), ("vp", "ddpm"), ("edm", "euler"), ("flow", "euler"))  # whose errors under a bias are measured


class Oracle(GaussianOracle):
    """The exact denoiser of Gaussian images, with a bias; asked without a time it guesses its level from the state.

    Attributes:
        eps: factor of its eps.
        time: factor of the sigma that it takes a state to have.
        spread: factor of the standard deviation that it takes the data to have.
    """

    def __init__(self, eps: float = 1.0, time: float = 1.0, spread: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(_SEED)
        vectors = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q
        variances = torch.logspace(-1.0, -0.3, 64, dtype=torch.float64)  # .1 to .5
        mean = torch.rand(_SHAPE, generator=generator, dtype=torch.float64) - 0.5
        super().__init__(mean, spread**2 * (vectors * variances) @ vectors.T)
        self.eps, self.time = eps, time
        self.guessing = {frame: TimelessOracle(self.mean, self.cov, grid) for frame, (_, grid) in FRAMES.items()}

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Return the biased prediction, in x's dtype."""
        if level.is_timeless:
            pred = self.guessing[Grid([level]).family](x, level)
        else:
            pred = super().__call__(x, replace(level, sigma=self.time * level.sigma))
        eps = (x - level.alpha * pred.x0) / level.sigma
        if self.eps == 1 or is_blind(level):
            return Prediction(eps, pred.x0)
        eps = self.eps * eps
        return Prediction(eps, (x - level.sigma * eps) / level.alpha)


@cache
def exact() -> Oracle:
    """Return the denoiser without a bias."""
    return Oracle()


# Each bias removes too much noise, as networks do by their own errors, so that samples spread too little.
BIASES: Mapping[str, Callable[[], Oracle]] = {
    "eps too large": lambda: Oracle(eps=1 + _SIZE),
    "time too late": lambda: Oracle(time=1 + 5 * _SIZE),
    "variance too little": lambda: Oracle(spread=1 - _SIZE),
}
# The same of the other sign: samples spread too much.
OPPOSITES: Mapping[str, Callable[[], Oracle]] = {
    "eps too small": lambda: Oracle(eps=1 - _SIZE),
    "time too early": lambda: Oracle(time=1 - 5 * _SIZE),
    "variance too large": lambda: Oracle(spread=1 + _SIZE),
}


def states(
    place: tuple[str, str], correction: Correction | None, denoiser: Denoiser, images: range, clip: bool = False
) -> list[Tensor]:
    """Return the states after each network call of a walk, float64 [B, C, H, W] each."""
    path, draws = FRAMES[place[0]][0], Draws(Noise(_SEED), torch.arange(images.start, images.stop))
    start = prior(path[0], draws, _SHAPE).double()
    return [
        step.x_next for step in walk(denoiser, path, start, SOLVERS[place], draws, clip=clip, correction=correction)
    ]


@cache
def measured(frame: str) -> Mapping[str, Any]:
    """Return what corrections are given that is measured on the data, of the unbiased oracle's images."""
    oracle = exact()
    images = oracle.sample(MANY, torch.Generator().manual_seed(_SEED))
    variance = float(images.flatten(1).var(1).mean())
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spreads = []
    for level in FRAMES[frame][0][:-1]:
        x0 = oracle(level.alpha * images + level.sigma * noise, level).x0
        spreads.append((level.t, float(x0.flatten(1).var(1).mean() ** 0.5)))
    return {"data_variance": variance, "std": variance**0.5, "reference": spreads}


def distance(samples: Tensor, unbiased: Tensor) -> float:
    """Return the distance of two laws of images along the axes of the data: the root of W2 squared of Gaussians."""
    ours, theirs = (images.flatten(1) @ exact().vectors for images in (samples, unbiased))
    apart = (ours.mean(0) - theirs.mean(0)).square().sum() + (ours.std(0) - theirs.std(0)).square().sum()
    return float(apart.sqrt())


@cache
def biased_images(place: tuple[str, str], bias: str | None) -> Tensor:
    """Return the images [256, C, H, W] that a walk ends in, under a bias by name or under none."""
    return states(place, None, exact() if bias is None else {**BIASES, **OPPOSITES}[bias](), range(MANY))[-1]
