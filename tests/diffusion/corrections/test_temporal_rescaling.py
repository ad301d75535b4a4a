"""Temporal score rescaling by hand, and on the data for which it is exact."""

from itertools import pairwise

import pytest
import torch
from small_walks import run

from bench.diffusion.corrections import InOrder, TemporalRescaling, X0Scaling
from bench.diffusion.schedules import edm_levels, flow_levels, levels
from bench.diffusion.solvers import DDIM
from bench.diffusion.types import CLEAN, Call, Prediction
from bench.models.denoisers.oracles import GaussianOracle

SHAPE = (1, 2, 2)
SPREAD = 0.4
VP, EDM, FLOW = levels("cosine", 1000, 12), edm_levels(12), flow_levels("flow", 12)
MEAN = torch.tensor([[[0.3, -0.1], [0.2, 0.6]]], dtype=torch.float64)


def isotropic(variance):
    return GaussianOracle(MEAN, variance * torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("k", [0.5, 0.95, 2.0])
@pytest.mark.parametrize("path", [VP, EDM, FLOW], ids=["vp", "edm", "flow"])
def test_on_isotropic_data_it_is_the_exact_denoiser_of_more_or_less_spread(path, k):
    """Float64; x0 divides by alpha, 5e-5 at the least, numbers of order 1: 2e4 * 2e-16."""
    x = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for level, after in pairwise(path):
        pred = isotropic(SPREAD**2)(level.sigma * x, level)
        x0, eps = TemporalRescaling(k, SPREAD).prediction(pred, level.sigma * x, Call(0, level, after, True))
        wanted = isotropic(SPREAD**2 / k)(level.sigma * x, level)
        torch.testing.assert_close(eps, wanted.eps, rtol=0, atol=1e-12)
        torch.testing.assert_close(x0, wanted.x0, rtol=0, atol=1e-10)


def test_a_long_deterministic_walk_ends_at_the_variance_over_k():
    """Linear in x: x ends at mean + g (x - alpha mean), whose g gives the variance g^2 (sigma_T = 1 to 2e-9).

    DDIM's error is of first order in the step: .85 of the variance at 20 steps, so within 1 % at 1000.
    """
    path = levels("cosine", 1000, 1000)
    x = torch.stack([torch.full(SHAPE, value, dtype=torch.float64) for value in (0.0, 1.0)])
    ends = run(isotropic(SPREAD**2), path, x, DDIM(), TemporalRescaling(0.5, SPREAD))[-1].x_next
    gain = ends[1] - ends[0]
    torch.testing.assert_close(gain**2, torch.full(SHAPE, SPREAD**2 / 0.5, dtype=torch.float64), rtol=0.01, atol=0)


def test_the_factor_goes_from_1_to_k():
    tsr = TemporalRescaling(0.9, 1.0)
    factors = [tsr.factor(level) for level in levels("cosine", 1000, 1000)[:-1]]
    assert factors == sorted(factors, reverse=True)
    # At either end the rest is the smaller of snr and 1 / snr: 2.4e-9 and 4.1e-5.
    assert (factors[0], factors[-1]) == (pytest.approx(1.0, abs=1e-8), pytest.approx(0.9, abs=1e-4))
    assert TemporalRescaling(0.9, 3.0).factor(VP[4]) < tsr.factor(VP[4])  # a larger s is felt earlier


def test_it_replaces_an_x0_that_stood_apart_from_eps():
    x, level = torch.ones(1, 1, 2, 2), VP[5]
    pred, call = Prediction(x, x), Call(0, level, CLEAN, True)
    tsr, apart = TemporalRescaling(0.9), X0Scaling(VP, 1.1)
    assert torch.equal(InOrder([apart, tsr]).prediction(pred, x, call)[0], tsr.prediction(pred, x, call)[0])
