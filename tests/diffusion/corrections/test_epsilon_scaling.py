from dataclasses import replace

import pytest
import torch
from small_walks import DRAWS, run

from bench.diffusion.corrections import Correction, EpsilonScaling, FirstCallScaling, VelocityScaling, X0Scaling
from bench.diffusion.samplers import prior, walk
from bench.diffusion.schedules import edm_levels, flow_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, Euler, Heun, PosteriorMean
from bench.diffusion.types import CLEAN, Call, Level, Prediction, batched

LEVELS = levels("cosine", 1000, 20)
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


def test_divisor_grows_from_the_least_noisy_level():
    """Divisor b + k i, i = 0 least noisy: at eps = 1 the used eps is its reciprocal (float32: 6e-8 relative)."""
    scaling = EpsilonScaling(LEVELS, b=1.1, k=0.01)
    one = torch.ones(1, 1, 1, 1)
    for i, level in enumerate(reversed(LEVELS[:-1])):
        x0, eps = scaling.prediction(Prediction(one, one), one, Call(0, level, level, True))
        assert eps.item() == pytest.approx(1 / (1.1 + 0.01 * i), rel=2e-7)
        # x0_hat stays consistent: alpha x0 + sigma eps = x, in sums of numbers of order 1.
        assert (level.alpha * x0 + level.sigma * eps).item() == pytest.approx(1.0, abs=3e-7)
        if i < 7:  # so a walk from level 7 is scaled as the full walk's tail
            tail = EpsilonScaling(LEVELS[-8:], b=1.1, k=0.01)
            assert torch.equal(tail.prediction(Prediction(one, one), one, Call(0, level, level, True))[1], eps)


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


VP_BY_HAND = (Level(2, 0.6, 0.8), Level(1, 0.8, 0.6), CLEAN)
EDM_BY_HAND = (Level(2, 1.0, 4.0), Level(1, 1.0, 1.0), CLEAN)


def half(x, level, cond=None):
    """A network that always says eps = .5."""
    eps = torch.full_like(x, 0.5)
    return Prediction(eps, (x - level.sigma * eps) / level.alpha)


def by_hand(path, x, solver, correction, network=half):
    """Return the eps of each step's update and the state after it."""
    steps = run(network, path, torch.full((1, 1, 1, 1), x, dtype=torch.float64), solver, correction)
    return [step.eps_used.item() for step in steps], [step.x_next.item() for step in steps]


BY_HAND = {
    # b = 1.25: eps / b = .4 in x0, .5 in the direction. (.6, .8) to (.8, .6): x0 = (1 - .8 * .4) / .6 = 1.133333,
    # x = .8 * 1.133333 + .6 * .5 = 1.206667. To the clean level: x0 = (1.206667 - .6 * .4) / .8, and no direction.
    "x0 alone": (X0Scaling, (1.25,), DDIM(), [0.5, 0.5], [1.206667, 1.208333]),
    # As above, but x = .8 * 1.133333 + .6 * .4 = 1.146667, x0 = (1.146667 - .24) / .8 = 1.133333.
    "both": (EpsilonScaling, (1.25,), DDIM(), [0.4, 0.4], [1.146667, 1.133333]),
    # 1 + .25 i: 1.25 at the first step (i = 1), 1 at the second, whose x0 = (1.206667 - .6 * .5) / .8.
    "a slope": (X0Scaling, (1.0, 0.25), DDIM(), [0.5, 0.5], [1.206667, 1.133333]),
    # From sigma 4 to 1 to 0. First call: eps = .4, x = 10 - 3 * .4. Correcting call: eps = .5, so that
    # x = 10 - 3 (.4 + .5) / 2. The last step has one call: x = 8.65 - 1 * .4.
    "first call alone": (FirstCallScaling, (1.25,), Heun(), [0.4, 0.5, 0.4], [8.8, 8.65, 8.25]),
    "both calls": (EpsilonScaling, (1.25,), Heun(), [0.4, 0.4, 0.4], [8.8, 8.8, 8.4]),
}


@pytest.mark.parametrize(("kind", "constants", "solver", "eps", "ends"), BY_HAND.values(), ids=BY_HAND)
def test_two_steps_by_hand(kind, constants, solver, eps, ends):
    path, x = (EDM_BY_HAND, 10.0) if isinstance(solver, Heun) else (VP_BY_HAND, 1.0)
    assert by_hand(path, x, solver, kind(path, *constants)) == (eps, pytest.approx(ends, abs=1e-6))


def walked(stand_in, path, solver, correction):
    start = prior(path[0], DRAWS, (1, 4, 4))
    return [step.x_next for step in run(stand_in(True), path, start, solver, correction)]


VP, EDM = levels("cosine", 1000, 10), edm_levels(6)
SAME = [  # ancestral steps take no direction, Euler's and Heun's no x0, and all but Heun's have one call
    *(
        (VP, solver, X0Scaling, EpsilonScaling, True)
        for solver in (Ancestral(), Ancestral("fixed-small"), PosteriorMean())
    ),
    *((EDM, solver, X0Scaling, lambda *_: None, True) for solver in (Euler(), Heun())),
    *((EDM, solver, FirstCallScaling, EpsilonScaling, True) for solver in (Euler(), DDIM())),
    (EDM, Heun(), FirstCallScaling, EpsilonScaling, False),
]


@pytest.mark.parametrize(("path", "solver", "kind", "other", "alike"), SAME)
def test_where_the_variants_are_one(stand_in, path, solver, kind, other, alike):
    pairs = zip(*(walked(stand_in, path, solver, made(path, 1.02, 1e-3)) for made in (kind, other)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) is alike


def test_two_steps_of_a_flow_with_the_velocity_scaled_by_hand():
    # b = 2 from sigma 1 to .5 to 0, the network says x0 = 0. Step 1, x = 1: x0 = 1 - (1 - 0) / 2 = .5, eps = 1, so
    # v = .5 and x = 1 - .5 * .5 = .75. Step 2: x0 = .75 - .75 / 2 = .375, where the walk ends.
    def zero(x, level, cond=None):
        return Prediction(x / level.sigma, 0 * x)

    path = flow_levels("flow", 2)
    assert by_hand(path, 1.0, Euler(straight=True), VelocityScaling(path, 2.0), zero)[1] == pytest.approx([0.75, 0.375])


def test_velocity_scaling_is_epsilon_scaling_on_edms_levels(stand_in):
    """x - (x - x0) / b = x - sigma eps / b: roundings of numbers up to 240 in float64, over 6 steps."""
    path = edm_levels(6)
    made = (walked(stand_in, path, Heun(), kind(path, 1.1)) for kind in (VelocityScaling, EpsilonScaling))
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_level_without_signal_is_not_scaled():
    """alpha = 0: every eps but the state itself contradicts it, one level for all and one an image."""
    path, x = flow_levels("flow", 4), torch.ones(2, 1, 1, 1, dtype=torch.float64)
    pred = Prediction(x, 0.3 * x)
    x0, eps = EpsilonScaling(path, 2.0).prediction(pred, x, Call(0, path[0], path[1], True))
    assert (x0 is pred.x0, eps is pred.eps) == (True, True)
    sigma = torch.tensor([1.0, 0.5], dtype=torch.float64).view(2, 1, 1, 1)
    level = batched(1000 * sigma, 1 - sigma, sigma)
    x0, eps = EpsilonScaling(path, 2.0).prediction(pred, x, Call(0, level, path[1], True))
    assert (x0.flatten().tolist(), eps.flatten().tolist()) == (pytest.approx([0.3, (1 - 0.5 * 0.5) / 0.5]), [1.0, 0.5])
