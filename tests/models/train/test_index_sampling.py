"""Loss-second-moment resampling of training indices."""

import pytest
import torch

from bench.models.train.batches import LossSecondMoment


@pytest.fixture
def full():
    """A sampler of four indices whose losses are 1, 1, 2 and 4, ten times each."""
    sampler = LossSecondMoment(4)
    for _ in range(10):
        sampler.add(torch.arange(4), torch.tensor([1.0, 1.0, 2.0, 4.0]))
    return sampler


def test_all_are_equally_likely_until_each_has_ten_losses(full):
    sampler = LossSecondMoment(4)
    assert sampler.probabilities().tolist() == [0.25] * 4
    sampler.add(torch.tensor([0] * 30 + [1, 2, 3]), torch.ones(33))
    assert sampler.counts.tolist() == [10, 1, 1, 1]
    t, weights = sampler.draw(torch.tensor([0.0, 0.2499, 0.25, 0.9999], dtype=torch.float64))
    assert (t.tolist(), weights.tolist()) == ([0, 0, 1, 3], [1.0] * 4)


def test_likely_are_those_of_large_losses(full):
    expected = 0.999 * torch.tensor([1.0, 1.0, 2.0, 4.0], dtype=torch.float64) / 8 + 0.001 / 4
    torch.testing.assert_close(full.probabilities(), expected, rtol=1e-12, atol=0)


def test_weighted_losses_have_the_uniform_mean(full):
    """The quantiles of a fine grid are the expectation, up to the grid: 4 edges of 1e-5 with losses of 4 at most."""
    t, weights = full.draw(torch.arange(100_000, dtype=torch.float64) / 100_000)
    loss = torch.tensor([1.0, 1.0, 2.0, 4.0])[t]
    assert (weights * loss).double().mean().item() == pytest.approx(2.0, abs=1e-3)


def test_the_last_ten_losses_count_in_their_order():
    sampler = LossSecondMoment(1)
    sampler.add(torch.zeros(13, dtype=torch.int64), torch.arange(13.0))
    assert sampler.losses[0].tolist() == list(range(3, 13))


def test_the_root_of_the_mean_square_counts():
    sampler = LossSecondMoment(2)
    sampler.add(torch.tensor([0, 1] * 10), torch.tensor([3.0, 1.0] * 5 + [1.0, 1.0] * 5))
    assert (sampler.probabilities()[0] / sampler.probabilities()[1]).item() == pytest.approx(5**0.5, rel=2e-3)


@pytest.mark.parametrize(
    "change",
    [{"losses": torch.zeros(3, 10)}, {"losses": torch.full((4, 10), torch.inf)}, {"counts": torch.full((4,), 11)}],
)
def test_a_damaged_history_is_refused(full, change):
    with pytest.raises(ValueError, match="no history of losses"):
        LossSecondMoment(4).restore({**full.state(), **change})


def test_a_history_goes_on(full):
    other = LossSecondMoment(4)
    other.restore(full.state())
    assert torch.equal(other.probabilities(), full.probabilities())
