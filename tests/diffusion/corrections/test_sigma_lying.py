"""Sigma lying by hand, and against a denoiser that takes sigma for larger than it is."""

import pytest
import torch
from small_walks import run

from bench.check.walks import FRAMES
from bench.diffusion.corrections import SigmaLying
from bench.diffusion.schedules import edm_grid
from bench.diffusion.solvers import DDIM
from bench.diffusion.types import CLEAN, Level, Prediction

X = torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(3, 1, 2, 2)


class Exact:
    """The denoiser of N(0, v); ``wrong`` takes sigma / alpha for so many times what it is told."""

    def __init__(self, v=0.5, wrong=1.0):
        self.v, self.wrong = v, wrong

    def __call__(self, x, level, cond=None):
        x0 = level.alpha * self.v / (level.alpha**2 * self.v + (self.wrong * level.sigma) ** 2) * x
        return Prediction((x - level.alpha * x0) / level.sigma, x0)


def walked(denoiser, path, correction):
    return [step.x_next for step in run(denoiser, path, X, DDIM(), correction)]


def test_two_steps_by_hand():
    """v = 1, sigma 2, 1, 0, d = .5: told 1, x0 = x / 2, eps = x / 4, x1 = .75 x; told .5, x0 = x1 / 1.25 = .6 x."""
    path = (Level(2, 1.0, 2.0), Level(1, 1.0, 1.0), CLEAN)
    first, last = walked(Exact(1.0), path, SigmaLying(edm_grid(), 0.5))
    torch.testing.assert_close(first, 0.75 * X, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, 0.6 * X, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frame", ["vp", "edm"])
def test_it_repairs_a_denoiser_that_takes_sigma_for_larger(frame):
    """Told sigma / 1.1 by a lie, and taking it for 1.1 times that, it is right, at every level."""
    path, grid = FRAMES[frame]
    repaired = walked(Exact(wrong=1.1), path, SigmaLying(grid, 1 - 1 / 1.1))
    for one, other in zip(repaired, walked(Exact(), path, None), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("frame", FRAMES)
def test_what_the_network_is_told(frame):
    """Its t is that of sigma (1 - d), and the state keeps the signal and noise that it has."""
    path, grid = FRAMES[frame]
    level, told = path[4], []

    def network(x, asked):
        told.append((x, asked))
        return Exact()(x, asked)

    pred = SigmaLying(grid, 0.1).ask(network, X, level)
    ((state, asked),) = told
    if frame == "flow":
        assert (asked.t, asked.sigma) == (pytest.approx(0.9 * level.t), pytest.approx(0.9 * level.sigma))
        assert torch.equal(state, X)
    else:
        assert asked.sigma / asked.alpha == pytest.approx(0.9 * level.sigma / level.alpha)
        torch.testing.assert_close(state / asked.alpha, X / level.alpha, rtol=0, atol=1e-12)
        assert asked.t < level.t
    torch.testing.assert_close(level.alpha * pred.x0 + level.sigma * pred.eps, X, rtol=0, atol=1e-12)


def test_a_state_without_signal_is_told_the_truth():
    path, grid = FRAMES["flow"]
    asked = []
    SigmaLying(grid, 0.1).ask(lambda x, level: asked.append(level) or Prediction(x, x), X, path[0])
    assert asked == [path[0]]
