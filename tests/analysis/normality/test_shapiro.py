import warnings

import numpy as np
import pytest
import scipy.stats

from analysis.normality.shapiro import shapiro_wilk

# scipy runs the same published algorithm partly in single-precision constants: measured differences over all sizes and
# shapes below are 7e-9 in W and 8e-7 in p; the bounds are those the module promises.
W_TOLERANCE, P_TOLERANCE = 1e-6, 1e-5

SHAPES = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "exponential": lambda rng, size: rng.standard_exponential(size),
    "heavy-tailed": lambda rng, size: rng.standard_t(3, size),
    "uniform": lambda rng, size: rng.random(size),
    "tied": lambda rng, size: np.round(rng.standard_normal(size), 1),
    "far from 0": lambda rng, size: 1e3 + 1e-3 * rng.standard_normal(size),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [3, 4, 5, 6, 7, 11, 12, 20, 50, 100, 999, 5000])
def test_equal_to_scipy(n, shape):
    assert_equal_to_scipy(SHAPES[shape](np.random.default_rng(n), (4, n)))


def assert_equal_to_scipy(rows):
    for row, statistic, p in zip(rows, *shapiro_wilk(rows), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns of tiny ranges
            wanted = scipy.stats.shapiro(row)
        assert abs(statistic - wanted.statistic) < W_TOLERANCE
        assert abs(p - wanted.pvalue) < P_TOLERANCE


def test_any_leading_axes_and_chunks():
    x = np.random.default_rng(0).standard_normal((2, 3, 40))
    statistic, p = shapiro_wilk(x)
    assert statistic.shape == p.shape == (2, 3)
    # Sums of 40 products of order 1 in another order: 40 * 1.1e-16.
    assert abs(statistic[1, 2] - shapiro_wilk(x[1, 2])[0]) < 1e-14


def test_more_rows_than_a_chunk(monkeypatch):
    x = np.random.default_rng(0).standard_normal((50, 20))
    whole = shapiro_wilk(x)
    monkeypatch.setattr("analysis.normality.shapiro._CHUNK", 60)
    # As above for W; p moves by at most 100 times as much where W is close to 1.
    assert all(np.allclose(a, b, atol=1e-12, rtol=0) for a, b in zip(whole, shapiro_wilk(x), strict=True))


def test_zero_range_counts_as_normal():
    assert [float(v[0]) for v in shapiro_wilk(np.full((1, 10), 2.5))] == [1.0, 1.0]


SIZES = [(np.zeros((2, size)), "3 to 5000") for size in (0, 2, 5001)]


@pytest.mark.parametrize(("values", "reason"), [*SIZES, (np.array([1.0, 2.0, np.nan, 3.0]), "finite")])
def test_sizes_out_of_range_and_values_that_are_not_finite_are_refused(values, reason):
    with pytest.raises(ValueError, match=reason):
        shapiro_wilk(values)


def test_level_is_kept_for_normal_samples():
    # 4000 normal samples at level .05: the share has standard error sqrt(.05 * .95 / 4000) = .0034; four of them.
    _, p = shapiro_wilk(np.random.default_rng(1).standard_normal((4000, 50)))
    assert abs((p < 0.05).mean() - 0.05) < 0.014


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1e-18, 1e-9, 1e9, 1e150])
def test_equal_to_scipy_at_any_scale(scale):
    assert_equal_to_scipy(scale * np.random.default_rng(0).standard_normal((1, 50)))


def test_equal_to_scipy_far_from_zero():
    # The mean of such numbers has lost its digits.
    assert_equal_to_scipy(1e12 + np.random.default_rng(0).standard_normal((1, 5000)))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int8, np.uint8, np.int64, bool, object])
def test_any_kind_of_number(kind):
    x = np.random.default_rng(0).integers(0, 2 if kind is bool else 100, (3, 40)).astype(kind)
    found, wanted = shapiro_wilk(x), shapiro_wilk(x.astype(np.float64))
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
