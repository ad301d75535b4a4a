"""Influence functions against finite differences, closed forms and KID's own estimate."""

import numpy as np
import pytest
from torch_fidelity.metric_kid import kernel_mmd

from bench.measure.quality.frechet import feature_moments, frechet_distance
from bench.measure.quality.influence import frechet_terms, kernel_error, kernel_terms, stratified_terms
from bench.measure.quality.statistics import FeatureMoments, ReferenceStatistics

D, N, M = 6, 40, 90


def reference_of(rows, moments=None):
    moments = moments or FeatureMoments(*feature_moments(rows), len(rows))
    return ReferenceStatistics("made", "", moments, None, rows, "made")


def weighted(rows, weights):
    """Return mean and covariance (divisor: the sum of the weights) of weighted rows."""
    mean = weights @ rows / weights.sum()
    return mean, ((rows - mean).T * weights) @ (rows - mean) / weights.sum()


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    skew = np.eye(D) + 0.3 * rng.standard_normal((D, D))
    return (rng.standard_normal((N, D)) @ skew + 0.5).astype(np.float32), rng.standard_normal((M, D)).astype(np.float32)


def slopes(distance, base, step=1e-5):
    """Return the derivative of a function of weights when weight moves from all rows to row i, for each i."""
    base = base / base.sum()
    return np.array([(distance(base + step * (e - base)) - distance(base - step * (e - base))) / (2 * step)
                     for e in np.eye(len(base))])  # fmt: skip


def tangents(at, step=0.02):
    """Return a function's tangent at 0, at 1 and at -1, [n, 2]."""
    change = (at(step) - at(-step)) / (2 * step)
    return np.stack([at(0) + change, at(0) - change], axis=1)


SIGNS = np.where(np.arange(N) % 2 == 0, 1.0, -1.0)


def test_the_terms_of_samples_are_the_derivative_of_the_distance(rows):
    """Influence functions, extrapolated to the weights of the even and of the odd samples; centred within each."""
    a, r = rows
    theirs, scale = feature_moments(r), N / (N - 1)  # the distance divides by n - 1, a weighted covariance by n

    def influence(tilt):
        def distance(weights):
            mean, cov = weighted(a.astype(float), weights)
            return frechet_distance(mean, cov * scale, *theirs)

        base = 1 + tilt * SIGNS
        mean = weighted(a.astype(float), base)[0]
        # The covariance's divisor scales the quadratic part of the slopes, which is affine in the terms' two parts.
        linear = 2 * (a - mean) @ (mean - theirs[0])
        return linear + (slopes(distance, base) - linear) / scale

    wanted = tangents(influence)
    for half in (0, 1):
        wanted[half::2] -= wanted[half::2].mean(axis=0)
    found = frechet_terms(a, reference_of(r)).samples
    np.testing.assert_allclose(found.mean(axis=1), wanted.mean(axis=1), atol=0.02)  # the step of derivatives is finite
    np.testing.assert_allclose(found, wanted, atol=0.05)
    assert found.std() > 2


def test_the_terms_of_the_reference_are_the_derivative_of_the_distance(rows):
    a, r = rows
    scale = M / (M - 1)

    def influence(tilt):
        mean, cov = weighted(a.astype(float), 1 + tilt * SIGNS)
        ours = mean, cov * N / (N - 1)

        def distance(weights):
            mean, cov = weighted(r.astype(float), weights)
            return frechet_distance(*ours, mean, cov * scale)

        linear = 2 * (r - r.mean(0)) @ (r.mean(0) - ours[0])
        return linear + (slopes(distance, np.ones(M)) - linear) / scale

    found = frechet_terms(a, reference_of(r)).reference
    np.testing.assert_allclose(found, tangents(influence), atol=0.05)
    assert (abs(found.mean(axis=0)) < 1e-12).all()


def test_a_one_dimensional_distance_has_its_closed_form():
    """D = (m - m_r)^2 + (s - s_r)^2, so phi = 2 (m - m_r) x + (1 - s_r / s) x^2 of centred x, less its mean."""
    rng = np.random.default_rng(1)
    a, r = (rng.normal(*law, (N, 1)).astype(np.float32) for law in ((0.3, 1.5), (0.0, 1.0)))
    x = a.astype(float) - a.mean(dtype=float)
    s, s_r = a.std(ddof=1, dtype=float), r.std(ddof=1, dtype=float)
    wanted = (2 * (a.mean(dtype=float) - r.mean(dtype=float)) * x + (1 - s_r / s) * x**2)[:, 0]
    terms = frechet_terms(a, reference_of(r))
    found = terms.samples.mean(axis=1)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        np.testing.assert_allclose(found[half], wanted[half] - wanted[half].mean(), atol=0.01)
    np.testing.assert_allclose(terms.self_influence, (s_r * x**4)[:, 0] / (4 * N * s**3), rtol=1e-5)


def test_without_a_sample_the_distance_is_another_by_its_influence_less_its_own_part():
    rng = np.random.default_rng(7)
    a, r = rng.standard_normal((400, 60)).astype(np.float32), rng.standard_normal((900, 60)).astype(np.float32)
    theirs, terms = feature_moments(r), frechet_terms(a, reference_of(r))
    every = frechet_distance(*feature_moments(a), *theirs)
    lost = [399 * (every - frechet_distance(*feature_moments(np.delete(a, i, axis=0)), *theirs)) for i in range(60)]
    lost, phi, own = np.array(lost), terms.samples.mean(axis=1)[:60], terms.self_influence[:60]
    errors = [(lost - value).std() for value in (phi, phi - own, phi - 2 * own)]
    assert errors[1] < 0.3 * min(errors[0], errors[2])


def test_few_samples_and_few_references(rows):
    a, r = rows
    assert frechet_terms(a[: 2 * D + 1], reference_of(r)) is None
    statistics_alone = reference_of(r[:0], FeatureMoments(*feature_moments(r), M))
    assert len(frechet_terms(a, statistics_alone).reference) == 0


def test_a_dead_feature_changes_nothing(rows):
    """A feature that is 0 everywhere has no root and no inverse, and no part in the distance."""
    a, r = rows
    wide = [np.concatenate([x, np.zeros((len(x), 1), np.float32)], axis=1) for x in (a, r)]
    plain, padded = frechet_terms(a, reference_of(r)), frechet_terms(wide[0], reference_of(wide[1]))
    np.testing.assert_allclose(padded.samples, plain.samples, atol=1e-10)
    np.testing.assert_allclose(padded.reference, plain.reference, atol=1e-10)
    np.testing.assert_allclose(padded.self_influence, plain.self_influence, atol=1e-10)


@pytest.mark.parametrize("count", [40, 41, 300])
def test_kernel_terms_are_means_over_partners(count):
    rng = np.random.default_rng(2)
    a, r = rng.standard_normal((count, D)).astype(np.float32), rng.standard_normal((M, D)).astype(np.float32)
    k = (a.astype(float) @ a.T / D + 1) ** 3
    np.fill_diagonal(k, np.nan)
    terms = kernel_terms(a, r)
    # Sums in another order differ by rounding of numbers near 1 to 100.
    np.testing.assert_allclose(terms.within, np.stack([np.nanmean(k[:, s::2], axis=1) for s in (0, 1)], 1), rtol=1e-10)
    cross = (a.astype(float) @ r.T / D + 1) ** 3
    np.testing.assert_allclose(terms.cross, cross.mean(1), rtol=1e-10)
    np.testing.assert_allclose(terms.reference, np.stack([cross[s::2].mean(0) for s in (0, 1)], 1), rtol=1e-10)


def test_kernel_terms_add_up_to_kid():
    """With the reference's own constant the terms give torch-fidelity's unbiased estimate of equal numbers."""
    rng = np.random.default_rng(3)
    a, r = (rng.standard_normal((N, D)).astype(np.float32) + shift for shift in (0, 0.2))
    within, cross = kernel_terms(a, r).by_sample().mean(axis=0)
    constant = kernel_terms(r, a).by_sample()[:, 0].mean()
    found = kernel_mmd(a.astype(float), r.astype(float), kid_kernel="poly", kid_kernel_poly_degree=3,
                       kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1)  # fmt: skip
    assert within - 2 * cross + constant == pytest.approx(found, rel=1e-10)


def test_weights_repair_class_shares():
    """Samples with twice as many of one class, weighted, have the moments of the even ones, and the very distance."""
    rng = np.random.default_rng(4)
    a = rng.standard_normal((30, 2)).astype(np.float32)
    b = (rng.standard_normal((30, 2)) + 4).astype(np.float32)
    r = rng.standard_normal((M, 2)).astype(np.float32) + 1
    uneven, classes = np.concatenate([a, a, b]), np.repeat([0, 0, 1], 30)
    theirs, shares = reference_of(r).moments, np.array([0.5, 0.5])
    found = stratified_terms(uneven, classes, shares, theirs)
    mean, cov = weighted(np.concatenate([a, b]).astype(float), np.ones(60))
    assert found.distance == pytest.approx(frechet_distance(mean, cov * 90 / 89, theirs.mean, theirs.cov), rel=1e-10)
    for k in (0, 1):  # within a class the terms sum to 0: its share is no part of the error
        assert abs(found.samples[classes == k].sum()) < 1e-8


def test_a_class_with_few_samples_has_no_stratified_distance():
    rng = np.random.default_rng(5)
    a, classes = rng.standard_normal((40, 2)).astype(np.float32), np.repeat([0, 1], [36, 4])
    theirs = reference_of(a).moments
    assert stratified_terms(a, classes, np.array([0.9, 0.1]), theirs) is None
    assert stratified_terms(a, classes, np.array([1.0, 0.0]), theirs) is not None  # a class that the reference lacks
    assert stratified_terms(a, np.full(40, 2), np.array([0.5, 0.5]), theirs) is None  # and one it does not know


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.9, 1.3), (0.2, 0.9, 1.2)])
def test_the_error_of_a_kernel_distance_is_its_spread(shift, low, high):
    """Over 200 draws the spread is known to 5 %. Of two sets of one law, where first-order terms vanish, it is safe."""
    distances, errors = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        samples = (rng.standard_normal((100, D)) + shift).astype(np.float32)
        reference = rng.standard_normal((150, D)).astype(np.float32)
        ours, theirs = kernel_terms(samples, reference), kernel_terms(reference, samples)
        distances.append((ours.by_sample() @ (1, -2)).mean() + theirs.by_sample()[:, 0].mean())
        errors.append(kernel_error(samples, reference))
    assert low < np.mean(errors) / np.std(distances, ddof=1) < high
