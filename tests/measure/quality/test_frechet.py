import numpy as np
import pytest
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from bench.measure import frechet_distance
from bench.measure.quality.frechet import feature_moments

EPS = np.finfo(np.float64).eps


def random_moments(seed, size=12):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size, 2 * size))
    return rng.normal(size=size), factor @ factor.T / size


def rotation(seed, size):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def rounding(cov, factor=100):
    """Backward-stable eigenvalues are off by a few eps of the largest, times the number of them."""
    return factor * EPS * len(cov) * np.trace(cov)


@pytest.mark.parametrize("size", [0, 1])
def test_a_shift_counts_its_square(size):
    mean, cov = random_moments(1)
    shift = size * np.linspace(-2, 3, len(mean))
    value = frechet_distance(mean, cov, mean + shift, cov)
    assert value == pytest.approx(np.square(shift).sum(), abs=rounding(cov))


def test_commuting_covariances_have_a_closed_form():
    # With shared eigenvectors the distance is the sum of (sqrt(a) - sqrt(b))^2 over eigenvalue pairs.
    basis, rng = rotation(2, 10), np.random.default_rng(2)
    a, b = rng.uniform(0.1, 4, 10), rng.uniform(0.1, 4, 10)
    zero = np.zeros(10)
    value = frechet_distance(zero, (basis * a) @ basis.T, zero, (basis * b) @ basis.T)
    assert value == pytest.approx(np.square(np.sqrt(a) - np.sqrt(b)).sum(), abs=rounding(np.diag(a + b)))


def test_scalar_features():
    # d = 1: (m1 - m2)^2 + (s1 - s2)^2.
    assert frechet_distance(1.0, 4.0, 3.0, 9.0) == pytest.approx(4 + 1, rel=1e-14)


@pytest.mark.parametrize("counts", [(12, 12), (12, 200), (200, 12), (200, 200)])
@pytest.mark.parametrize("decay", [0, 2, 8])
def test_is_as_exact_with_few_images_as_with_many(counts, decay):
    rng, size = np.random.default_rng(11), 30
    scale = np.arange(1, size + 1.0) ** (-decay / 2)
    x, y = (rng.normal(size=(n, size)) * scale @ rotation(11, size) for n in counts)
    xc, yc = ((part - part.mean(0)) / np.sqrt(len(part) - 1) for part in (x, y))
    spread = np.square(xc).sum() + np.square(yc).sum()
    exact = np.square(x.mean(0) - y.mean(0)).sum() + spread - 2 * np.linalg.svd(xc @ yc.T, compute_uv=False).sum()
    # The factors have the data's rank, so nothing is a root of rounding: errors are eps times the scale, not its root.
    value = frechet_distance(*feature_moments(x), *feature_moments(y))
    assert value == pytest.approx(exact, abs=100 * EPS * size * spread)


def test_covariances_of_no_spread():
    zero, one = np.zeros((3, 3)), np.eye(3)
    assert frechet_distance(np.zeros(3), zero, np.ones(3), one) == pytest.approx(3 + 3, abs=rounding(one))


def test_equals_torch_fidelity_at_full_rank():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(400, 20)), rng.normal(0.2, 1.3, size=(300, 20))
    stats = [dict(zip(("mu", "sigma"), feature_moments(part), strict=True)) for part in (x, y)]
    theirs = fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]
    ours = frechet_distance(stats[0]["mu"], stats[0]["sigma"], stats[1]["mu"], stats[1]["sigma"])
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_feature_moments_are_the_unbiased_ones_in_float64():
    rows = np.random.default_rng(7).normal(size=(9, 3)).astype(np.float32)
    mean, cov = feature_moments(rows)
    wide = rows.astype(np.float64)
    centred = wide - wide.mean(0)
    assert mean.dtype == cov.dtype == np.float64
    np.testing.assert_allclose(mean, wide.mean(0), rtol=0, atol=1e-15)
    np.testing.assert_allclose(cov, centred.T @ centred / 8, rtol=0, atol=1e-14)
    assert feature_moments(rows[:, :1])[1].shape == (1, 1)


@pytest.mark.parametrize("which", range(4))
def test_mismatched_shapes_are_refused(which):
    mean, cov = random_moments(8)
    moments = [mean, cov, mean, cov]
    moments[which] = moments[which][:-1]
    with pytest.raises(ValueError, match="different features"):
        frechet_distance(*moments)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", range(4))
def test_values_that_are_not_finite_are_refused(which, bad):
    moments = [part.copy() for part in (*random_moments(9), *random_moments(10))]
    moments[which].flat[0] = bad
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(*moments)
