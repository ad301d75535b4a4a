import numpy as np
import pytest

from bench.measure.quality import frechet as extrapolation
from bench.measure.quality.frechet import feature_moments, frechet_distance, frechet_infinity, intercept, subset_sizes

FEATURES, SAMPLES, REPEATS = 64, 2000, 20


@pytest.fixture(scope="module")
def spectrum():
    """Variances 1/i of trace 1, those of the tabulated bias."""
    values = 1 / np.arange(1, FEATURES + 1)
    return values / values.sum()


def distances(spectrum, shift=0.0):
    """Plain and extrapolated distances of Gaussian samples to the Gaussian itself, its mean moved by ``shift``."""
    cov, mean = np.diag(spectrum), np.zeros(FEATURES)
    mean[0] = shift
    plain, infinite = [], []
    for seed in range(REPEATS):
        x = np.random.default_rng(seed).normal(size=(SAMPLES, FEATURES)) * np.sqrt(spectrum)
        plain.append(frechet_distance(*feature_moments(x), mean, cov))
        infinite.append(frechet_infinity(x, mean, cov))
    return np.array(plain), np.array(infinite)


def test_samples_of_the_reference_are_at_distance_0(spectrum):
    # E FD_n = c / n + c2 / n^2 with c = 10.0 and c2 = 80 (n FD = 10.8 at n = 100). A line fitted to u^2 on [a, b], with
    # u = 1/n, meets 0 at -(a^2 + 4 a b + b^2) / 6, here -5.5 / N^2, so that c2 leaves -5.5 * 80 / 2000^2 = -1.1e-4 (2 %
    # of the bias removed); the mean over repeats has its own standard error, five of which are allowed.
    plain, infinite = distances(spectrum)
    remainder = 5.5 * 80 / SAMPLES**2
    assert abs(infinite.mean()) < remainder + 5 * infinite.std(ddof=1) / np.sqrt(REPEATS)
    assert plain.mean() == pytest.approx(10.0 / SAMPLES, rel=0.1)
    assert abs(infinite.mean()) < 0.1 * plain.mean()


def test_a_true_distance_is_kept(spectrum):
    # The mean moved by .2 is a Frechet distance of .04 exactly.
    plain, infinite = distances(spectrum, shift=0.2)
    tolerance = 5.5 * 80 / SAMPLES**2 + 5 * infinite.std(ddof=1) / np.sqrt(REPEATS)
    assert abs(infinite.mean() - 0.04) < tolerance
    assert plain.mean() - 0.04 == pytest.approx(10.0 / SAMPLES, abs=5 * plain.std(ddof=1) / np.sqrt(REPEATS))


def test_what_is_linear_in_1_over_n_is_extrapolated_exactly(monkeypatch):
    monkeypatch.setattr(extrapolation, "feature_moments", lambda rows: (len(rows), None))
    monkeypatch.setattr(extrapolation, "frechet_distance", lambda n, *others: 0.3 + 7.0 / n)
    assert frechet_infinity(np.zeros((100, 3), np.float32), None, None) == pytest.approx(0.3, abs=1e-12)


def test_the_intercept_is_that_of_least_squares():
    # By hand: u = 1, 2, 3 and y = 1, 2, 4 has slope 3/2 and mean 7/3 at u = 2.
    assert intercept(1 / np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])) == pytest.approx(7 / 3 - 3)


@pytest.mark.parametrize(
    ("n", "features", "sizes"),
    [(400, 5, [100, 123, 160, 229, 400]), (256, 64, [128, 146, 171, 205, 256]), (4, 1, [2, 2, 3, 3, 4])],
)
def test_sizes_are_equispaced_in_1_over_n(n, features, sizes):
    assert subset_sizes(n, features) == sizes
    smallest = max(2 * features, n / 4)
    steps = np.diff(1 / np.array(sizes))
    # Rounding moves 1/n by at most 1 / (2 n^2) at each end of a step.
    np.testing.assert_allclose(steps, steps.mean(), atol=1 / (smallest - 1) ** 2)


def test_few_samples_are_refused():
    with pytest.raises(ValueError, match="64 features need 256 samples, not 255"):
        frechet_infinity(np.zeros((255, 64), np.float32), np.zeros(64), np.eye(64))


def test_the_seed_decides(spectrum):
    x = np.random.default_rng(0).normal(size=(300, FEATURES)) * np.sqrt(spectrum)
    first, again, other = (frechet_infinity(x, np.zeros(FEATURES), np.diag(spectrum), seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_smallest_subsets_are_disjoint_and_the_whole_counts_once(monkeypatch):
    seen = []

    def look(rows):
        seen.append(rows[:, 0].astype(int).tolist())
        return len(rows), None

    monkeypatch.setattr(extrapolation, "feature_moments", look)
    monkeypatch.setattr(extrapolation, "frechet_distance", lambda *moments: 0.0)
    frechet_infinity(np.arange(80.0).reshape(80, 1), None, None)
    assert [len(rows) for rows in seen] == [20] * 4 + [25] * 4 + [32] * 4 + [46] * 4 + [80]
    assert sorted(row for rows in seen[:4] for row in rows) == list(range(80))
    assert all(len(set(rows)) == len(rows) for rows in seen)
