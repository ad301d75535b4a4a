import itertools

import pytest
import torch

from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.samplers import Draws, paired, prior, teacher_forced, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM, Ancestral, PosteriorMean
from bench.diffusion.types import CLEAN, Prediction

LEVELS = levels("cosine", 1000, 20)
SHAPE = (3, 4, 4)
DRAWS = Draws(Noise(7), torch.arange(10, 14))
REAL = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
SOLVERS = [*map(Ancestral, ("learned", "fixed-small", "fixed-large")), *map(DDIM, (0.0, 0.5, 1.0)), PosteriorMean()]
GOLDEN = list(itertools.product(("cosine", "linear"), (0, 1), (0, 1), ("ddpm", "ddim0", "ddim1")))


def golden_name(schedule, learned, clip, mode):
    return f"{schedule}_learn{learned}_clip{clip}_{mode}"


def test_every_golden_trajectory_is_walked(golden):
    assert {golden_name(*case) for case in GOLDEN} == set(golden("sampler_trajectories_20")) - {"x", "noise"}


@pytest.mark.parametrize(("schedule", "learned", "clip", "mode"), GOLDEN)
def test_trajectories_equal_the_published_ones(golden, replay, step_errors, schedule, learned, clip, mode):
    """Every state to 1e-5 of its step's largest value.

    Both sides are float32; a step rounds some ten times (6e-8 each) relative to terms that, unclipped, are up to
    1/alpha times the state's size, and the steps contract: 3e-6 after twenty is the worst seen.
    """
    reference = golden("sampler_trajectories_20")
    got = replay(reference, schedule, bool(learned), bool(clip), mode)
    assert step_errors(got, reference[golden_name(schedule, learned, clip, mode)]).max() < 1e-5


@pytest.mark.parametrize("spec", [1, 2, 20, "ddim25"])
def test_one_step_and_one_record_a_network_call(stand_in, spec):
    """And nothing is computed before it is asked for."""
    net, walked = stand_in(True), levels("cosine", 1000, spec)
    walking = walk(net, walked, prior(walked[0], DRAWS, SHAPE), Ancestral(), DRAWS)
    assert net.levels == []
    steps = [next(walking)]
    assert len(net.levels) == 1
    steps += walking
    assert (net.levels, [step.i for step in steps]) == (list(walked[:-1]), list(reversed(range(len(walked) - 1))))
    assert [(step.level, step.level_next) for step in steps] == list(itertools.pairwise(walked))
    assert all(step.stage == 0 for step in steps)
    assert steps[-1].level_next == CLEAN


@pytest.mark.parametrize("clip", [False, True])
def test_used_estimates_stay_consistent(stand_in, clip):
    """alpha x0 + sigma eps = x after clipping too.

    float32: x0_hat is rounded at relative 6e-8 of (|x| + 1) / alpha and multiplied by alpha again, so a handful of
    roundings stays below 1e-6 of |x| + 1, whatever alpha is.
    """
    for step in walk(stand_in(False), LEVELS, prior(LEVELS[0], DRAWS, SHAPE), DDIM(), DRAWS, clip=clip):
        rebuilt = step.level.alpha * step.x0_used + step.level.sigma * step.eps_used
        torch.testing.assert_close(rebuilt, step.x, rtol=0, atol=1e-6 * (step.x.abs().max().item() + 1))
        assert (step.x0_used.abs() <= 1).all() or not clip
        raw = step.prediction
        assert clip or (torch.equal(step.x0_used, raw.x0) and torch.equal(step.eps_used, raw.eps))


def test_starts():
    noise = DRAWS.normal(Purpose.START, 0, SHAPE)
    level = LEVELS[5]
    assert torch.equal(prior(level, DRAWS, SHAPE), level.sigma * noise)
    assert torch.equal(paired(level, DRAWS, REAL), level.alpha * REAL + level.sigma * noise)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("i", [19, 12, 0])
def test_a_walk_from_level_i_is_the_full_walks_tail(stand_in, solver, i):
    """Started from the state the full walk reached, indices, noise and states are the full walk's bit for bit."""
    full = list(walk(stand_in(True), LEVELS, prior(LEVELS[0], DRAWS, SHAPE), solver, DRAWS))
    tail = full[-(i + 1) :]
    part = list(walk(stand_in(True), LEVELS[-(i + 2) :], tail[0].x, solver, DRAWS, x0=REAL))
    assert [step.i for step in part] == [step.i for step in tail] == list(range(i, -1, -1))
    assert all(torch.equal(a.x_next, b.x_next) for a, b in zip(part, tail, strict=True))
    assert all(step.x0 is REAL for step in part)
    assert all(step.x0 is None for step in full)


@pytest.mark.parametrize("indices", [None, {19, 7, 0}, [3]])
def test_teacher_forcing_steps_from_real_noised_data(stand_in, indices):
    net = stand_in(True)
    steps = list(teacher_forced(net, LEVELS, REAL, Ancestral("fixed-small"), DRAWS, indices=indices))
    assert [step.i for step in steps] == sorted(range(20) if indices is None else indices, reverse=True)
    assert net.levels == [step.level for step in steps]
    for step in steps:
        assert step.level == LEVELS[19 - step.i]
        noise = DRAWS.normal(Purpose.FORCED, step.i, SHAPE)
        assert torch.equal(step.x, step.level.alpha * REAL + step.level.sigma * noise)
        assert step.x0 is REAL


def test_teacher_forced_noise_is_its_own(stand_in):
    """The same state stepped by a free walk takes other noise: a forced walk cannot shift a free one."""
    (forced,) = teacher_forced(stand_in(False), LEVELS, REAL, Ancestral("fixed-small"), DRAWS, indices=[10])
    free = next(walk(stand_in(False), LEVELS[-12:], forced.x, Ancestral("fixed-small"), DRAWS))
    ours, theirs = (DRAWS.normal(p, 10, SHAPE) for p in (Purpose.FORCED_ANCESTRAL, Purpose.ANCESTRAL))
    ratio = (forced.x_next - free.x_next) / (ours - theirs)
    # One number everywhere, the step's standard deviation; float32 differences of order 1 over noise gaps > 1e-2.
    close = (ours - theirs).abs() > 1e-2
    assert ratio[close].std() < 1e-4
    assert ratio[close].mean() > 1e-2


@pytest.mark.parametrize("run", [walk, teacher_forced])
def test_conditioning_reaches_the_network_and_no_gradient_is_left(run):
    seen, weight, labels = [], torch.ones((), requires_grad=True), torch.arange(4)

    def net(x, level, cond=None):
        seen.append(cond)
        return Prediction(weight * x, weight * x)

    steps = list(run(net, LEVELS, REAL, DDIM(), DRAWS, cond=labels))
    assert not any(step.x_next.requires_grad for step in steps)
    assert [cond is labels for cond in seen] == [True] * 20
