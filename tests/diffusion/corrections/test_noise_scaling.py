"""Noise scaling by hand, in random steps and in churn."""

import torch
from small_walks import DRAWS, run

from bench.diffusion.corrections import InOrder, NoiseScaling
from bench.diffusion.noise import Purpose
from bench.diffusion.posterior import Posterior
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import Ancestral, Churn, Heun
from bench.diffusion.types import CLEAN, Level, Prediction

X = torch.ones(3, 1, 2, 2, dtype=torch.float64)


def exact(x, level, cond=None):
    """The denoiser of N(0, 1)."""
    x0 = level.alpha / (level.alpha**2 + level.sigma**2) * x
    return Prediction((x - level.alpha * x0) / level.sigma, x0)


def walked(solver, path, correction):
    return [step.x_next for step in run(exact, path, X, solver, correction)]


def test_two_ancestral_steps():
    """The first step gains (s - 1) std z; the second, to the clean level, carries it on times alpha (N(0, 1))."""
    path = levels("cosine", 1000, "ddim2")
    plain, scaled = (walked(Ancestral("fixed-small"), path, hooks) for hooks in (None, NoiseScaling(1.5)))
    gained = 0.5 * Posterior.between(*path[:2]).std("fixed-small") * DRAWS.normal(Purpose.ANCESTRAL, 1, X.shape[1:])
    torch.testing.assert_close(scaled[0] - plain[0], gained.double())
    torch.testing.assert_close(scaled[1] - plain[1], path[1].alpha * gained.double())


def test_the_noise_of_churn_is_scaled_as_s_noise_scales_it():
    path = (Level(2, 1.0, 2.0), Level(1, 1.0, 1.0), CLEAN)
    own = walked(Heun(Churn(2.0, 2, noise=1.2)), path, None)
    for hooks in (NoiseScaling(1.2), InOrder([NoiseScaling(1.5), NoiseScaling(0.8)])):
        for a, b in zip(own, walked(Heun(Churn(2.0, 2)), path, hooks), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # the noise is float32
