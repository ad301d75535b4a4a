from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bench.diffusion.corrections import Correction, EpsilonScaling
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM, Ancestral
from bench.diffusion.types import Call, Level, Prediction

LEVELS = levels("cosine", 1000, 20)
DRAWS = Draws(Noise(0), torch.arange(3))
START = prior(LEVELS[0], DRAWS, (1, 4, 4))
SCALED = [(b, 0.0, clip, mode) for b in (1.017, 0.99) for clip in (0, 1) for mode in ("ddpm", "ddim0")]
SCALED += [(1.0, 0.0025, 1, mode) for mode in ("ddpm", "ddim0")]


def golden_name(b, k, clip, mode):
    return f"linear_b{b}_k{k}_clip{clip}_{mode}" if k else f"b{b}_clip{clip}_{mode}"


def test_every_golden_scaling_is_walked(golden):
    assert {golden_name(*case) for case in SCALED} == set(golden("epsilon_scaling_20")) - {"x", "noise"}


@pytest.mark.parametrize(("b", "k", "clip", "mode"), SCALED)
def test_scaled_walks_equal_the_published_ones(golden, replay, step_errors, b, k, clip, mode):
    """To 1e-5: float32 against float32 in another order; each step rounds a few times (6e-8) and divides by alpha,
    and 20 steps of a contracting walk add up to 3e-6 at worst."""
    reference = golden("epsilon_scaling_20")
    got = replay(reference, "cosine", True, bool(clip), mode, lambda walked: EpsilonScaling(walked, b, k))
    assert step_errors(got, reference[golden_name(b, k, clip, mode)]).max() < 1e-5


def states(denoiser, solver, correction, clip=True):
    steps = walk(denoiser, LEVELS, START, solver, DRAWS, clip=clip, correction=correction)
    return [(step.x_next, step.x0_used, step.eps_used) for step in steps]


@pytest.mark.parametrize("solver", [Ancestral("learned"), Ancestral("fixed-large"), DDIM(0.0), DDIM(0.5)])
@pytest.mark.parametrize("correction", [Correction(), EpsilonScaling(LEVELS, 1.0)])
@pytest.mark.parametrize("clip", [False, True])
def test_switched_off_corrections_are_the_plain_sampler_bit_for_bit(stand_in, solver, correction, clip):
    plain = states(stand_in(True), solver, None, clip)
    corrected = states(stand_in(True), solver, correction, clip)
    for ours, theirs in zip(plain, corrected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_scaling_moves_the_walk(stand_in):
    plain = states(stand_in(True), DDIM(), None)
    scaled = states(stand_in(True), DDIM(), EpsilonScaling(LEVELS, 1.01))
    assert not torch.equal(plain[-1][0], scaled[-1][0])


def test_divisor_grows_from_the_least_noisy_level():
    """Divisor b + k i, i = 0 least noisy: at eps = 1 the used eps is its reciprocal (float32: 6e-8 relative)."""
    scaling = EpsilonScaling(LEVELS, b=1.1, k=0.01)
    one = torch.ones(1, 1, 1, 1)
    for i, level in enumerate(reversed(LEVELS[:-1])):
        x0, eps = scaling.prediction(Prediction(one, one), one, Call(0, level, level, True))
        assert eps.item() == pytest.approx(1 / (1.1 + 0.01 * i), rel=2e-7)
        # x0_hat stays consistent: alpha x0 + sigma eps = x, in sums of numbers of order 1.
        assert (level.alpha * x0 + level.sigma * eps).item() == pytest.approx(1.0, abs=3e-7)


def test_a_shorter_paired_walk_keeps_the_divisors():
    """Indices count from the least noisy level, so a walk from level i is scaled as the full walk's tail."""
    one = torch.ones(1, 1, 1, 1)
    tail = LEVELS[-8:]
    whole, part = EpsilonScaling(LEVELS, 1.0, 0.01), EpsilonScaling(tail, 1.0, 0.01)
    for level in tail[:-1]:
        given = Prediction(one, one), one, Call(0, level, level, True)
        assert torch.equal(whole.prediction(*given)[1], part.prediction(*given)[1])


@pytest.mark.parametrize(
    ("b", "k"), [(0.0, 0.0), (-1.0, 0.0), (1.0, -0.06), (-0.1, 1.0), (math.inf, 0.0), (math.nan, 0.0)]
)
def test_divisors_must_stay_positive(b, k):
    with pytest.raises(ValueError, match="must stay positive and finite"):
        EpsilonScaling(LEVELS, b, k)


def test_learned_variance_is_untouched(stand_in):
    """Two noises of one state differ by std (z - z'), scaled or not; the means, of order 1, cancel to float32 1e-6."""
    other = Draws(Noise(1), DRAWS.samples)

    def spread(correction):
        walks = [
            walk(stand_in(True), LEVELS, START, Ancestral(), draws, correction=correction) for draws in (DRAWS, other)
        ]
        a, b = (next(steps) for steps in walks)
        return a.x_next - b.x_next

    torch.testing.assert_close(spread(EpsilonScaling(LEVELS, 2.0)), spread(None), rtol=0, atol=2e-6)


class Shift(Correction):
    """Shows the network another state and level, and marks what the update produced."""

    def before(self, x, call):
        level = call.level
        return x + 1, replace(call, level=Level(level.t / 2, level.alpha, level.sigma))

    def after(self, x_next, pred, call):
        return x_next + 100


def test_the_network_sees_what_before_returns_and_the_walk_goes_on_from_after(stand_in):
    net = stand_in(False)
    steps = list(walk(net, LEVELS, START, DDIM(), DRAWS, correction=Shift()))
    assert [level.t for level in net.levels] == [level.t / 2 for level in LEVELS[:-1]]
    assert [step.level for step in steps] == list(LEVELS[:-1])
    assert torch.equal(steps[0].x, START)
    level, after = LEVELS[0], LEVELS[1]
    shown = Level(level.t / 2, level.alpha, level.sigma)
    plain = next(walk(stand_in(False), (shown, after), START + 1, DDIM(), DRAWS))
    assert torch.equal(steps[0].x_next, plain.x_next + 100)
    assert torch.equal(steps[1].x, steps[0].x_next)
