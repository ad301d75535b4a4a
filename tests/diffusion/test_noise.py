import itertools
import math

import pytest
import torch

from bench.diffusion.noise import Noise, Purpose, philox, uniform_words

# The known-answer vectors of Philox4x32-10 published with Random123 (file kat_vectors).
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
COUNT, SHAPE = 2000, (3, 4, 5)
N = COUNT * math.prod(SHAPE)


def hexadecimal(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(counter, key, expected):
    words = philox([torch.tensor([c]) for c in hexadecimal(counter)], tuple(hexadecimal(key)))
    assert [int(word) for word in words] == hexadecimal(expected)


def test_words_are_the_cipher_of_block_step_sample_purpose():
    """The layout of counter and key is the definition of the noise: stored results depend on it."""
    seed, sample, step = (7 << 32) | 5, 11, 3
    words = uniform_words(seed, torch.tensor([sample]), Purpose.FORCED, step, blocks=2)
    for block in range(2):
        counter = [torch.tensor([c]) for c in (block, step, sample, int(Purpose.FORCED))]
        assert words[0, :, block].tolist() == [int(w) for w in philox(counter, (5, 7))]


def test_purposes_are_never_renumbered():
    names = "START ANCESTRAL FORCED FORCED_ANCESTRAL TRAIN_NOISE TRAIN_PERTURBATION TRAIN_INDEX TRAIN_ORDER TRAIN_PROBE"
    names += " RESPONSE LABEL TRAIN_ROLLOUT TRAIN_LABEL"
    assert [purpose.name for purpose in sorted(Purpose)] == names.split()
    assert sorted(Purpose) == list(range(13))


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 8, 8), (3, 5, 7)])
def test_noise_belongs_to_the_sample_bit_for_bit(shape):
    """A sample's draw is the same alone, in any batch, in any order, beside any other sample."""
    noise = Noise(3)
    whole = noise.normal(torch.arange(37), Purpose.ANCESTRAL, 4, shape)
    assert (whole.dtype, whole.shape) == (torch.float32, (37, *shape))
    for chosen in ([5], [36, 0, 5], list(range(20, 37)), [1] * 9):
        part = noise.normal(torch.tensor(chosen), Purpose.ANCESTRAL, 4, shape)
        assert torch.equal(part, whole[chosen])


def test_global_random_state_is_neither_read_nor_moved():
    torch.manual_seed(0)
    first = Noise(0).normal(torch.arange(4), Purpose.START, 0, SHAPE)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(1)
    assert torch.equal(first, Noise(0).normal(torch.arange(4), Purpose.START, 0, SHAPE))


def test_normals_follow_the_normal_distribution():
    """Kolmogorov's statistic sqrt(n) D exceeds 1.95 with probability 2 exp(-2 * 1.95^2) = .001."""
    z = Noise(1).normal(torch.arange(COUNT), Purpose.START, 0, SHAPE).double().flatten().sort().values
    grid = torch.arange(N + 1, dtype=torch.float64) / N
    cdf = torch.special.ndtr(z)
    distance = torch.maximum((cdf - grid[:-1]).abs().max(), (grid[1:] - cdf).abs().max())
    assert distance * math.sqrt(N) < 1.95


def test_elements_of_a_sample_are_uncorrelated():
    """Correlations of n independent pairs have standard error 1/sqrt(n); 60 * 59 / 2 of them, so five errors.

    Squares are checked too: the two halves of a Box-Muller pair share their radius.
    """
    z = Noise(2).normal(torch.arange(COUNT), Purpose.START, 0, SHAPE).double().flatten(1)
    for values in (z, z.square()):
        r = torch.corrcoef(values.T) - torch.eye(values.shape[1])
        assert r.abs().max() < 5 / math.sqrt(COUNT)


def streams():
    """Draws that differ in exactly one ingredient from the first."""
    base = {"seed": 5, "purpose": Purpose.START, "step": 2, "first": 0}
    changes = [{}, {"seed": 6}, {"seed": 5 + 2**32}, {"step": 3}, {"first": COUNT}]
    changes += [{"purpose": p} for p in Purpose if p != Purpose.START]
    for change in changes:
        how = base | change
        samples = torch.arange(how["first"], how["first"] + COUNT)
        yield Noise(how["seed"]).normal(samples, how["purpose"], how["step"], SHAPE).double().flatten()


def test_streams_are_independent():
    """Every pair of streams is uncorrelated: 91 correlations of standard error 1/sqrt(n), so 4.5 errors."""
    for a, b in itertools.combinations(list(streams()), 2):
        assert abs((a * b).mean()) < 4.5 / math.sqrt(N)


@pytest.mark.parametrize("high", [1, 2, 7, 1000])
def test_integers_are_uniform(high):
    """Pearson's statistic over `high` cells has mean high - 1 and variance about 2 (high - 1); four deviations."""
    drawn = Noise(0).integers(torch.arange(50000), Purpose.TRAIN_INDEX, 0, high)
    assert drawn.min() >= 0
    counts = torch.bincount(drawn, minlength=high).double()
    assert len(counts) == high
    statistic = ((counts - 50000 / high).square() / (50000 / high)).sum()
    assert abs(statistic - (high - 1)) <= 4 * math.sqrt(2 * (high - 1))
