import math

import numpy as np
import pytest

from analysis.comparison.significance import CRITICAL, Comparison, compare
from bench.measure.quality.scores import kernel_terms

DIMENSIONS = 4


def draw(rng, count, scale=1.0, noise=0.2, common=None):
    """Features of a model: a scaled common part (the shared noise) plus its own."""
    common = rng.normal(size=(count, DIMENSIONS)) if common is None else common
    own = rng.normal(size=(count, DIMENSIONS))
    return (scale * (math.sqrt(1 - noise**2) * common + noise * own)).astype(np.float32)


def z_of(rng, count, first_scale=1.0, second_scale=1.0, noise=0.2):
    """Compare two models on shared noise against a reference of unit variance."""
    common, reference = rng.normal(size=(count, DIMENSIONS)), draw(rng, 400)
    first, second = (draw(rng, count, scale, noise, common) for scale in (first_scale, second_scale))
    return compare({0: kernel_terms(first, reference)}, {0: kernel_terms(second, reference)})


@pytest.mark.parametrize("noise", [0.2, 1.0])  # strongly paired, and independent
def test_the_standard_error_is_calibrated_under_the_null(noise):
    # Of 300 draws the std of z is known to 1 / sqrt(600) = 4 %, and its mean to 6 %: 1.2 and .3 are 5 sigma off 1, 0.
    # The statistic is documented as conservative (z std .77), so the lower bound only rules out an absurd error.
    rng = np.random.default_rng(0)
    z = np.array([z_of(rng, 150, noise=noise).z for _ in range(300)])
    assert 0.5 < z.std() < 1.2
    assert abs(z.mean()) < 0.3
    assert (abs(z) > CRITICAL).mean() < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 300)


def test_a_real_difference_has_the_right_sign():
    rng = np.random.default_rng(1)
    found = [z_of(rng, 600, 1.0, 1.25) for _ in range(5)]
    assert all(comparison.delta < 0 for comparison in found)
    assert all(comparison.verdict == "win" for comparison in found)
    assert [z_of(rng, 600, 1.25, 1.0).verdict for _ in range(5)] == ["loss"] * 5


def test_pairing_sharpens_the_comparison():
    rng = np.random.default_rng(2)
    shared = np.mean([z_of(rng, 300, 1.0, 1.1, noise=0.1).error for _ in range(5)])
    apart = np.mean([z_of(rng, 300, 1.0, 1.1, noise=1.0).error for _ in range(5)])
    assert shared < 0.75 * apart


def test_the_same_samples_tie(terms):
    found = compare({0: terms(1.0)}, {0: terms(1.0)})
    assert (found.delta, found.error, found.z, found.verdict, found.seeds) == (0, 0, 0, "tie", 1)


def test_by_hand(terms):
    a, b = terms(1.0, seed=1), terms(0.7, seed=2)
    found = compare({3: a}, {3: b})
    p = (a[:, 0] - a[:, 1]) - (b[:, 0] - b[:, 1])
    assert found.delta == pytest.approx(0.3)
    assert found.error == pytest.approx(2 * p.std(ddof=1) / math.sqrt(len(p)))
    assert found.z == pytest.approx(found.delta / found.error)


def test_swapping_the_models_flips_the_sign(terms):
    a, b = {0: terms(1.0, seed=1)}, {0: terms(0.7, seed=2)}
    forth, back = compare(a, b), compare(b, a)
    assert forth.delta == pytest.approx(-back.delta)
    assert forth.error == pytest.approx(back.error)


def test_without_shared_seeds_there_is_no_comparison(terms):
    assert compare({0: terms(1.0)}, {1: terms(1.0)}) is None
    assert compare({}, {0: terms(1.0)}) is None
    assert compare({0: terms(1.0, n=10)}, {0: terms(1.0, n=11)}) is None


def test_several_seeds_count_equally_and_shrink_the_error(terms):
    a = {seed: terms(1.0, seed=seed) for seed in range(4)}
    b = {seed: terms(0.5 + 0.1 * seed, seed=seed + 10) for seed in range(4)}
    found, single = compare(a, b), [compare({0: a[k]}, {0: b[k]}) for k in range(4)]
    assert found.seeds == 4
    assert found.delta == pytest.approx(np.mean([one.delta for one in single]))
    # Var of a mean of four independent deltas.
    assert found.error == pytest.approx(math.sqrt(sum(one.error**2 for one in single)) / 4)
    assert found.error < min(one.error for one in single)


def test_seeds_of_one_model_alone_are_ignored(terms):
    a, b = {0: terms(1.0), 1: terms(9.0)}, {0: terms(0.8, seed=1), 2: terms(5.0)}
    assert compare(a, b) == compare({0: a[0]}, {0: b[0]})


@pytest.mark.parametrize(
    ("delta", "verdict"), [(-2.0, "win"), (2.0, "loss"), (1.95, "tie"), (-1.95, "tie"), (0.0, "tie")]
)
def test_verdicts(delta, verdict):
    assert Comparison(delta, 1.0, 1).verdict == verdict
