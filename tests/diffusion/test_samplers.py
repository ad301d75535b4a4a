from __future__ import annotations

import itertools
import math

import pytest
import torch

from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.posterior import Posterior
from bench.diffusion.samplers import Draws, paired, prior, teacher_forced, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM, VARIANCES, Ancestral, Churn, Euler, Heun, PosteriorMean
from bench.diffusion.types import CLEAN, Level, Prediction

LEVELS = levels("cosine", 1000, 20)
SHAPE = (3, 4, 4)
DRAWS = Draws(Noise(7), torch.arange(10, 14))
REAL = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
SOLVERS = [
    *(Ancestral(variance) for variance in ("learned", "fixed-small", "fixed-large")),
    *(DDIM(eta) for eta in (0.0, 0.5, 1.0)),
    PosteriorMean(),
]
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
    net, walked = stand_in(True), levels("cosine", 1000, spec)
    steps = list(walk(net, walked, prior(walked[0], DRAWS, SHAPE), Ancestral(), DRAWS))
    assert net.levels == list(walked[:-1])
    assert [step.i for step in steps] == list(reversed(range(len(walked) - 1)))
    assert [(step.level, step.level_next) for step in steps] == list(itertools.pairwise(walked))
    assert all(step.stage == 0 for step in steps)
    assert steps[-1].level_next == CLEAN


def test_nothing_is_computed_before_it_is_asked_for(stand_in):
    net = stand_in(False)
    steps = walk(net, LEVELS, prior(LEVELS[0], DRAWS, SHAPE), DDIM(), DRAWS)
    assert net.levels == []
    next(steps)
    assert len(net.levels) == 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_state_feeds_the_next_step(stand_in, solver):
    start = prior(LEVELS[0], DRAWS, SHAPE)
    steps = list(walk(stand_in(True), LEVELS, start, solver, DRAWS))
    assert torch.equal(steps[0].x, start)
    assert all(torch.equal(a.x_next, b.x) for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("clip", [False, True])
def test_the_last_step_is_x0_hat_exactly(stand_in, solver, clip):
    """c1 = 1, c2 = 0 and no noise: times one and plus zero round nothing."""
    *_, last = walk(stand_in(True), LEVELS, prior(LEVELS[0], DRAWS, SHAPE), solver, DRAWS, clip=clip)
    assert torch.equal(last.x_next, last.x0_used)


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


def test_full_stochasticity_is_ancestral_sampling(stand_in):
    """DDIM's eta = 1 is the posterior at consistent (x0, eps): alpha' x0 + d eps = c1 x0 + c2 x. Without clipping.

    Compared step by step from one state: terms reach |x| / alpha = 2e4 |x| at the first step, of which float32 keeps
    6e-8 each; the result is of the same size, so relative to its maximum 1e-5 holds.
    """
    start = prior(LEVELS[0], DRAWS, SHAPE)
    walks = [
        list(walk(stand_in(False), LEVELS, start, solver, DRAWS, clip=False))
        for solver in (Ancestral("fixed-small"), DDIM(1.0))
    ]
    for ancestral, ddim in zip(*walks, strict=True):
        assert (ancestral.x_next - ddim.x_next).abs().max() < 1e-5 * ancestral.x_next.abs().max()


@pytest.mark.parametrize("solver", [DDIM(0.0), PosteriorMean()])
def test_deterministic_solvers_draw_nothing_visible(stand_in, solver):
    start = prior(LEVELS[0], DRAWS, SHAPE)
    other = Draws(Noise(8), DRAWS.samples)
    a, b = (list(walk(stand_in(False), LEVELS, start, solver, draws)) for draws in (DRAWS, other))
    assert torch.equal(a[-1].x_next, b[-1].x_next)


class Silence(Draws):
    """No noise at all."""

    def normal(self, purpose, step, shape):
        return torch.zeros(len(self.samples), *shape)


def test_the_mean_chain_is_ancestral_sampling_without_its_noise(stand_in):
    """Adding a scaled 0 rounds nothing: bitwise."""
    start = prior(LEVELS[0], DRAWS, SHAPE)
    silent = Silence(DRAWS.noise, DRAWS.samples)
    ancestral, mean = (
        list(walk(stand_in(True), LEVELS, start, solver, silent)) for solver in (Ancestral(), PosteriorMean())
    )
    assert all(torch.equal(a.x_next, b.x_next) for a, b in zip(ancestral, mean, strict=True))


@pytest.mark.parametrize(("variance", "power"), [("fixed-small", "small"), ("fixed-large", "large")])
def test_ancestral_noise_has_the_chosen_variance(stand_in, variance, power):
    """Two walks from one state differ by std * (z - z'), which the noise stream tells exactly (float32: 1e-6)."""
    start = prior(LEVELS[0], DRAWS, SHAPE)
    other = Draws(Noise(8), DRAWS.samples)
    a, b = (next(walk(stand_in(False), LEVELS, start, Ancestral(variance), draws)) for draws in (DRAWS, other))
    z, w = (draws.normal(Purpose.ANCESTRAL, 19, SHAPE) for draws in (DRAWS, other))
    std = math.sqrt(getattr(Posterior.between(*LEVELS[:2]), power))
    torch.testing.assert_close(a.x_next - b.x_next, std * (z - w), rtol=0, atol=2e-6)


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


def test_samples_do_not_know_their_batch(stand_in):
    """Elementwise networks only, so even the arithmetic is the same: bitwise."""
    whole = list(walk(stand_in(True), LEVELS, prior(LEVELS[0], DRAWS, SHAPE), Ancestral(), DRAWS))
    alone = Draws(DRAWS.noise, DRAWS.samples[2:3])
    single = list(walk(stand_in(True), LEVELS, prior(LEVELS[0], alone, SHAPE), Ancestral(), alone))
    assert all(torch.equal(a.x_next[2:3], b.x_next) for a, b in zip(whole, single, strict=True))


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


def test_walks_leave_no_gradient():
    weight = torch.ones((), requires_grad=True)

    def net(x, level, cond=None):
        return Prediction(weight * x, weight * x)

    start = prior(LEVELS[0], DRAWS, SHAPE)
    assert not any(step.x_next.requires_grad for step in walk(net, LEVELS, start, DDIM(), DRAWS))
    assert not any(step.x_next.requires_grad for step in teacher_forced(net, LEVELS, REAL, DDIM(), DRAWS))


@pytest.mark.parametrize("forced", [False, True])
def test_conditioning_reaches_the_network(forced):
    seen = []

    def net(x, level, cond=None):
        seen.append(cond)
        return Prediction(x, x)

    labels = torch.arange(4)
    run = teacher_forced if forced else walk
    assert len(list(run(net, LEVELS, REAL, DDIM(), DRAWS, cond=labels))) == 20
    assert all(cond is labels for cond in seen)


def test_unknown_variance_is_refused():
    with pytest.raises(ValueError, match=f"unknown variance 'huge'; choose {', '.join(VARIANCES)}"):
        Ancestral("huge")


@pytest.mark.parametrize(("variance", "message"), [("learned", "does not learn"), ("exact", "closed-form denoiser")])
def test_a_variance_the_denoiser_lacks_is_refused(stand_in, variance, message):
    with pytest.raises(ValueError, match=message):
        next(walk(stand_in(False), LEVELS, prior(LEVELS[0], DRAWS, SHAPE), Ancestral(variance), DRAWS))


def test_the_frame_of_edm_is_walked_by_the_same_code():
    """alpha = 1 and the exact denoiser of N(0, s^2): a DDIM step multiplies by (s^2 + sigma sigma') / (s^2 + sigma^2).

    20 float32 products of three roundings each: 4e-6 relative.
    """
    sigmas = [80 * 0.7**k for k in range(20)]
    walked = [*(Level(0, 1.0, sigma) for sigma in sigmas), CLEAN]
    power = 0.25

    def exact(x, level, cond=None):
        return Prediction(level.sigma / (power + level.sigma**2) * x, power / (power + level.sigma**2) * x)

    start = prior(walked[0], DRAWS, SHAPE)
    *_, last = walk(exact, walked, start, DDIM(), DRAWS, clip=False)
    factor = math.prod((power + a * b) / (power + a**2) for a, b in itertools.pairwise([*sigmas, 0.0]))
    torch.testing.assert_close(last.x_next, factor * start, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("solver", "drawn"),
    [
        (Ancestral("fixed-small"), range(19, 0, -1)),
        (DDIM(1.0), range(19, 0, -1)),
        (DDIM(0.0), ()),
        (PosteriorMean(), ()),
        (Euler(), ()),
        (Heun(), ()),
        (Heun(Churn(4.0, 20)), range(19, -1, -1)),  # churn comes before a step, so before the last one too
    ],
)
def test_noise_that_no_step_takes_is_not_drawn(stand_in, solver, drawn):
    asked = []

    class Heard(Noise):
        def normal(self, samples, purpose, step, shape):
            asked.append(step)
            return super().normal(samples, purpose, step, shape)

    path = [Level(9, 1.0, 0.5**k) for k in range(20)] + [CLEAN] if isinstance(solver, Euler) else LEVELS
    list(walk(stand_in(False), path, torch.zeros(2, *SHAPE), solver, Draws(Heard(0), torch.arange(2))))
    assert asked == list(drawn)
