"""Both sides of the comparisons of pixels compute the same numbers."""

import numpy as np
import torch

from benchmarks.memory.stored_states import StoredStates
from benchmarks.speed import pixels


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
