import math

import pytest
import torch

from bench.diffusion.posterior import Posterior, sample_exact, step_log_variance
from bench.diffusion.schedules import alpha_bars, betas, levels
from bench.diffusion.types import CLEAN, Level, Prediction

PAIRS = [
    *zip(levels("cosine", 1000, 20), levels("cosine", 1000, 20)[1:], strict=False),
    (Level(0, 1.0, 80.0), Level(0, 1.0, 20.0)),  # the EDM frame: alpha = 1
    (Level(0, 1.0, 0.1), CLEAN),
    (Level(1000, 0.0, 1.0), Level(500, 0.5, 0.5)),  # a flow, whose start holds no signal
    (Level(999, math.sqrt(4e-5), math.sqrt(1 - 4e-5)), Level(500, 0.6, 0.8)),
]


def prediction(fraction=None, cov=None, shape=(1, 1, 1, 1)):
    zero = torch.zeros(shape)
    return Prediction(zero, zero, None if fraction is None else torch.full(shape, fraction), cov)


@pytest.mark.parametrize(("level", "after"), PAIRS)
def test_posterior_is_gaussian_conditioning(level, after):
    """Condition the joint Gaussian of (x_next, x) given x0 on x, by Schur complement.

    Both sides cancel quantities of order sigma^2 in float64; the smallest noisy sigma^2 is 4e-5, so relative
    errors stay below 1e-16 / 4e-5 < 1e-11.
    """
    ratio = level.alpha / after.alpha
    gain = ratio * after.sigma**2 / level.sigma**2  # Cov(x_next, x) / Var(x)
    q = Posterior.between(level, after)
    scale = after.sigma**2 or 1.0
    assert q.c2 == pytest.approx(gain, rel=1e-11)
    assert q.c1 == pytest.approx(after.alpha - gain * level.alpha, rel=1e-11)
    assert q.small == pytest.approx(after.sigma**2 - gain * ratio * after.sigma**2, rel=1e-11, abs=1e-11 * scale)
    assert q.large == pytest.approx(level.sigma**2 - ratio**2 * after.sigma**2, rel=1e-11)


@pytest.mark.parametrize("t", [1, 500, 998])
def test_neighbouring_levels_give_ho_et_al_equation_7(t):
    """c1, c2, beta-tilde and beta as in the paper. beta = 1 - abar_t / abar_{t-1} cancels: 2e-16 / beta < 1e-11."""
    beta, bar = betas("cosine", 1000)[t], alpha_bars("cosine", 1000)
    walk = levels("cosine", 1000, 1000)[::-1]  # walk[t + 1] is index t
    q = Posterior.between(walk[t + 1], walk[t])
    assert q.large == pytest.approx(beta, rel=1e-11)
    assert q.small == pytest.approx(beta * (1 - bar[t - 1]) / (1 - bar[t]), rel=1e-11)
    assert q.c1 == pytest.approx(beta * math.sqrt(bar[t - 1]) / (1 - bar[t]), rel=1e-11)
    assert q.c2 == pytest.approx((1 - bar[t - 1]) * math.sqrt(1 - beta) / (1 - bar[t]), rel=1e-11)


@pytest.mark.parametrize(("variance", "which"), [("fixed-small", "small"), ("fixed-large", "large")])
def test_fixed_variances(variance, which):
    q = Posterior.between(*PAIRS[4])
    assert q.std(variance) == math.sqrt(getattr(q, which))
    # log of a square root, doubled: three roundings.
    assert step_log_variance(variance, q, prediction()) == pytest.approx(math.log(getattr(q, which)), rel=1e-15)


@pytest.mark.parametrize("fraction", [-1.0, 0.0, 1.0, 3.0, -2.5])
def test_learned_variance_interpolates_logarithms_unclamped(fraction):
    """Fraction -1 is `small`, 1 is `large`, and beyond them it extrapolates; float32, so two roundings of 6e-8."""
    q = Posterior.between(*PAIRS[4])
    middle, half = (math.log(q.large * q.small)) / 2, math.log(q.large / q.small) / 2
    got = step_log_variance("learned", q, prediction(fraction))
    assert got.item() == pytest.approx(middle + fraction * half, rel=3e-7)


def linear_map(q, cov, shape):
    """The matrix of sample_exact, column by column, [D, D] or [B, D, D]."""
    size = math.prod(shape)
    batch = 1 if cov.dim() == 2 else len(cov)
    columns = []
    for column in torch.eye(size, dtype=torch.float64):
        z = column.reshape(1, *shape).expand(batch, *shape)
        columns.append(sample_exact(q, prediction(cov=cov, shape=(batch, *shape)), z).flatten(1))
    return torch.stack(columns, dim=-1)


@pytest.mark.parametrize("pair", [PAIRS[4], PAIRS[19]])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_exact_draws_have_the_exact_covariance(pair, rank):
    """M M^T = small I + c1^2 Cov, singular or not. Float64 with entries of order 1: 1e-12 is thousands of roundings."""
    q = Posterior.between(*pair)
    root = torch.randn(5, 6, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cov = root @ root.mT
    wanted = q.small * torch.eye(6, dtype=torch.float64) + q.c1**2 * cov
    batched = linear_map(q, cov, (1, 2, 3))
    torch.testing.assert_close(batched @ batched.mT, wanted, rtol=0, atol=1e-12)
    single = linear_map(q, cov[0], (1, 2, 3))
    torch.testing.assert_close((single @ single.mT)[0], wanted[0], rtol=0, atol=1e-12)
