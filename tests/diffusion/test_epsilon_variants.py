"""The published kinds of epsilon scaling that differ from ADM-ES, by hand and where they must agree with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.diffusion.corrections import EpsilonScaling, FirstCallScaling, X0Scaling
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, walk
from bench.diffusion.schedules import edm_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, Euler, Heun, PosteriorMean
from bench.diffusion.types import CLEAN, Level, Prediction

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "edm_epsilon_scaling.npz")
VP_BY_HAND = (Level(2, 0.6, 0.8), Level(1, 0.8, 0.6), CLEAN)
EDM_BY_HAND = (Level(2, 1.0, 4.0), Level(1, 1.0, 1.0), CLEAN)
DRAWS = Draws(Noise(0), torch.arange(2))


def half(x, level, cond=None):
    """A network that always says eps = .5."""
    eps = torch.full_like(x, 0.5)
    return Prediction(eps, (x - level.sigma * eps) / level.alpha)


def by_hand(path, x, solver, correction):
    start = torch.full((1, 1, 1, 1), x, dtype=torch.float64)
    draws = Draws(Noise(0), torch.arange(1))
    return list(walk(half, path, start, solver, draws, clip=False, correction=correction))


def states(steps):
    return [step.x_next.item() for step in steps]


def test_two_ddim_steps_with_x0_alone_scaled_by_hand():
    # b = 1.25: eps / b = .4 in x0, .5 in the direction.
    # Step 1, (.6, .8) to (.8, .6): x0 = (1 - .8 * .4) / .6 = 1.133333, x = .8 * 1.133333 + .6 * .5 = 1.206667.
    # Step 2, to the clean level: x0 = (1.206667 - .6 * .4) / .8 = 1.208333, and no direction is left.
    steps = by_hand(VP_BY_HAND, 1.0, DDIM(), X0Scaling(VP_BY_HAND, 1.25))
    assert [step.eps_used.item() for step in steps] == [0.5, 0.5]
    assert states(steps) == pytest.approx([1.206667, 1.208333], abs=1e-6)


def test_two_ddim_steps_with_both_scaled_by_hand():
    # As above, but x = .8 * 1.133333 + .6 * .4 = 1.146667, x0 = (1.146667 - .24) / .8 = 1.133333.
    steps = by_hand(VP_BY_HAND, 1.0, DDIM(), EpsilonScaling(VP_BY_HAND, 1.25))
    assert [step.eps_used.item() for step in steps] == [0.4, 0.4]
    assert states(steps) == pytest.approx([1.146667, 1.133333], abs=1e-6)


def test_two_ddim_steps_with_a_slope_by_hand():
    # b + k i = 1 + .25 i: 1.25 at the first step (i = 1), 1 at the second, whose x0 = (1.206667 - .6 * .5) / .8.
    steps = by_hand(VP_BY_HAND, 1.0, DDIM(), X0Scaling(VP_BY_HAND, 1.0, 0.25))
    assert states(steps) == pytest.approx([1.206667, 1.133333], abs=1e-6)


def test_two_heun_steps_with_the_correcting_call_raw_by_hand():
    # b = 1.25 from sigma 4 to 1 to 0. First call: eps = .4, x = 10 - 3 * .4 = 8.8. Correcting call: eps = .5, so
    # x = 10 - 3 (.4 + .5) / 2 = 8.65. The last step has one call: x = 8.65 - 1 * .4 = 8.25.
    steps = by_hand(EDM_BY_HAND, 10.0, Heun(), FirstCallScaling(EDM_BY_HAND, 1.25))
    assert [step.eps_used.item() for step in steps] == [0.4, 0.5, 0.4]
    assert states(steps) == pytest.approx([8.8, 8.65, 8.25])


def test_two_heun_steps_with_both_calls_scaled_by_hand():
    # x = 10 - 3 * .4 = 8.8 either way, then 8.8 - .4.
    assert states(by_hand(EDM_BY_HAND, 10.0, Heun(), EpsilonScaling(EDM_BY_HAND, 1.25))) == pytest.approx(
        [8.8, 8.8, 8.4]
    )


def walked(stand_in, path, solver, correction, clip):
    steps = walk(
        stand_in(True), path, prior(path[0], DRAWS, (1, 4, 4)), solver, DRAWS, clip=clip, correction=correction
    )
    return [step.x_next for step in steps]


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("solver", [Ancestral("learned"), Ancestral("fixed-small"), PosteriorMean()])
def test_ancestral_steps_take_no_direction_so_that_both_are_one(stand_in, solver, clip):
    path = levels("cosine", 1000, 10)
    ours, theirs = (
        walked(stand_in, path, solver, kind(path, 1.02, 1e-3), clip) for kind in (X0Scaling, EpsilonScaling)
    )
    assert same(ours, theirs)


@pytest.mark.parametrize("solver", [Euler(), Heun()])
def test_euler_and_heun_steps_take_no_x0_so_that_scaling_it_is_nothing(stand_in, solver):
    path = edm_levels(6)
    assert same(
        walked(stand_in, path, solver, X0Scaling(path, 1.1), clip=False),
        walked(stand_in, path, solver, None, clip=False),
    )


@pytest.mark.parametrize(("solver", "alike"), [(Euler(), True), (DDIM(), True), (Heun(), False)])
def test_the_first_call_is_all_there_is_but_for_heun(stand_in, solver, alike):
    path = edm_levels(6)
    ours, theirs = (
        walked(stand_in, path, solver, kind(path, 1.1), False) for kind in (FirstCallScaling, EpsilonScaling)
    )
    assert same(ours, theirs) is alike


@pytest.mark.parametrize("case", [name for name in GOLDEN.files if name.startswith("euler_") and "_b" in name])
def test_euler_walks_of_the_ablation_sampler(case):
    """The published numbers; float64 states reach 240, of which 35 steps may each lose a few roundings: below 1e-11."""
    _, steps, b = case.split("_")
    path = edm_levels(int(steps.removeprefix("steps")))

    def closed_form(x, level, cond=None):
        x0 = x * 0.25 / (0.25 + level.sigma**2) + 0.1 * torch.tanh(x) * np.sin(min(level.sigma, 5))
        return Prediction((x - x0) / level.sigma, x0)

    x = 80 * torch.from_numpy(GOLDEN["latents"])
    *_, last = walk(closed_form, path, x, Euler(), DRAWS, clip=False, correction=FirstCallScaling(path, float(b[1:])))
    np.testing.assert_allclose(last.x_next.numpy(), GOLDEN[case], rtol=0, atol=1e-9)
