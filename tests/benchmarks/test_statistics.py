"""Both sides of the comparisons of statistics compute the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.measure.instruments.moments import Moments
from benchmarks import distances, pixels
from benchmarks.stored_states import StoredStates


def test_all_distances_agree_at_full_rank():
    a, b = (distances.features(200, 16, seed) for seed in (1, 2))
    exact = distances.exact_distance(a, b)
    assert exact > 0
    # The others take the mean in float32: 6e-8 of the mean's square, which is some times the distance.
    assert all(distance(a, b) == pytest.approx(exact, rel=1e-4) for distance in distances.peers().values())
    assert distances.ours(a, b) == pytest.approx(exact, rel=1e-12)


def test_frechet_rows(tiny):
    rows = list(distances.frechet(tiny))
    errors = [row for row in rows if row.unit == "relative error"]
    assert len(rows) == 3 * len(distances.peers())
    assert len(errors) == len(distances.peers())
    assert all(row.ratio > 0 for row in rows)
    assert all(row.ratio > 1 for row in errors)  # fewer images than features: ours is the more exact


def test_clean_fid_is_left_out_where_scipy_broke_it(monkeypatch):
    monkeypatch.setattr(distances.scipy.linalg, "sqrtm", lambda A: A)
    assert list(distances.peers()) == ["torch-fidelity"]


def test_streamed_and_stored_spreads_agree():
    states = torch.randn(2, 300, 3, 4, 4)
    # The divisors differ, N - 1 and N; numpy's sums of float32 are off by some 1e-7 each.
    found, wanted = pixels.streamed(states), pixels.stored(states) * np.sqrt(300 / 299)
    assert found.shape == wanted.shape == (2, 3, 4, 4)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_stored_states_keep_everything():
    keeper = StoredStates()
    for value in (0.0, 2.0):
        keeper.add(3, torch.full((5, 1, 2, 2), value))
    assert list(keeper.stds()) == [3]
    np.testing.assert_array_equal(keeper.stds()[3], np.ones((1, 2, 2)))


def test_the_loop_tests_what_the_batch_tests():
    errors = np.random.default_rng(0).standard_normal((7, 30))
    looped, batched = pixels.by_loop(errors), pixels.shapiro_wilk(errors)
    # What analysis.normality.shapiro promises of scipy's single-precision constants.
    np.testing.assert_allclose(batched[0], looped[0], atol=1e-6, rtol=0)
    np.testing.assert_allclose(batched[1], looped[1], atol=1e-5, rtol=0)


def test_pixel_rows(tiny):
    rows = list(pixels.pixels(tiny))
    assert [row.peer for row in rows] == ["a loop of scipy.stats.shapiro", "stored states, a loop of numpy.std"]
    assert all(row.ratio > 0 and row.pairs == tiny.many for row in rows)
    assert Moments is pixels.Moments
