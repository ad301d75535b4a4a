"""Walks of a few samples, which the tests of corrections share."""

import torch

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, walk

DRAWS = Draws(Noise(0), torch.arange(3))


def run(denoiser, path, x, solver, correction=None, clip=False):
    """Return the steps of a walk of as many samples as ``x`` has."""
    draws = Draws(Noise(0), torch.arange(len(x)))
    return list(walk(denoiser, path, x, solver, draws, clip=clip, correction=correction))
