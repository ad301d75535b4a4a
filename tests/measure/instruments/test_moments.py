import numpy as np
import pytest
import torch

from bench.measure.instruments.moments import Moments

SHAPE = (2, 3)
# Sums of n float64 values of size about 1 round by at most n * eps relative; 1e-12 leaves room for n = 1000.
ROUNDING = 1e-12


def values(count, seed=0):
    return 0.3 + torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def filled(rows, batches):
    moments = Moments(rows, SHAPE)
    for row, batch in batches:
        moments.add(row, batch)
    return moments.state()


def test_streaming_equals_batch():
    x = values(101)
    state = filled(1, [(0, part) for part in x.split(7)])
    wide = x.double().numpy()
    assert state["count"] == 101
    np.testing.assert_allclose(state["mean"][0], wide.mean(0), rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(state["second"][0], np.square(wide).mean(0), rtol=ROUNDING)
    np.testing.assert_allclose(Moments.variance(state)[0], wide.var(0, ddof=1), rtol=10 * ROUNDING)


def test_rows_are_kept_apart():
    first, second = values(5, 1), values(8, 2)
    state = filled(3, [(0, first), (2, second)])
    assert state["count"].tolist() == [5, 0, 8]
    np.testing.assert_allclose(state["mean"][0], first.double().mean(0), atol=ROUNDING)
    np.testing.assert_allclose(state["mean"][2], second.double().mean(0), atol=ROUNDING)
    assert not state["mean"][1].any()


def test_merging_equals_one_pass():
    x = values(60)
    parts = [filled(2, [(0, part), (1, part[:3])]) for part in x.split((10, 20, 30))]
    merged = Moments.merge(parts)
    whole = filled(2, [(0, x), (1, torch.cat([part[:3] for part in x.split((10, 20, 30))]))])
    assert merged["count"].tolist() == whole["count"].tolist() == [60, 9]
    for name in ("mean", "second"):
        np.testing.assert_allclose(merged[name], whole[name], rtol=0, atol=ROUNDING)


def test_merging_follows_the_order_given():
    # 1e16 + 1 - 1e16 is 0 from the left and 1 if the large terms meet first: the order is part of the result.
    states = [{"count": np.ones(1), "mean": np.array([v]), "second": np.array([1.0])} for v in (1e16, 1.0, -1e16)]
    assert Moments.merge(states)["mean"][0] == 0.0
    assert Moments.merge([states[0], states[2], states[1]])["mean"][0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("count", [0, 1])
def test_variance_of_fewer_than_two_values_is_not_a_number(count):
    state = filled(1, [(0, values(count))])
    assert np.isnan(Moments.variance(state)).all()


def test_variance_never_drops_below_zero():
    state = {"count": np.array([2.0]), "mean": np.array([1.0]), "second": np.array([1.0 - 1e-16])}
    assert Moments.variance(state)[0] == 0.0


def test_float32_values_are_squared_and_summed_in_float64():
    # (1 + 2**-12)**2 = 1 + 2**-11 + 2**-24 needs one bit more than float32 has.
    moments = Moments(1, ())
    moments.add(0, torch.full((4096,), 1 + 2**-12, dtype=torch.float32))
    assert moments.state()["second"][0] == (1 + 2**-12) ** 2


def test_a_state_is_a_copy():
    moments = Moments(1, SHAPE)
    moments.add(0, values(3))
    before = moments.state()
    moments.add(0, values(3, 1))
    assert (before["count"], moments.state()["count"]) == (3, 6)
