"""Noise awareness guidance by hand, on exact denoisers that guess their level, and beside other corrections."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small_walks import run

from bench.diffusion.corrections import InOrder, InputPerturbation, NoiseAwareness, SigmaLying
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM
from bench.diffusion.types import NULL_TIME, Level, Prediction
from bench.models.denoisers.guidance import ClassifierFree, ClassifierFreeDenoiser
from bench.models.denoisers.oracles import GaussianOracle, TimelessOracle

PATH, GRID = levels("cosine", 1000, "ddim2"), levels("cosine", 1000, 40)[:-1]
MEAN = torch.tensor([[[0.3, -0.1], [0.2, 0.6]]], dtype=torch.float64)
COV = torch.diag(torch.tensor([0.3, 0.2, 0.1, 0.05], dtype=torch.float64))


def network(x, level, cond=None):
    """Eps is a twentieth of the state where it is asked without a time, a tenth else."""
    eps = (0.05 if level.t == NULL_TIME else 0.1) * x
    return Prediction(eps, (x - level.sigma * eps) / level.alpha, torch.zeros_like(x))


def test_two_steps_by_hand():
    """Eps is (.1 + w (.1 - .05)) x: .2 x at w = 2."""
    x = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    by_hand = 2.0
    for level, after in pairwise(PATH):
        eps = 0.2 * by_hand
        by_hand = after.alpha * (by_hand - level.sigma * eps) / level.alpha + after.sigma * eps
    for step in run(network, PATH, x, DDIM(), NoiseAwareness(2.0)):
        assert step.prediction.calls == 2
        assert torch.equal(step.prediction.plain.eps, 0.1 * step.x)
        assert torch.equal(step.prediction.variance_fraction, torch.zeros_like(x))
        x = step.x_next
    assert float(x) == pytest.approx(by_hand, rel=1e-12)


def test_at_0_the_network_is_asked_once():
    asked = []
    NoiseAwareness(0.0).ask(lambda x, level: asked.append(level) or network(x, level), MEAN[None], GRID[3])
    assert asked == [GRID[3]]


def test_the_timeless_oracle_guesses_its_level():
    """E[eps | x] = sum over t of p(t | x) E[eps | x, t], each by the ordinary oracle and torch's own density."""
    oracle, plain = TimelessOracle(MEAN, COV, GRID), GaussianOracle(MEAN, COV)
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    laws = [
        torch.distributions.MultivariateNormal(
            level.alpha * MEAN.flatten(), level.alpha**2 * COV + level.sigma**2 * torch.eye(4, dtype=torch.float64)
        )
        for level in GRID
    ]
    share = torch.stack([law.log_prob(x.flatten(1)) for law in laws]).softmax(0)
    expected = sum(p[:, None, None, None] * plain(x, level).eps for p, level in zip(share, GRID, strict=True))
    found = oracle(x, replace(GRID[5], t=NULL_TIME))
    torch.testing.assert_close(found.eps, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(GRID[5].alpha * found.x0 + GRID[5].sigma * found.eps, x, rtol=0, atol=1e-12)
    assert torch.equal(oracle(x, GRID[5]).eps, plain(x, GRID[5]).eps)


def test_an_exact_denoiser_of_many_values_knows_its_level():
    """2,000 values tell their level, so that guidance adds nothing to real noised data; of 4 values it does.

    The norm of the noise has a relative deviation of 1.6 %, and so have levels that look alike.
    """
    gaps = []
    for values in (4, 2000):
        oracle = TimelessOracle(torch.zeros(1, 1, values), 0.25 * torch.eye(values), GRID)
        x0 = oracle.sample(8, torch.Generator().manual_seed(0))
        noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        level = GRID[20]
        pred = NoiseAwareness(1.0).ask(oracle, level.alpha * x0 + level.sigma * noise, level)
        gaps.append(float((pred.eps - pred.plain.eps).norm() / pred.plain.eps.norm()))
    assert gaps[0] > 0.02
    assert gaps[1] < 0.01


@pytest.mark.parametrize("nearer", [SigmaLying(GRID, 0.05), InputPerturbation(GRID, 0.1)])
def test_a_correction_nearer_to_the_network_asks_without_a_time_too(nearer):
    asked = []
    InOrder([NoiseAwareness(1.0), nearer]).ask(
        lambda x, level: asked.append(level.t) or network(x, level), MEAN[None], GRID[9]
    )
    assert asked[0] > 0
    assert asked[1] == NULL_TIME


def test_under_class_guidance_each_answer_is_guided():
    """Four calls; ``plain`` is the model's own answer, with its time and its label."""
    asked = []

    def labelled(x, level, cond):
        asked.append((level.t == NULL_TIME, int(cond[0])))
        return network(x, level)

    guided, labels = ClassifierFreeDenoiser(labelled, ClassifierFree(3.0, null=10)), torch.tensor([7])
    x, level = MEAN[None], Level(500.0, 0.6, 0.8)
    pred = NoiseAwareness(1.0).ask(lambda x, level: guided(x, level, labels), x, level)
    assert (pred.calls, asked) == (4, [(False, 7), (False, 10), (True, 7), (True, 10)])
    assert torch.equal(pred.plain.eps, 0.1 * x)
