"""Differential correction by hand, against an explicit Haar transform, and on exact Gaussian data."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from small_walks import run

from bench.diffusion.corrections import (
    DifferentialCorrection,
    PiecewiseCorrection,
    PixelCorrection,
    ReverseStdCorrection,
)
from bench.diffusion.posterior import Posterior
from bench.diffusion.schedules import edm_levels, levels
from bench.diffusion.solvers import DDIM, Churn, Euler, Heun
from bench.diffusion.types import CLEAN, Call, Level, Prediction
from bench.models.denoisers.oracles import GaussianOracle

VP = levels("cosine", 1000, 10)


def haar(size):
    """The orthonormal one-step Haar matrix: sums of neighbours over sqrt(2), then differences."""
    half = np.eye(size // 2)
    return np.concatenate([np.kron(half, [1, 1]), np.kron(half, [1, -1])]) / math.sqrt(2)


def corrected_by_transform(x, x0, low, high):
    """Eq. 18 and 19 literally: transform both, correct each band, transform back."""
    rows, columns = haar(x.shape[-2]), haar(x.shape[-1])
    bands, clean = rows @ x @ columns.T, rows @ x0 @ columns.T
    factor = np.full(x.shape[-2:], high)
    factor[: x.shape[-2] // 2, : x.shape[-1] // 2] = low
    return rows.T @ (bands + factor * (bands - clean)) @ columns


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.0), (0.0, 0.1), (0.3, -0.2)])
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 2, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 5e-6)])
def test_it_is_a_correction_of_haar_bands(shape, low, high, dtype, tolerance):
    """Numbers of order 3 go through a dozen additions: 3 * 12 * 2^-53 and 3 * 12 * 2^-24."""
    x, x0 = np.random.default_rng(0).standard_normal((2, *shape))
    path = (Level(2, 1.0, 8.0), Level(1, 1.0, 2.0), CLEAN)
    correction = DifferentialCorrection(path, low, high)
    pred = Prediction(torch.zeros(shape, dtype=dtype), torch.from_numpy(x0).to(dtype))
    for level, after, weight in ((path[0], path[1], 1.0), (path[1], path[2], 0.25)):
        got = correction.after(torch.from_numpy(x).to(dtype), pred, Call(0, level, after, True))
        wanted = corrected_by_transform(x, x0, weight * low, (1 - weight) * high)
        assert got.dtype == dtype
        np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=tolerance)


class Halves:
    """Says x0 = half of [[4, 0], [0, 0]] at its first call, a quarter at its second, and so on; eps goes with it."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, level, cond=None):
        self.calls += 1
        x0 = torch.zeros_like(x)
        x0[..., 0, 0] = 4 / 2**self.calls
        return Prediction((x - level.alpha * x0) / level.sigma, x0)


def walked(path, x, solver, correction, denoiser=None):
    x = torch.tensor(x, dtype=torch.float64).reshape(1, 1, 2, 2)
    return [step.x_next.flatten().tolist() for step in run(denoiser or Halves(), path, x, solver, correction)]


EDM_BY_HAND = (Level(2, 1.0, 4.0), Level(1, 1.0, 1.0), CLEAN)


def test_a_heun_step_by_hand():
    # Step 1, first call: x_next = (4, .5, .5, .5) as above, and is not corrected yet. Second call, at sigma 1:
    #   x0 = (1, 0, 0, 0), eps = x_next - x0 = (3, .5, .5, .5); with the first eps, (x - x0) / 4 = (2, .5, .5, .5),
    #   x_next = (10, 2, 2, 2) - 3 (2.5, .5, .5, .5) = (2.5, .5, .5, .5).
    #   Less the last x0: (1.5, .5, .5, .5), of mean .75; lambda_l = .1 * 4 / 4: x = (2.575, .575, .575, .575).
    # Step 2: x0 = (.5, 0, 0, 0), where the walk ends.
    states = walked(EDM_BY_HAND, [10, 2, 2, 2], Heun(), DifferentialCorrection(EDM_BY_HAND, 0.1, 0.2))
    assert (states[0], states[1]) == (pytest.approx([4, 0.5, 0.5, 0.5]), pytest.approx([2.575, 0.575, 0.575, 0.575]))
    assert states[2] == pytest.approx([0.5, 0, 0, 0])


def test_the_papers_coefficient_by_hand():
    # DDIM over (alpha, sigma^2) = (sqrt .2, .8) -> (sqrt .5, .5) -> clean; low = .1, high = .2.
    # beta_tilde = (1 - .2 / .5) (.5 / .8) = .375, w = sqrt(.375) = .612372; lambda_l = .061237, lambda_h = .077526.
    # x = (2, 0, 0, 0), x0 = (2, 0, 0, 0): eps = (2 - 2 sqrt .2) / sqrt .8 = 1.236068 in the first pixel;
    # x_next = sqrt .5 (2 + 1.236068) = 2.288246. Less x0: .288246, of mean .072061, rest .216184 and -.072061.
    # x = (2.288246 + .061237 * .072061 + .077526 * .216184, .061237 * .072061 - .077526 * .072061)
    #   = (2.309418, -.001174).
    path = (Level(2, math.sqrt(0.2), math.sqrt(0.8)), Level(1, math.sqrt(0.5), math.sqrt(0.5)), CLEAN)
    states = walked(path, [2, 0, 0, 0], DDIM(), ReverseStdCorrection(path, 0.1, 0.2))
    assert states[0] == pytest.approx([2.309418, -0.001174, -0.001174, -0.001174], abs=1e-6)
    assert states[1] == pytest.approx([1, 0, 0, 0])


def test_piecewise_by_hand():
    # Euler over sigma 4 (t 3) -> 2 (t 2) -> 1 (t 1) -> clean, t_s = 2, low = .1, high = .2.
    # Step 1: x0 = (2, 0, 0, 0), (x - x0) / 4 = (2, .5, .5, .5), x_next = (6, 1, 1, 1). t 3: the mean of
    #   (4, 1, 1, 1), 1.75, times .1: (6.175, 1.175, 1.175, 1.175).
    # Step 2: x0 = (1, 0, 0, 0), x_next halfway: (3.5875, .5875, ...). t 2, not below t_s: mean of (2.5875, .5875, ...)
    #   is 1.0875: (3.69625, .69625, ...).
    path = (Level(3, 1.0, 4.0), Level(2, 1.0, 2.0), Level(1, 1.0, 1.0), CLEAN)
    states = walked(path, [10, 2, 2, 2], Euler(), PiecewiseCorrection(path, 0.1, 0.2, threshold=2))
    assert states[0] == pytest.approx([6.175, 1.175, 1.175, 1.175])
    assert states[1] == pytest.approx([3.69625, 0.69625, 0.69625, 0.69625])
    # With t_s = 2.5 step 2 has the high bands: rest of (2.5875, .5875, ...) is 1.5 and -.5, times .2.
    states = walked(path, [10, 2, 2, 2], Euler(), PiecewiseCorrection(path, 0.1, 0.2, threshold=2.5))
    assert states[1] == pytest.approx([3.8875, 0.4875, 0.4875, 0.4875])


def test_pixels_by_hand():
    # c = .1: (4, .5, .5, .5) + .1 (2, .5, .5, .5), whatever the level.
    states = walked(EDM_BY_HAND, [10, 2, 2, 2], Euler(), PixelCorrection(EDM_BY_HAND, 0.1))
    assert (states[0], states[1]) == (pytest.approx([4.2, 0.55, 0.55, 0.55]), pytest.approx([1, 0, 0, 0]))


@pytest.mark.parametrize(("first", "second"), [(10.0, 2.0), (2.0, 0.5), (0.5, 0.4)])
@pytest.mark.parametrize("variance", [0.25, 1.0])
def test_the_right_coefficient_makes_an_euler_step_exact_on_gaussian_data(first, second, variance):
    """An Euler step of an exact denoiser loses variance; the coefficient below, positive, gives back just that.

    Exact for every state x of N(0, (v + sigma_1^2) I) is x sqrt((v + sigma_2^2) / (v + sigma_1^2)). Images of equal
    pixels are all low band. Float64: roundings of numbers of order 10, the coefficient divides by sigma_1 sigma_2.
    """
    path = (Level(2, 1.0, first), Level(1, 1.0, second), CLEAN)
    before, after = variance + first**2, variance + second**2
    right = (math.sqrt(before * after) - variance - first * second) / (first * second)
    assert right > 0
    oracle = GaussianOracle(torch.zeros(1, 2, 2), variance * torch.eye(4))
    x = [math.sqrt(before)] * 4
    states = {low: walked(path, x, Euler(), DifferentialCorrection(path, low), oracle)[0] for low in (0.0, right)}
    assert states[right] == pytest.approx([math.sqrt(after)] * 4, rel=1e-12)
    assert states[0.0][0] < math.sqrt(after)


@pytest.mark.parametrize(
    ("make", "path", "weight"),
    [
        (DifferentialCorrection, edm_levels(6), lambda level, after: level.sigma / 80),
        (ReverseStdCorrection, VP, lambda level, after: Posterior.between(level, after).std("fixed-small")),
        (
            lambda path, low: PiecewiseCorrection(path, low, 0.0, threshold=400),
            edm_levels(6),
            lambda level, after: float(level.t >= 400),
        ),
    ],
)
def test_weights_are_those_of_the_level_a_step_starts_from(make, path, weight):
    """Read off a difference of ones, low = 1: the state moves by w, in either call of a Heun step and in churn."""
    correction, ones = make(path, 1.0), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    for level, after in pairwise(path):
        raised, _ = Churn(40, 6).raised(level)
        for call in (Call(0, level, after, True), Call(1, after, after, True), Call(0, raised, after, True)):
            moved = correction.after(ones, Prediction(ones, 0 * ones), call) - ones
            assert moved.flatten().tolist() == pytest.approx([weight(level, after)] * 4, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("shape", [(1, 1, 5, 4), (1, 1, 4, 5)])
def test_odd_images_are_refused_but_by_pixels(shape):
    x = torch.ones(shape)
    given = x, Prediction(x, x), Call(0, VP[0], VP[1], True)
    with pytest.raises(ValueError, match=r"need images of even size, not . x .; PixelCorrection takes any"):
        DifferentialCorrection(VP, 0.1).after(*given)
    assert PixelCorrection(VP, 0.1).after(*given).shape == shape
