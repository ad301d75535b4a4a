import itertools
import math
from dataclasses import replace

import pytest
import torch
from small_walks import DRAWS, SHAPE, network, run, start

from bench.diffusion.corrections import InOrder, ShiftedTarget, TimeShift
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, teacher_forced, walk
from bench.diffusion.schedules import edm_grid, edm_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, Churn, Euler, Heun
from bench.diffusion.types import CLEAN, Call, Level, Prediction
from bench.models.denoisers.oracles import GaussianOracle

COSINE, GRID = levels("cosine", 1000, 20), levels("cosine", 1000, 1000)[:-1]
EDM, EDM_GRID = edm_levels(18), edm_grid()
ONE_CALL = [Ancestral("learned"), Ancestral("fixed-small"), Ancestral("fixed-large"), DDIM(), DDIM(0.5)]
PATHS = [(solver, COSINE, GRID) for solver in ONE_CALL] + [(s, EDM, EDM_GRID) for s in (Euler(), Heun())]
WITHOUT_HEUN, CI = PATHS[:-1], PATHS[1:3]
# alpha^2 + sigma^2 = 1 in short numbers
TRIPLES = [
    Level(t, *pair) for t, pair in enumerate([(0.96, 0.28), (12 / 13, 5 / 13), (0.8, 0.6), (0.6, 0.8), (0.28, 0.96)])
]


class Constant:
    """Says eps = t / 10 everywhere, and keeps where it was asked."""

    def __init__(self):
        self.t = []

    def __call__(self, x, level, cond=None):
        self.t.append(level.t)
        eps = torch.as_tensor(level.t / 10).expand_as(x)
        return Prediction(eps, (x - level.sigma * eps) / level.alpha)


def image(*values):
    return torch.tensor(values).reshape(1, 1, 2, 2)


def exactly_unit():
    """Pixels [1, 8, 8] of mean 0 and variance 1 (n - 1), half of them up and half down."""
    return torch.tensor([1.0, -1.0]).repeat(32).reshape(1, 8, 8) * math.sqrt(63 / 64)


def test_algorithm_3_by_hand():
    """Two DDIM steps, t = 4 to 2 to the data; window 2, so t = 2 may be 1, 2 or 3.

    From x = .28 x0 + .96 * .4 the network's eps of .4 leads to x0 and on to x' = .8 x0 + .6 * .4 = .8 x0 + .24. With
    x0 = (1, -1, .75, -.75) the pixels' variance is .64 * (2 + 1.125) / 3 = .6667 (n - 1; .5 with n): next to sigma^2 =
    .64 of t = 3, of .148, .36 and .64. The second call is at 3, eps = .3, and x0_hat = (x' - .8 * .3) / .6 = 4/3 x0.
    With x0 a half of that the variance is .1667, next to .148 of t = 1: eps = .1 and x0_hat = (.8 x0 + .24 - .5/13) /
    (12/13) = .8667 x0 + .2183. Float32 numbers near 1, a dozen roundings: 1e-6.
    """
    path, x0 = (TRIPLES[4], TRIPLES[2], CLEAN), image(1.0, -1.0, 0.75, -0.75)
    x0 = torch.cat([x0, x0 / 2])
    said = Constant()
    steps = run(said, path, 0.28 * x0 + 0.96 * 0.4, DDIM(), TimeShift(path, TRIPLES, window=2, cutoff=3))
    torch.testing.assert_close(steps[0].x_next, 0.8 * x0 + 0.24, rtol=0, atol=1e-6)
    assert (said.t[0], said.t[1].flatten().tolist()) == (4, [3, 1])
    wanted = torch.stack([x0[0] * 4 / 3, (0.8 * x0[1] + 0.24 - 0.5 / 13) / 12 * 13])
    torch.testing.assert_close(steps[1].x_next, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("cutoff", "moved"), [(3.9, True), (4, False), (1000, False)])
def test_algorithm_3_asks_where_the_step_before_stood(cutoff, moved):
    """t > t_c of the step that made the state: at t = 4 here, not at 2 where the state stands."""
    path, said = (TRIPLES[4], TRIPLES[2], CLEAN), Constant()
    shift = TimeShift(path, TRIPLES, window=2, cutoff=cutoff)
    run(said, path, image(1.0, -1.0, 2.0, -2.0), DDIM(), shift, clip=True)
    assert isinstance(said.t[1], torch.Tensor) == moved


def test_the_released_code_by_hand():
    """DDIM, t = 4 to 3 to 1 to the data; window 2, so the second step's target 1 may be 0, 1 or 2.

    x = .28 x0 + .96 * .4 becomes x' = .6 x0 + .8 * .4 = .6 x0 + .32. The second call is at 3 as planned: eps = .3, and
    x0_hat = (x' - .24) / .6 = x0 + .4/3. For x0 = (1, -1, 1, -1) var(x') = .36 * 4/3 = .48, next to sigma^2 = .36 of
    t = 2: x'' = .8 (x0 + .4/3) + .6 * .3. For .4 of it the variance is .0768, next to .0784 of t = 0: x'' = .96 (x0 +
    .4/3) + .28 * .3. The last call is at 1 as planned. Float32 numbers near 1, a dozen roundings: 1e-6.
    """
    path, x0 = (TRIPLES[4], TRIPLES[3], TRIPLES[1], CLEAN), image(1.0, -1.0, 1.0, -1.0)
    x0 = torch.cat([x0, 0.4 * x0])
    said = Constant()
    steps = run(said, path, 0.28 * x0 + 0.96 * 0.4, DDIM(), ShiftedTarget(path, TRIPLES, window=2, cutoff=0))
    assert said.t == [4, 3, 1]
    torch.testing.assert_close(steps[0].x_next, 0.6 * x0 + 0.32, rtol=0, atol=1e-6)
    x0_hat = x0 + 0.4 / 3
    wanted = torch.stack([0.8 * x0_hat[0] + 0.18, 0.96 * x0_hat[1] + 0.084])
    torch.testing.assert_close(steps[1].x_next, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(steps[2].x_next, (wanted - 0.5 / 13) / 12 * 13, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("cutoff", "moved"), [(0, True), (1, False), (1000, False)])
def test_the_released_code_asks_where_the_step_goes(cutoff, moved):
    """j > cutoff for the next t, j = 1."""
    path = (TRIPLES[4], TRIPLES[3], TRIPLES[1], CLEAN)
    _, call = ShiftedTarget(path, TRIPLES, window=2, cutoff=cutoff).before(
        image(1.0, -1.0, 1.0, -1.0), Call(0, path[1], path[2], True)
    )
    assert isinstance(call.level_next.t, torch.Tensor) == moved
    assert call.level is path[1]


@pytest.mark.parametrize("kind", [TimeShift, ShiftedTarget])
def test_no_step_gains_noise(kind):
    """With a window over everything tau stays above where the step goes, and the target below where it comes from."""
    path = (TRIPLES[4], TRIPLES[3], TRIPLES[1], CLEAN)
    shift = kind(path, TRIPLES, window=100, cutoff=0)
    for size, extreme in ((1e-3, "least"), (1e3, "most")):
        _, call = shift.before(size * image(1.0, -1.0, 1.0, -1.0), Call(0, path[1], path[2], True))
        t = (call.level if kind is TimeShift else call.level_next).t.item()
        # From 3 to 1: tau is 2, 3 or 4, and a target 0, 1 or 2.
        assert t == {(TimeShift, "least"): 2, (TimeShift, "most"): 4}.get((kind, extreme), 0 if size < 1 else 2)


def test_the_clean_level_is_never_shifted():
    path = (TRIPLES[4], TRIPLES[1], CLEAN)
    call = Call(0, path[1], CLEAN, True)
    assert ShiftedTarget(path, TRIPLES, window=100, cutoff=0).before(image(1.0, -1.0, 1.0, -1.0), call)[1] is call


def test_a_window_at_the_noisy_end_is_cut_off():
    """Where the published code reads an attribute that is not there."""
    path = (GRID[0], GRID[3], GRID[4], CLEAN)  # t = 999, 996, 995; 30 levels around 996 would end at 1011
    x = 1.1 * exactly_unit()[None]
    _, call = TimeShift(path, GRID, window=30, cutoff=0).before(x, Call(0, path[1], path[2], True))
    assert call.level.t.flatten().tolist() == [999]
    _, call = ShiftedTarget(path, GRID, window=30, cutoff=0).before(x, Call(0, path[1], path[2], True))
    assert call.level_next.t.flatten().tolist() == [995]  # below 996, where the step starts


def nearest(x, choices):
    """The published choice for one image [1, C, H, W], in Python's arithmetic."""
    values = x.flatten().double().tolist()
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return min(sorted(choices, key=lambda level: level.t), key=lambda level: abs(variance - level.sigma**2))


def by_hand(kind, solver, path, grid, window, cutoff, sample):
    """Walk one image with host levels, step by step; return its states and the levels chosen."""
    draws = Draws(Noise(0), torch.tensor([sample]))
    x = start(path, draws).to(solver.dtype or torch.float32)
    states, chosen = [], []
    for position, (level, after) in enumerate(itertools.pairwise(path)):
        z = draws.normal(1, len(path) - 2 - position, SHAPE)
        if kind is TimeShift and position and path[position - 1].t > cutoff:
            near = [other for other in grid if abs(other.t - level.t) <= window / 2 and other.t > after.t]
            level = nearest(x, [level, *near])
        if kind is ShiftedTarget and position and after.t > cutoff:
            near = [other for other in grid if abs(other.t - after.t) <= window / 2 and other.t < level.t]
            after = nearest(x, [after, *near])
        chosen.append(level.t if kind is TimeShift else after.t)
        pred = network(x, level)
        x0 = pred.x0.clamp(-1, 1)
        eps = pred.eps + level.alpha / level.sigma * (pred.x0 - x0)
        used = replace(pred, x0=x0, eps=eps)
        reached = solver.update(x, used, level, after, z)
        if solver.stages == 2 and not after.is_clean:
            told = path[position + 1]
            second = network(reached, told)
            kept = second.x0.clamp(-1, 1)
            eps_next = second.eps + told.alpha / told.sigma * (second.x0 - kept)
            reached = solver.correct(x, used, replace(second, eps=eps_next), level, after)
        x = reached
        states.append(x)
    return torch.stack(states), chosen


@pytest.mark.parametrize(
    ("kind", "solver", "path", "grid"),
    [(TimeShift, *case) for case in PATHS]
    + [pytest.param(ShiftedTarget, *case, marks=pytest.mark.ci if case in CI else ()) for case in WITHOUT_HEUN],
)
def test_a_batch_is_its_images_one_by_one_with_host_levels(kind, solver, path, grid):
    """Every solver and variance with levels of one an image, against float levels.

    VP states are float32: levels rounded to 6e-8, of whose squares a step's variance is a difference, .03 at the least
    here, so 4e-6 of it; x0_hat is clipped, and steps contract what came before: 1e-5. EDM states are float64 and reach
    200, of which 18 steps each lose a few roundings of 1e-16: 1e-11.
    """
    made = kind(path, grid, window=80, cutoff=300)
    steps = [step for step in run(network, path, start(path), solver, made, clip=True) if step.completes]
    assert {step.x_next.dtype for step in steps} == {solver.dtype or torch.float32}
    got = torch.stack([step.x_next for step in steps])
    shifts = 0
    for sample in range(3):
        wanted, chosen = by_hand(kind, solver, path, grid, 80, 300, sample)
        torch.testing.assert_close(got[:, sample], wanted[:, 0], rtol=0, atol=1e-11 if path is EDM else 1e-5)
        walked = path[:-1] if kind is TimeShift else path[1:]
        shifts += sum(t != level.t for t, level in zip(chosen, walked, strict=True))
    assert shifts > 15  # of 3 images, about 12 steps each


def point_mass(x, level, cond=None):
    """The exact denoiser of one grey image, 0: all of a state is noise."""
    return Prediction(x / level.sigma, torch.zeros_like(x))


def test_an_exact_walk_is_told_how_much_noise_it_has():
    """Exact DDIM of a grey image keeps x / sigma, so that var(x) / sigma^2 is the start's v at every level.

    tau is then where sigma_tau^2 / sigma^2 is next to v: below the level for v < 1, above for v > 1. A step from there
    divides by sigma_tau and not sigma, which brings the next state's variance to its level's: it becomes
    v (sigma / sigma_tau)^2 sigma_next^2. To half a level of the grid, 1.6e-3 of sigma^2 = .5, and a few float32
    roundings: 5e-3.
    """
    path = (*COSINE[8:12], CLEAN)
    x = path[0].sigma * torch.stack([v**0.5 * exactly_unit() for v in (0.96, 1.0, 1.03)])
    steps = run(point_mass, path, x, DDIM(), TimeShift(path, GRID, window=100, cutoff=0))
    first, second = (step.x_next.flatten(1).var(1) for step in steps[:2])
    torch.testing.assert_close(first / path[1].sigma ** 2, torch.tensor([0.96, 1.0, 1.03]), rtol=0, atol=1e-5)
    torch.testing.assert_close(second / path[2].sigma ** 2, torch.ones(3), rtol=0, atol=5e-3)


@pytest.mark.parametrize("kind", [TimeShift, ShiftedTarget])
def test_teacher_forced_steps_are_shifted_as_a_walks(kind):
    """The first is not; the others are by their real state, whatever other steps are visited."""
    made, seen = kind(COSINE, GRID, window=80, cutoff=300), []

    def asked(x, level, cond=None):
        seen.append(level.t)
        return network(x, level)

    x0 = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    every = list(teacher_forced(asked, COSINE, x0, Ancestral(), DRAWS, correction=made))
    assert len(every) == 20
    plain = list(teacher_forced(network, COSINE, x0, Ancestral(), DRAWS))
    assert torch.equal(every[0].x_next, plain[0].x_next)
    assert torch.equal(every[-1].x_next, plain[-1].x_next)
    assert not torch.equal(every[5].x_next, plain[5].x_next)
    assert all(torch.equal(a.x, b.x) for a, b in zip(every, plain, strict=True))
    (single,) = teacher_forced(network, COSINE, x0, Ancestral(), DRAWS, correction=made, indices=[14])
    assert torch.equal(single.x_next, every[5].x_next)
    if kind is TimeShift:  # steps from 999 to 315 lie before those from 946 to 263
        assert [isinstance(t, torch.Tensor) for t in seen] == [False] + [True] * 14 + [False] * 5
    else:
        assert not any(isinstance(t, torch.Tensor) for t in seen)


def test_churn_does_not_hide_which_step_it_is():
    """Churn raises the level a step starts from, past that of the step before; the first step stays the first."""
    path = edm_levels(40)
    churned = Euler(Churn(100.0, 40))
    raised = churned.churned(path[6])[0]
    assert raised.sigma > path[5].sigma
    x = prior(raised, DRAWS, SHAPE)
    made = TimeShift(path, EDM_GRID, window=30, cutoff=0)
    first = Call(0, churned.churned(path[0])[0], path[1], True)
    assert made.before(x, first)[1] is first
    _, call = made.before(x, Call(0, raised, path[7], True))
    assert isinstance(call.level.t, torch.Tensor)
    assert ((call.level.t - raised.t).abs() <= 15).all()
    steps = run(network, path, start(path), churned, made, clip=True)
    assert all(torch.isfinite(step.x_next).all() for step in steps)


@pytest.mark.parametrize("kinds", [(TimeShift, ShiftedTarget), (ShiftedTarget, TimeShift), (TimeShift, TimeShift)])
def test_two_shifts_do_not_go_together(kinds):
    both = InOrder([kind(COSINE, GRID, window=80, cutoff=0) for kind in kinds])
    with pytest.raises(ValueError, match="one time shift; remove the other"):
        run(network, COSINE, start(COSINE), DDIM(), both, clip=True)


@pytest.mark.parametrize("kind", [TimeShift, ShiftedTarget])
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_any_number_of_steps(kind, steps):
    """One step has nothing to shift; all of them leave no level between two."""
    path, grid = levels("cosine", 50, steps), levels("cosine", 50, 50)[:-1]
    walked = run(network, path, start(path), Ancestral(), kind(path, grid, window=10, cutoff=0), clip=True)
    assert torch.isfinite(walked[-1].x_next).all()


@pytest.mark.parametrize(("variance", "helps"), [(0.25, False), (0.0025, True)])
def test_it_takes_the_datas_variance_for_noise(variance, helps):
    """An eps 2 % too large leaves too little spread: the shift lessens that only where the data have hardly any."""
    oracle = GaussianOracle(torch.zeros(1, 8, 8), variance * torch.eye(64))

    def biased(x, level, cond=None):
        eps = 1.02 * oracle(x, level).eps
        return Prediction(eps, (x - level.sigma * eps) / level.alpha)

    path, draws = levels("cosine", 1000, "ddim10"), Draws(Noise(0), torch.arange(128))
    start = prior(path[0], draws, (1, 8, 8)).double()

    def spread(correction, denoiser=biased):
        *_, last = walk(denoiser, path, start, DDIM(), draws, clip=False, correction=correction)
        return float(last.x_next.std())

    exact, plain, shifted = spread(None, oracle), spread(None), spread(TimeShift(path, GRID, window=80, cutoff=300))
    assert plain < 0.99 * exact
    assert (shifted > plain) == helps
