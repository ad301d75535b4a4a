"""What solvers do with a classifier's score, on closed forms.

Data x0 ~ N(m, S) reweighted by p(y | x0) proportional to exp(w x0 - x0 A x0 / 2) are Gaussian again, and at every level
the exact score of p(y | x_t) is the difference of the two Gaussians' scores.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch

from bench.diffusion.corrections import EpsilonScaling
from bench.diffusion.posterior import Posterior
from bench.diffusion.samplers import walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM, Ancestral, PosteriorMean
from bench.diffusion.types import Level, Prediction
from bench.models.denoisers.oracles import GaussianOracle

SHAPE, SIZE = (1, 2, 2), 4


def rng():
    return torch.Generator().manual_seed(0)


def data():
    root = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=rng())
    return GaussianOracle(torch.linspace(-0.5, 0.5, SIZE).reshape(SHAPE), 0.2 * root @ root.T)


def reweighted(oracle, linear, quadratic):
    """Return the data times exp(linear x0 - x0 quadratic x0 / 2)."""
    precision = torch.linalg.inv(oracle.cov)
    cov = torch.linalg.inv(precision + quadratic)
    mean = cov @ (precision @ oracle.mean.flatten() + linear)
    return GaussianOracle(mean.reshape(SHAPE), cov)


LINEAR = torch.tensor([0.7, -0.4, 0.2, 0.5], dtype=torch.float64)
QUADRATIC = torch.diag(torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64))
NONE = torch.zeros(SIZE, SIZE, dtype=torch.float64)


class Guided:
    """The data's denoiser with the exact score of p(y | x_t) = score of the reweighted data - score of the data."""

    def __init__(self, oracle, target):
        self.oracle, self.target = oracle, target

    def __call__(self, x, level, cond=None):
        pred = self.oracle(x, level)
        return replace(pred, guidance=(pred.eps - self.target(x, level).eps) / level.sigma)


class Zero:
    """Draws that are all zero: what is left of a linear chain is its mean."""

    def normal(self, purpose, step, shape):
        return torch.zeros(2, *shape, dtype=torch.float64)


class Stored:
    def normal(self, purpose, step, shape):
        return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def start(level):
    return level.sigma * torch.randn(2, *SHAPE, dtype=torch.float64, generator=rng())


def end(denoiser, steps, solver, draws):
    walked = levels("cosine", 1000, steps)
    *_, last = walk(denoiser, walked, start(walked[0]), solver, draws, clip=False)
    return last.x_next


# The same arithmetic in float64, in another order, along 20 steps. The noisiest level's alpha of 5e-5 divides x0_hat:
# 20 * 2e-16 / 5e-5 = 1e-10.
EXACT = {"rtol": 0, "atol": 1e-9}


@pytest.mark.parametrize(
    ("solver", "quadratic"),
    [*product([DDIM(), DDIM(0.7), PosteriorMean()], [NONE, QUADRATIC]), (Ancestral("exact"), NONE)],
)
def test_a_guided_walk_is_the_walk_of_the_reweighted_data(solver, quadratic):
    """The score of the reweighted data is the sum of both scores, so only rounding is left, at any step count.

    A linear log-probability leaves the covariance of Gaussian data, of the posterior too, as the exact variance needs.
    """
    oracle = data()
    target = reweighted(oracle, LINEAR, quadratic)
    guided, plain = end(Guided(oracle, target), 20, solver, Stored()), end(target, 20, solver, Stored())
    torch.testing.assert_close(guided, plain, **EXACT)
    assert (plain - end(oracle, 20, solver, Stored())).abs().max() > 0.05  # it is another walk


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large"])
def test_ancestral_guidance_converges_to_the_reweighted_data(variance):
    """Adding variance * score to the mean is first order in the step: four times the steps, a quarter of the error.

    Second-order terms are still seen at 50 steps, hence the wide bounds: zeroth order would give 1, second order 16.
    """
    oracle = data()
    target = reweighted(oracle, LINEAR, QUADRATIC)
    errors = []
    for steps in (50, 200):
        made, exact = (end(one, steps, Ancestral(variance), Zero()) for one in (Guided(oracle, target), target))
        errors.append((made - exact).abs().max().item())
    assert errors[1] < 0.05
    assert 2.5 < errors[0] / errors[1] < 6.5


LEVELS = (Level(700, 0.5, 0.75**0.5), Level(300, 0.8, 0.6), Level(-1, 1.0, 0.0))


class Fixed:
    """The same eps, score and variance fraction whatever the state."""

    def __init__(self, fraction=False):
        eps, score, v = (torch.randn(2, *SHAPE, dtype=torch.float64, generator=rng()) for _ in range(3))
        self.eps, self.score, self.fraction = eps, score.flip(0), v.tanh() if fraction else None

    def __call__(self, x, level, cond=None):
        return Prediction(self.eps, (x - level.sigma * self.eps) / level.alpha, self.fraction, None, self.score)


def first_step(model, solver, *, clip=False, correction=None):
    return next(iter(walk(model, LEVELS, start(LEVELS[0]), solver, Stored(), clip=clip, correction=correction)))


# One step of float64 numbers of order 1.
STEP = {"rtol": 0, "atol": 1e-13}


def test_ddim_scales_eps_once():
    """Guidance comes after epsilon scaling: eps / b - sigma g, in both terms of the step.

    The published DDIM path forms x0_hat twice when it is guided, each time dividing eps by b, so its step is that of
    (eps / b - sigma g) / b. Ours is not.
    """
    model, b = Fixed(), 1.1
    step = first_step(model, DDIM(), correction=EpsilonScaling(LEVELS, b))
    here, there = LEVELS[:2]

    def moved(eps):
        return there.alpha * (step.x - here.sigma * eps) / here.alpha + there.sigma * eps

    once = model.eps / b - here.sigma * model.score
    torch.testing.assert_close(step.x_next, moved(once), **STEP)
    assert (step.x_next - moved(once / b)).abs().max() > 0.01
    # The record's is the model's, not the classifier's.
    torch.testing.assert_close(step.eps_used, model.eps / b, **STEP)


def test_ddim_guides_after_clipping():
    """x0_hat is clipped, eps re-derived, then both are guided; the guided x0_hat is not clipped again."""
    model = Fixed()
    model.eps = 3 * model.eps
    step = first_step(model, DDIM(), clip=True)
    here, there = LEVELS[:2]
    raw = (step.x - here.sigma * model.eps) / here.alpha
    assert raw.abs().max() > 1.5
    x0 = raw.clamp(-1, 1)
    eps = (step.x - here.alpha * x0) / here.sigma - here.sigma * model.score
    x0 = (step.x - here.sigma * eps) / here.alpha
    torch.testing.assert_close(step.x_next, there.alpha * x0 + there.sigma * eps, **STEP)


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large", "learned"])
@pytest.mark.parametrize("b", [1.0, 1.1])
def test_ancestral_adds_the_variance_times_the_score(variance, b):
    """Algorithm 1: the guided step less the plain one is Sigma g, whatever eps was divided by."""
    model = Fixed(fraction=variance == "learned")
    scaling = EpsilonScaling(LEVELS, b)
    guided = first_step(model, Ancestral(variance), correction=scaling)
    score, model.score = model.score, None
    plain = first_step(model, Ancestral(variance), correction=scaling)
    q = Posterior.between(*LEVELS[:2])
    if variance == "learned":
        v = (model.fraction + 1) / 2
        sigma2 = q.large**v * q.small ** (1 - v)
    else:
        sigma2 = q.small if variance == "fixed-small" else q.large
    torch.testing.assert_close(guided.x_next - plain.x_next, sigma2 * score, **STEP)


@pytest.mark.parametrize("solver", [Ancestral("fixed-small"), Ancestral("fixed-large"), Ancestral("learned")])
def test_the_last_ancestral_step_has_no_variance_and_no_guidance(solver):
    model = Fixed(fraction=True)
    *_, last = walk(model, LEVELS, start(LEVELS[0]), solver, Stored(), clip=False)
    torch.testing.assert_close(last.x_next, last.x0_used, **STEP)
