import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.comparison.paired_tests import (
    CRITICAL,
    compare,
    compare_classes,
    compare_shares,
    compare_stratified,
    distance_error,
    holm,
    p_value,
    paired_t,
    rank_intervals,
)
from analysis.records.arrays import CellTerms
from bench.measure.quality.influence import kernel_terms

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
    return compare({0: recorded(first, reference)}, {0: recorded(second, reference)})


def recorded(features, reference):
    """The kernel terms of a cell as its records hold them."""
    made = kernel_terms(features, reference)
    return CellTerms(None, kernel=made.by_sample(), within=made.within, kernel_reference=made.reference)


@pytest.mark.parametrize("noise", [0.2, 1.0])  # strongly paired, and independent
def test_the_standard_error_is_calibrated_under_the_null(noise):
    # Of 300 draws the std of z is known to 1 / sqrt(600) = 4 %, and its mean to 6 %: 1.2 and .3 are 5 sigma off 1, 0.
    # Near perfect samplers the test is conservative, so the lower bound only rules out an absurd error.
    rng = np.random.default_rng(0)
    z = np.array([z_of(rng, 150, noise=noise).z for _ in range(300)])
    assert 0.5 < z.std() < 1.2
    assert abs(z.mean()) < 0.3
    assert (abs(z) > CRITICAL).mean() < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 300)


def test_a_real_difference_has_the_right_sign():
    rng = np.random.default_rng(1)
    found = [z_of(rng, 600, 1.0, 1.25) for _ in range(5)]
    assert all(comparison.delta < 0 for comparison in found)
    assert all(comparison.z < -CRITICAL for comparison in found)
    assert all(z_of(rng, 600, 1.25, 1.0).z > CRITICAL for _ in range(5))


def test_pairing_sharpens_the_comparison():
    rng = np.random.default_rng(2)
    shared = np.mean([z_of(rng, 300, 1.0, 1.1, noise=0.1).error for _ in range(5)])
    apart = np.mean([z_of(rng, 300, 1.0, 1.1, noise=1.0).error for _ in range(5)])
    assert shared < 0.75 * apart


def old(terms):
    """A cell whose records are the kernel terms alone."""
    return CellTerms(None, kernel=terms)


def test_by_hand(terms):
    a, b = old(terms(1.0, seed=1)), old(terms(0.7, seed=2))
    found, back, same = compare({3: a}, {3: b}), compare({3: b}, {3: a}), compare({3: a}, {3: a})
    p = (a.kernel - b.kernel) @ (1, -1)
    assert (found.delta, found.error) == (pytest.approx(0.3), pytest.approx(2 * p.std(ddof=1) / math.sqrt(len(p))))
    assert found.z == pytest.approx(found.delta / found.error)
    assert (back.delta, back.error) == (pytest.approx(-found.delta), pytest.approx(found.error))
    assert (same.delta, same.error, same.z, same.seeds) == (0, 0, 0, 1)


def test_without_shared_seeds_there_is_no_comparison(terms):
    assert compare({0: old(terms(1.0))}, {1: old(terms(1.0))}) is None
    assert compare({}, {0: old(terms(1.0))}) is None
    assert compare({0: old(terms(1.0, n=10))}, {0: old(terms(1.0, n=11))}) is None


def test_several_seeds_count_equally_and_shrink_the_error(terms):
    a = {seed: old(terms(1.0, seed=seed)) for seed in range(4)}
    b = {seed: old(terms(0.5 + 0.1 * seed, seed=seed + 10)) for seed in range(4)}
    found, single = compare(a, b), [compare({0: a[k]}, {0: b[k]}) for k in range(4)]
    assert (found.seeds, found.delta) == (4, pytest.approx(np.mean([one.delta for one in single])))
    # Var of a mean of four independent deltas.
    assert found.error == pytest.approx(math.sqrt(sum(one.error**2 for one in single)) / 4)
    assert found.error < min(one.error for one in single)
    # Seeds of one model alone are ignored.
    assert compare(a | {7: old(terms(9.0))}, b | {8: old(terms(5.0))}) == found


def frechet(value, seed, n=50, m=30, reference_n=300):
    """A cell with a Frechet distance and random influence functions."""
    rng = np.random.default_rng(seed)
    psi = rng.normal(size=(m, 1)) + rng.normal(size=(m, 2))
    return CellTerms(value, rng.normal(size=(n, 2)), psi, reference_n)


def by_hand(halves, psi, n, own=0.0):
    """The variance of a mean over seeds, phi [N, 2] a seed; own parts [N, 1] are no part of what halves share."""
    every = np.mean([h.mean(1).var(ddof=1) / len(h) for h in halves]) / len(halves)
    common = np.mean([max(np.cov((h - own).T)[0, 1], 0) / len(h) for h in halves]) / len(halves)
    together = (psi[:, 0] - psi[:, 1]).var(ddof=1) / 4 / n
    return (every + max(common, together)) / 2 + np.cov(psi.T)[0, 1] / n


def test_the_error_of_a_distance_by_hand():
    cells = {0: frechet(1.0, 1), 4: frechet(2.0, 2)}
    halves = [cell.frechet for cell in cells.values()]
    psi = (cells[0].frechet_reference + cells[4].frechet_reference) / 2
    assert distance_error(cells) == pytest.approx(math.sqrt(by_hand(halves, psi, 300)))
    assert distance_error({0: CellTerms(1.0, kernel=np.ones((5, 2)))}) is None
    assert distance_error({}) is None


def test_two_distances_by_hand():
    a, b = frechet(1.5, 1), frechet(1.0, 2)
    found, d = compare({0: a}, {0: b}), a.frechet - b.frechet
    variance = by_hand([d], a.frechet_reference - b.frechet_reference, 300)
    assert (found.delta, found.error, found.distance) == (0.5, pytest.approx(math.sqrt(variance)), "frechet")
    assert (found.farthest, np.isnan(compare({0: old(a.frechet)}, {0: old(b.frechet)}).farthest)) == (1.5, True)


def test_the_own_part_of_samples_is_taken_off_where_both_records_have_it():
    a, b = (
        replace(frechet(1.0, seed), frechet_self=np.random.default_rng(seed + 9).normal(size=50)) for seed in (1, 2)
    )
    d, psi, own = a.frechet - b.frechet, a.frechet_reference - b.frechet_reference, a.frechet_self - b.frechet_self
    assert compare({0: a}, {0: b}).error == pytest.approx(math.sqrt(by_hand([d], psi, 300, own[:, None])))
    assert compare({0: a}, {0: replace(b, frechet_self=None)}).error == pytest.approx(math.sqrt(by_hand([d], psi, 300)))


def test_what_halves_of_samples_do_not_show_the_reference_does():
    """Halves of phi that have nothing in common leave the part that psi has with the samples, and half of phi's own."""
    opposite = np.random.default_rng(0).normal(size=(50, 1)) * (1, -0.5)
    cell = replace(frechet(1.0, 1), frechet=opposite)
    psi = cell.frechet_reference
    together = (psi[:, 0] - psi[:, 1]).var(ddof=1) / 4 / 300
    variance = (opposite.mean(1).var(ddof=1) / 50 + together) / 2 + np.cov(psi.T)[0, 1] / 300
    assert distance_error({0: cell}) == pytest.approx(math.sqrt(variance))


def test_a_reference_that_is_no_sample_adds_nothing():
    a, b = (frechet(1.0, seed, reference_n=None) for seed in (1, 2))
    d = a.frechet - b.frechet
    wanted = (d.mean(1).var(ddof=1) + max(np.cov(d.T)[0, 1], 0)) / 100
    assert compare({0: a}, {0: b}).error == pytest.approx(math.sqrt(wanted))


def test_cells_of_other_records_are_compared_by_kernels(terms):
    a = CellTerms(1.0, kernel=terms(1.0), frechet=np.ones((len(terms(1.0)), 2)))
    assert compare({0: a}, {0: old(terms(0.5, seed=1))}).distance == "kernel"


def test_stratified_distances_by_hand():
    u = np.random.default_rng(0).normal(size=(2, 40))
    a, b = (
        CellTerms(None, stratified_distance=value, stratified=row) for value, row in zip((2.0, 1.5), u, strict=True)
    )
    found = compare_stratified({0: a, 3: a}, {0: b, 3: b})
    assert (found.delta, found.seeds, found.distance) == (0.5, 2, "stratified")
    assert found.error == pytest.approx(math.sqrt((u[0] - u[1]).var(ddof=1) / 40 / 2))
    assert compare_stratified({0: a}, {0: CellTerms(1.0)}) is None
    assert compare_stratified({0: a}, {1: b}) is None


def test_class_shares_against_the_data_are_pearsons_test():
    counts = np.array([[10.0, 20.0, 30.0, 0.0], [15.0, 15.0, 40.0, 0.0]])
    found, wanted = compare_shares(*counts), stats.chi2_contingency(counts[:, :3], correction=False)
    assert ((found.statistic, found.p), found.freedom) == (pytest.approx(wanted[:2]), 2)


def test_loops_from_other_noise_are_independent_samples():
    """The variance of a difference is the sum of both; where each sample began from the same noise it is paired."""
    rng = np.random.default_rng(0)
    start, reference = rng.normal(size=(60, 4)), draw(rng, 300)
    a, b = (replace(recorded(draw(rng, 60), reference), start=start) for _ in range(2))
    other = replace(b, start=start[::-1].copy())
    near = replace(b, start=start + 0.01)  # half precision
    assert compare({0: a}, {0: near}) == compare({0: a}, {0: b})
    assert compare({0: a}, {0: b}).paired
    found = compare({0: a}, {0: other})
    assert not found.paired
    assert found.delta == compare({0: a}, {0: b}).delta
    plain = [2 * (p.var(ddof=1) + max(np.cov(w.T)[0, 1], 0)) / 60 for p, w in map(kernel_parts, (a, b))]
    w = a.kernel_reference - b.kernel_reference
    assert found.error == pytest.approx(math.sqrt(sum(plain) + 4 * max(np.cov(w.T)[0, 1], 0) / len(w)))
    u = rng.normal(size=(2, 60))
    a, other = (replace(c, stratified=v, stratified_distance=1.0) for c, v in zip((a, other), u, strict=True))
    assert compare_stratified({0: a}, {0: other}).error == pytest.approx(math.sqrt(u.var(axis=1, ddof=1).sum() / 60))
    seen = [replace(c, classes=np.arange(60) % 3) for c in (a, other)]
    assert compare_classes({0: seen[0]}, {0: seen[1]}) is None


def kernel_parts(cell):
    return cell.kernel @ (1, -1), cell.within - cell.kernel[:, 1:]


def classes(*values):
    return CellTerms(None, classes=np.array(values))


def test_class_shares_of_two_classes_are_mcnemars_test():
    # Of 10 places 5 change from 0 to 1 and 1 changes back: chi2 = (5 - 1)^2 / (5 + 1).
    found = compare_classes({0: classes(*[0] * 7, 1, 1, 1)}, {0: classes(*[1] * 5, 0, 0, 0, 1, 1)})
    assert (found.statistic, found.freedom) == (pytest.approx(16 / 6), 1)
    same = compare_classes({0: classes(0, 1, 2)}, {0: classes(0, 1, 2)})
    assert (same.statistic, same.freedom, same.p) == (0, 0, 1)
    assert compare_classes({0: classes(0, 1)}, {0: CellTerms(1.0)}) is None


def test_class_tests_hold_their_level():
    # 1000 p values: a share of .05 is known to .007, three of which are .02.
    rng, p = np.random.default_rng(0), []
    for _ in range(1000):
        first = rng.integers(0, 5, 300)
        second = np.where(rng.random(300) < 0.3, rng.integers(0, 5, 300), first)
        shares = (np.bincount(row, minlength=5).astype(float) for row in (first, rng.integers(0, 5, 900)))
        p.append([compare_classes({0: classes(*first)}, {0: classes(*second)}).p, compare_shares(*shares).p])
    assert (np.array(p) < 0.05).mean(axis=0) == pytest.approx([0.05, 0.05], abs=0.02)


def test_holm_by_hand():
    # Sorted .01, .02, .03, .04 times 4, 3, 2, 1 is .04, .06, .06, .04; never below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    # What was not tested does not count.
    assert holm([0.02, float("nan"), 0.03]) == pytest.approx([0.04, float("nan"), 0.04], nan_ok=True)
    assert len(holm([])) == 0
    assert np.isnan(holm([float("nan")])).all()


def test_holm_errs_as_seldom_as_it_says():
    # Of 2000 families of 20 true hypotheses 5 % lose one, give or take 5 sqrt(.05 * .95 / 2000) = 2.4 %.
    rng = np.random.default_rng(0)
    wrong = np.mean([holm(p_value(rng.standard_normal(20))).min() < 0.05 for _ in range(2000)])
    assert abs(wrong - 0.05) < 0.024


def test_p_of_z():
    assert p_value([0, 1.959964, -1.959964]) == pytest.approx([1, 0.05, 0.05])


def test_ranks_by_hand():
    z = {("a", "b"): -9.0, ("a", "c"): -8.0, ("b", "c"): 0.3, ("c", "d"): -0.1, ("a", "d"): -9.0, ("b", "d"): 1.0}
    found = rank_intervals(["a", "b", "c", "d", "alone"], z)
    assert (found.loc["a"].tolist(), [found.loc[name].tolist() for name in "bcd"]) == ([1, 1], [[2, 4]] * 3)
    assert "alone" not in found.index


def test_ranks_hold_for_many_pairs_only_what_stands_after_the_correction():
    z = {("a", "b"): -2.1, ("a", "c"): -0.5, ("b", "c"): 0.5}  # p = .036, of three .107
    assert (rank_intervals(list("abc"), z).to_numpy() == [1, 3]).all()
    assert rank_intervals(list("ab"), {("a", "b"): -2.1}).to_numpy().tolist() == [[1, 1], [2, 2]]
    assert len(rank_intervals(["a", "b"], {})) == 0  # nothing was compared


def test_t_by_hand():
    # Differences 1, 2, 3, 4, 5: mean 3, s = sqrt(2.5), standard error sqrt(.5), t = 3 sqrt 2 with 4 degrees of freedom.
    second = np.array([0.3, 0.1, 0.4, 0.1, 0.5])
    found = paired_t(second + np.arange(1.0, 6.0), second)
    assert (found["difference"], found["t"]) == (pytest.approx(3), pytest.approx(3 * math.sqrt(2)))
    half = 2.7764451 * math.sqrt(0.5)  # the tabulated 97.5 % point of t with 4 degrees of freedom
    assert (found["low"], found["high"]) == pytest.approx((3 - half, 3 + half), abs=1e-6)
    assert (found["p"], found["seeds"], found["reason"]) == (pytest.approx(2 * stats.t.sf(3 * math.sqrt(2), 4)), 5, "")


@pytest.mark.parametrize(
    ("seeds", "difference", "reason"),
    [
        *((seeds, math.nan, f"5 shared seeds are needed, not {seeds}") for seeds in (0, 1, 4)),
        (5, 0.5, "the difference is the same under every seed"),
    ],
)
def test_few_seeds_and_a_constant_difference_are_refused(seeds, difference, reason):
    found = paired_t(np.full(seeds, 2.0), np.full(seeds, 1.5))
    assert (found["difference"], found["reason"]) == (pytest.approx(difference, nan_ok=True), reason)
    assert math.isnan(found["t"])
    assert math.isnan(found["p"])


def test_the_interval_covers_the_truth():
    # Of 1000 intervals at 95 %, 950 +- 6.9 (binomial) hold the true difference; five standard deviations are 35.
    rng = np.random.default_rng(0)
    common = rng.normal(0, 5, (1000, 1))  # the seeds' own effect, which pairing removes
    first, second = common + rng.normal(0.3, 1, (1000, 6)), common + rng.normal(0, 1, (1000, 6))
    found = pd.DataFrame([paired_t(a, b) for a, b in zip(first, second, strict=True)])
    assert ((found["low"] < 0.3) & (found["high"] > 0.3)).sum() == pytest.approx(950, abs=35)
