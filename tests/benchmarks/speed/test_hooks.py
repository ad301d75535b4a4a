import pytest

from benchmarks.speed.hooks import hooks


@pytest.mark.ci
def test_many_pairs_of_short_loops_give_an_interval_of_the_median(tiny):
    row = next(hooks(tiny))
    assert (row.name, row.pairs) == ("ddim, 8x8x3, width 32, batch 1", 20)
    assert row.low <= row.ratio <= row.high
