import numpy as np
import pytest

from analysis.multiple import holm, p_value, rank_intervals


def test_holm_by_hand():
    # Sorted .01, .02, .03, .04 times 4, 3, 2, 1 is .04, .06, .06, .04; never below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])


def test_what_was_not_tested_does_not_count():
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
    assert found.loc["a"].tolist() == [1, 1]
    assert [found.loc[name].tolist() for name in "bcd"] == [[2, 4]] * 3
    assert "alone" not in found.index


def test_ranks_hold_for_many_pairs_only_what_stands_after_the_correction():
    z = {("a", "b"): -2.1, ("a", "c"): -0.5, ("b", "c"): 0.5}  # p = .036, of three .107
    assert (rank_intervals(list("abc"), z).to_numpy() == [1, 3]).all()
    assert rank_intervals(list("ab"), {("a", "b"): -2.1}).to_numpy().tolist() == [[1, 1], [2, 2]]


def test_nothing_compared_has_no_ranks():
    assert len(rank_intervals(["a", "b"], {})) == 0
