"""Walks of a few samples, which the tests of corrections share."""

import torch

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, walk
from bench.diffusion.types import Prediction

DRAWS = Draws(Noise(0), torch.arange(3))
SHAPE = (2, 4, 4)


def network(x, level, cond=None):
    """A closed form that takes levels of either kind; near 1 in size, where states are."""
    t = torch.as_tensor(level.t, dtype=x.dtype)
    eps = torch.tanh(0.9 * x / (level.alpha**2 + level.sigma**2) ** 0.5 + 0.2 * torch.sin(t / 50))
    return Prediction(eps, (x - level.sigma * eps) / level.alpha, torch.cos(x + t / 100))


def start(path, draws=DRAWS):
    """Return the noise that a walk begins with, of three samples unless other draws are given."""
    return prior(path[0], draws, SHAPE)


def run(denoiser, path, x, solver, correction=None, clip=False):
    """Return the steps of a walk of as many samples as ``x`` has."""
    draws = Draws(Noise(0), torch.arange(len(x)))
    return list(walk(denoiser, path, x, solver, draws, clip=clip, correction=correction))
