import math

import pytest
import torch

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import Ancestral
from bench.diffusion.types import Level, batched
from bench.models.denoisers.oracles import GaussianOracle, MixtureOracle

COSINE = levels("cosine", 1000, 20)
LEVELS = [COSINE[0], COSINE[9], COSINE[16], COSINE[-2], Level(0, 1.0, 80.0), Level(0, 1.0, 0.05)]
SHAPE, COUNT = (1, 2, 3), 20000


def rng():
    return torch.Generator().manual_seed(0)


def gaussian(rank=6):
    root = torch.randn(6, rank, dtype=torch.float64, generator=rng())
    return GaussianOracle(torch.linspace(-1, 1, 6).reshape(SHAPE), root @ root.T)


def mixture(shape=SHAPE):
    """Three overlapping Gaussians of different shapes."""
    size, draw = math.prod(shape), rng()
    means = 1.5 * torch.randn(3, *shape, dtype=torch.float64, generator=draw)
    roots = 0.4 * torch.randn(3, size, size, dtype=torch.float64, generator=draw)
    covs = roots @ roots.mT + 0.05 * torch.eye(size, dtype=torch.float64)
    return MixtureOracle(torch.tensor([0.2, 0.5, 0.3]), means, covs)


def states(level, shape=SHAPE, count=5):
    return 2 * math.hypot(level.alpha, level.sigma) * torch.randn(count, *shape, dtype=torch.float64, generator=rng())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rank", [2, 6])
def test_gaussian_oracle_is_gaussian_conditioning(level, rank):
    """E[x0|x] = m + alpha S (alpha^2 S + sigma^2)^-1 (x - alpha m), and its covariance, by solving the linear system.

    float64, condition number at most 20 / 4e-5 = 5e5 (least noisy level): 5e5 * 1e-16 * entries of order 10 < 1e-9.
    """
    oracle, x = gaussian(rank), states(level)
    total = level.alpha**2 * oracle.cov + level.sigma**2 * torch.eye(6, dtype=torch.float64)
    gain = torch.linalg.solve(total, level.alpha * oracle.cov, left=False)
    mean = oracle.mean.flatten()
    expected = mean + (x.flatten(1) - level.alpha * mean) @ gain.T
    pred = oracle(x, level)
    torch.testing.assert_close(pred.x0.flatten(1), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pred.x0_cov, oracle.cov - level.alpha * gain @ oracle.cov, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("oracle", [gaussian(), mixture()], ids=["gaussian", "mixture"])
def test_estimates_are_consistent(oracle, level):
    """alpha x0 + sigma eps = x: float64 sums of terms up to 1e2 |x|, so 1e-12 of the largest."""
    x = states(level)
    pred = oracle(x, level)
    rebuilt = level.alpha * pred.x0 + level.sigma * pred.eps
    torch.testing.assert_close(rebuilt, x, rtol=0, atol=1e-12 * x.abs().max().item())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("oracle", [gaussian(), gaussian(2), mixture()], ids=["gaussian", "singular", "mixture"])
def test_posterior_covariance_is_tweedies(oracle, level):
    """Cov(x0 | x) = (sigma^2 / alpha) d E[x0 | x] / dx, the derivative by automatic differentiation.

    The gain cancels at relative 1e-16 times the condition number 5e5: 1e-9 of entries up to 20.
    """
    x = states(level, count=1)
    jacobian = torch.autograd.functional.jacobian(lambda state: oracle(state, level).x0, x).reshape(6, 6)
    cov = oracle(x, level).x0_cov.reshape(6, 6)
    torch.testing.assert_close(cov, jacobian * level.sigma**2 / level.alpha, rtol=1e-8, atol=1e-8)


def integrated(oracle, x, level, grid):
    """Posterior mean and covariance by a sum over a regular grid of x0 [M, D]; x [D].

    The trapezoid rule on a Gaussian of width w and spacing h errs by exp(-2 (pi w / h)^2): nothing, for w > 2h.
    """
    laws = [torch.distributions.MultivariateNormal(part.mean.flatten(), part.cov) for part in oracle.parts]
    parts = [weight + law.log_prob(grid) for weight, law in zip(oracle.log_weights, laws, strict=True)]
    log_prior = torch.logsumexp(torch.stack(parts), dim=0)
    share = (log_prior - 0.5 * ((x - level.alpha * grid) / level.sigma).square().sum(1)).softmax(0)
    mean = share @ grid
    return mean, (grid - mean).T @ ((grid - mean) * share[:, None])


@pytest.mark.parametrize("level", LEVELS)
def test_mixture_oracle_is_numerical_integration_in_one_dimension(level):
    """Spacing 6e-4 against a narrowest posterior of width .0064; sums of 40001 float64 terms: 1e-10."""
    oracle = mixture((1, 1, 1))
    grid = torch.linspace(-12, 12, 40001, dtype=torch.float64)[:, None]
    x = states(level, (1, 1, 1), 4)
    pred = oracle(x, level)
    for state, x0, cov in zip(x, pred.x0, pred.x0_cov, strict=True):
        mean, spread = integrated(oracle, state.flatten(), level, grid)
        torch.testing.assert_close(x0.flatten(), mean, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(cov, spread, rtol=1e-9, atol=1e-10)


def test_samples_have_the_distributions_moments():
    """Every mean and product moment within five standard errors, which the sample itself estimates; n = 20000."""
    oracle = gaussian(2)
    x, mean = oracle.sample(20000, rng()).flatten(1), oracle.mean.flatten()
    for drawn, exact in ((x, mean), (x[:, :, None] * x[:, None], oracle.cov + mean[:, None] * mean)):
        assert ((drawn.mean(0) - exact).abs() / drawn.std(0)).max() < 5 / math.sqrt(20000)


@pytest.mark.parametrize("oracle", [gaussian(), gaussian(2), mixture()], ids=["gaussian", "singular", "mixture"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_of_one_an_image_are_the_images_one_by_one(oracle, dtype):
    """Float64: sums of six numbers in another order, at a condition number of 5e5 and |x| up to 200: 1e-9.

    Float32 rounds the levels and the predictions, each to 6e-8 of itself: a few of these, and 2e-6 where x0 is a
    difference of means near 1.
    """
    x = torch.cat([states(level, count=1) for level in LEVELS]).to(dtype)
    rows = torch.tensor([(level.t, level.alpha, level.sigma) for level in LEVELS], dtype=dtype)
    pred = oracle(x, batched(*rows.T.reshape(3, -1, 1, 1, 1)))
    assert (pred.eps.dtype, pred.x0.dtype, pred.x0_cov.dtype) == (dtype, dtype, torch.float64)
    assert pred.x0_cov.shape == (len(LEVELS), 6, 6)
    for k, level in enumerate(LEVELS):
        alone = oracle(x[k : k + 1], level)
        tolerance = dict.fromkeys(("rtol", "atol"), 2e-6 if dtype == torch.float32 else 1e-9)
        torch.testing.assert_close(pred.x0[k : k + 1], alone.x0, **tolerance)
        torch.testing.assert_close(pred.eps[k : k + 1], alone.eps, **tolerance)
        torch.testing.assert_close(pred.x0_cov[k], alone.x0_cov.reshape(6, 6), **tolerance)


def final_images(oracle, solver, steps, shape):
    draws = Draws(Noise(0), torch.arange(COUNT))
    walked = levels("cosine", 1000, steps)
    *_, last = walk(oracle, walked, prior(walked[0], draws, shape), solver, draws, clip=False)
    return last.x_next.double().flatten(1)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_the_exact_variance_is_exact_for_any_covariance(steps):
    """The final images' covariance in whitened coordinates is the identity.

    Entries of a sample covariance of n have standard error sqrt(2/n) on and sqrt(1/n) off the diagonal; five errors.
    """
    oracle = gaussian()
    centred = final_images(oracle, Ancestral("exact"), steps, SHAPE) - oracle.mean.flatten()
    white = centred @ oracle.vectors / oracle.values.sqrt()
    assert (white.mean(0)).abs().max() < 5 / math.sqrt(COUNT)
    assert (white.T @ white / COUNT - torch.eye(6)).abs().max() < 5 * math.sqrt(2 / COUNT)
