"""Solvers against the published implementations' numbers, and against algebra."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from bench.diffusion.corrections import EpsilonScaling
from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.posterior import Posterior
from bench.diffusion.samplers import Draws, prior, teacher_forced, walk
from bench.diffusion.schedules import alpha_bars, edm_levels, edm_position, flow_levels, levels
from bench.diffusion.solvers import (
    DDIM,
    VARIANCES,
    Ancestral,
    Churn,
    DPMSolverPP2M,
    Euler,
    FlowSDE,
    Heun,
    PosteriorMean,
    UniPC,
)
from bench.diffusion.types import CLEAN, Level, Prediction

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "edm_epsilon_scaling.npz")
CASES = [name for name in GOLDEN.files if "_b" in name]
SOLVERS = {"heun": Heun(), "euler": Euler()}
DRAWS = Draws(Noise(0), torch.arange(2))
LEVELS, SHAPE = levels("cosine", 1000, 20), (3, 4, 4)
VP_SOLVERS = [*map(Ancestral, ("learned", "fixed-small", "fixed-large")), *map(DDIM, (0.0, 0.5, 1.0)), PosteriorMean()]


def closed_form(x, level, cond=None):
    """The denoiser that the published numbers were made with (alpha = 1)."""
    s = level.sigma
    x0 = x * 0.25 / (0.25 + s**2) + 0.1 * torch.tanh(x) * math.sin(min(s, 5))
    return Prediction((x - x0) / s, x0)


def run(solver, path, x, denoiser=closed_form, correction=None):
    return list(walk(denoiser, path, x, solver, DRAWS, clip=False, correction=correction))


@pytest.mark.parametrize("case", CASES)
def test_published_final_states_and_network_calls(case):
    kind, steps, b = case.split("_")
    path = edm_levels(int(steps.removeprefix("steps")))
    made = run(
        SOLVERS[kind], path, 80 * torch.from_numpy(GOLDEN["latents"]), correction=EpsilonScaling(path, float(b[1:]))
    )
    # Both are float64 and states reach 240, of which 35 steps may each lose a few roundings: below 1e-11.
    np.testing.assert_allclose(made[-1].x_next.numpy(), GOLDEN[case], rtol=0, atol=1e-9)
    assert len(made) == int(GOLDEN[f"{kind}_{steps}_nfe"])


def test_heun_takes_two_calls_a_step_but_for_the_last():
    made = run(Heun(), edm_levels(4), 80 * torch.ones(2, 1, 4, 4, dtype=torch.float64))
    assert [(step.i, step.stage, step.completes) for step in made] == [
        (3, 0, False), (3, 1, True), (2, 0, False), (2, 1, True), (1, 0, False), (1, 1, True), (0, 0, True),
    ]  # fmt: skip
    for call, correction in ((made[0], made[1]), (made[2], made[3])):
        assert correction.level == call.level_next == correction.level_next
        assert torch.equal(correction.x, call.x_next)
    assert torch.equal(made[2].x, made[1].x_next)  # the walk goes on from the corrected state


def test_teacher_forced_steps_are_whole_heun_steps():
    path, x0 = edm_levels(4), torch.zeros(2, 1, 4, 4)
    made = list(teacher_forced(closed_form, path, x0, Heun(), DRAWS, clip=False, indices={3, 0}))
    assert [(step.i, step.stage) for step in made] == [(3, 0), (3, 1), (0, 0)]
    again = list(walk(closed_form, path[:2] + path[1:2], made[0].x, Heun(), DRAWS, clip=False))
    assert torch.equal(made[1].x_next, again[1].x_next)


def test_churn_adds_the_noise_of_the_level_it_names():
    level = Level(5, 1.0, 2.0)
    noisier, added_variance = Churn(amount=3.0, steps=10).raised(level)
    assert (noisier.sigma, noisier.t) == (pytest.approx(2.6), edm_position(noisier.sigma))
    assert added_variance == pytest.approx(2.6**2 - 2**2)
    assert Churn(3.0, 10, noise=1.5).raised(level)[1] == pytest.approx(1.5**2 * (2.6**2 - 2**2))
    assert Churn(3.0, 10, rounded=math.floor).raised(level)[0].sigma == 2


def test_churned_heun_is_edms_sampler():
    """Its algorithm 2 with S_churn 40, S_min .05, S_max 50 and S_noise 1.003, line by line; states reach 240."""
    steps, path = 12, edm_levels(12)
    solver = Heun(Churn(40.0, steps, 0.05, 50.0, 1.003))
    x = START * path[0].sigma
    for i, (level, after) in enumerate(pairwise(path)):
        t, t_next = level.sigma, after.sigma
        gamma = min(40 / steps, math.sqrt(2) - 1) if 0.05 <= t <= 50 else 0
        t_hat = t + gamma * t
        noise = DRAWS.normal(Purpose.ANCESTRAL, steps - 1 - i, x.shape[1:])
        x_hat = x + math.sqrt(t_hat**2 - t**2) * 1.003 * noise if gamma else x
        d = (x_hat - closed_form(x_hat, Level(0, 1.0, t_hat)).x0) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next:
            d_next = (x - closed_form(x, after).x0) / t_next
            x = x_hat + (t_next - t_hat) * (d + d_next) / 2
    torch.testing.assert_close(run(solver, path, START * path[0].sigma)[-1].x_next, x, rtol=0, atol=1e-10)


def test_churned_walks_take_uniform_scaling():
    path = edm_levels(6)
    x = 80 * torch.ones(2, 1, 4, 4)
    made = run(Heun(Churn(4.0, 6)), path, x, correction=EpsilonScaling(path, 1.01))
    assert torch.equal(made[0].eps_used, made[0].prediction.eps / 1.01)
    assert made[0].level.sigma > path[0].sigma


@pytest.mark.parametrize("solver", VP_SOLVERS)
@pytest.mark.parametrize("clip", [False, True])
def test_the_last_step_is_x0_hat_exactly(stand_in, solver, clip):
    """c1 = 1, c2 = 0 and no noise: times one and plus zero round nothing."""
    *_, last = walk(stand_in(True), LEVELS, prior(LEVELS[0], DRAWS, SHAPE), solver, DRAWS, clip=clip)
    assert torch.equal(last.x_next, last.x0_used)


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


def test_unknown_variance_is_refused():
    with pytest.raises(ValueError, match=f"unknown variance 'huge'; choose {', '.join(VARIANCES)}"):
        Ancestral("huge")


@pytest.mark.parametrize(("variance", "message"), [("learned", "does not learn"), ("exact", "closed-form denoiser")])
def test_a_variance_the_denoiser_lacks_is_refused(stand_in, variance, message):
    with pytest.raises(ValueError, match=message):
        next(walk(stand_in(False), LEVELS, prior(LEVELS[0], DRAWS, SHAPE), Ancestral(variance), DRAWS))


DRAWN = [
    (Ancestral("fixed-small"), range(19, 0, -1)),
    (DDIM(1.0), range(19, 0, -1)),
    (DDIM(0.0), ()),
    (PosteriorMean(), ()),
    (Euler(), ()),
    (Heun(), ()),
    (Heun(Churn(4.0, 20)), range(19, -1, -1)),  # churn comes before a step, so before the last one too
]


@pytest.mark.parametrize(("solver", "drawn"), DRAWN)
def test_noise_that_no_step_takes_is_not_drawn(stand_in, solver, drawn):
    asked = []

    class Heard(Noise):
        def normal(self, samples, purpose, step, shape):
            asked.append(step)
            return super().normal(samples, purpose, step, shape)

    path = [Level(9, 1.0, 0.5**k) for k in range(20)] + [CLEAN] if isinstance(solver, Euler) else LEVELS
    list(walk(stand_in(False), path, torch.zeros(2, *SHAPE), solver, Draws(Heard(0), torch.arange(2))))
    assert asked == list(drawn)


FLOW, START = flow_levels("flow(2)", 20), torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()


def bounded(x, level, cond=None):
    """A closed form of bounded x0, which takes a level without signal."""
    x0 = torch.tanh(x / math.hypot(level.alpha, level.sigma) + 0.002 * level.t)
    return Prediction((x - level.alpha * x0) / level.sigma, x0)


def last(solver, path, denoiser=bounded, x=START):
    return run(solver, path, x, denoiser)[-1].x_next


@pytest.mark.parametrize(
    ("path", "solver"), [(FLOW, Euler(straight=True)), (LEVELS, Euler()), (edm_levels(20), Euler())]
)
def test_euler_is_ddim(path, solver):
    """x + (sigma' - sigma)(eps - x0) = alpha' x0 + sigma' eps where x = alpha x0 + sigma eps, in every frame's form.

    Float64; x / alpha of the cosine schedule starts at 2e4 times x: 2e4 * 2e-16 * 20 steps.
    """
    for euler, ddim in zip(run(solver, path, START, bounded), run(DDIM(), path, START, bounded), strict=True):
        assert euler.x_next.dtype == torch.float64
        torch.testing.assert_close(euler.x_next, ddim.x_next, rtol=0, atol=1e-9)


def test_heun_on_a_straight_path_is_the_rule_of_the_velocity():
    """dx / dsigma = v from sigma 1, without a division by its alpha of 0; the last step is Euler's."""
    x = START
    for level, after in pairwise(FLOW):
        v = (lambda pred: pred.eps - pred.x0)(bounded(x, level))
        step = after.sigma - level.sigma
        reached = x + step * v
        if not after.is_clean:
            then = bounded(reached, after)
            reached = x + step * (v + then.eps - then.x0) / 2
        x = reached
    torch.testing.assert_close(last(Heun(straight=True), FLOW), x, rtol=0, atol=1e-12)


class Standard:
    """The exact denoiser of N(0, v), and its flow's solution: x / sqrt(alpha^2 v + sigma^2) does not change."""

    def __init__(self, v=0.25):
        self.v = v

    def size(self, level):
        return math.sqrt(level.alpha**2 * self.v + level.sigma**2)

    def __call__(self, x, level, cond=None):
        x0 = level.alpha * self.v / self.size(level) ** 2 * x
        return Prediction((x - level.alpha * x0) / level.sigma, x0)


def between(frame, steps):
    """Levels of a frame from log-SNR -2 to 2, even in it, so that no step reaches the data."""

    def level(snr):
        ratio = math.exp(-snr)  # sigma / alpha
        alpha = {"vp": 1 / math.hypot(1, ratio), "edm": 1.0, "flow": 1 / (1 + ratio)}[frame]
        return Level(-snr, alpha, ratio * alpha)

    return [level(-2 + 4 * i / steps) for i in range(steps + 1)]


@pytest.mark.parametrize("frame", ["vp", "edm", "flow"])
@pytest.mark.parametrize(("solver", "order"), [(DPMSolverPP2M(), 2), (UniPC(), 3), (Heun(), 2), (Euler(), 1)])
def test_orders_between_two_noisy_levels(frame, solver, order):
    """Twice the steps, 2^order less error, up to the next order: within a fifth at 40 steps and more.

    UniPC's corrector raises the order of its predictor, 2, by one (Zhao et al. 2023, corollary 3.2).
    """
    if isinstance(solver, Euler):
        solver = replace(solver, straight=frame == "flow")
    oracle, errors = Standard(), []
    for steps in (40, 80, 160):
        path = between(frame, steps)
        exact = START * oracle.size(path[-1]) / oracle.size(path[0])
        errors.append((last(solver, path, oracle) - exact).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.2)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("solver", [DPMSolverPP2M(), UniPC()], ids=lambda solver: type(solver).__name__)
def test_multistep_walks_equal_those_of_diffusers(solver, flow):
    """All states to 1e-6 of their size 1, since diffusers rounds them to float32.

    Its bh1 ends in NaN (infinity times 0, at a sigma of 0), where UniPC's last step, of first order, is x0_hat.
    """
    names = {"num_train_timesteps": 1000, "final_sigmas_type": "zero", "use_flow_sigmas": flow, "solver_order": 2}
    names |= {"prediction_type": "flow_prediction" if flow else "epsilon", "lower_order_final": True}
    names |= {"solver_type": "bh1"} if isinstance(solver, UniPC) else {"algorithm_type": "dpmsolver++"}
    kind = diffusers.UniPCMultistepScheduler if isinstance(solver, UniPC) else diffusers.DPMSolverMultistepScheduler
    scheduler = kind(**names)
    scheduler.set_timesteps(20)
    scheduler.sigmas = scheduler.sigmas.double()
    sigmas = scheduler.sigmas[:-1].tolist()
    alphas = [1 - sigma if flow else 1 / math.hypot(1, sigma) for sigma in sigmas]
    path = [
        Level(t, alpha, sigma if flow else alpha * sigma)
        for t, alpha, sigma in zip(scheduler.timesteps.tolist(), alphas, sigmas, strict=True)
    ]
    ours, x = run(solver, [*path, CLEAN], START, bounded), START
    for step, t, level in zip(ours, scheduler.timesteps, path, strict=True):
        torch.testing.assert_close(step.x, x, rtol=0, atol=1e-6)
        pred = bounded(x, level)
        x = scheduler.step(pred.eps - pred.x0 if flow else pred.eps, t, x).prev_sample
    assert torch.equal(ours[-1].x_next, ours[-1].x0_used)
    assert isinstance(solver, UniPC) or (x - ours[-1].x_next).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("solver", "kind"),
    [(Euler(), diffusers.EDMEulerScheduler), (DPMSolverPP2M(), diffusers.EDMDPMSolverMultistepScheduler)],
)
def test_walks_on_edm_levels_equal_those_of_diffusers(solver, kind):
    """The scheduler makes D = c_skip x + c_out F of a network's F; its sigmas are float32, off by 4e-6 at 80."""
    scheduler, path, x = kind(), edm_levels(12), 80 * START
    scheduler.set_timesteps(12)
    for step, t in zip(run(solver, path, x, bounded), scheduler.timesteps, strict=True):
        torch.testing.assert_close(step.x, x, rtol=0, atol=1e-4)
        sigma, x0 = step.level.sigma, step.x0_used
        output = (x0 - 0.25 / (sigma**2 + 0.25) * x) * math.sqrt(sigma**2 + 0.25) / (sigma * 0.5)
        scheduler.scale_model_input(x, t)
        x = scheduler.step(output, t, x).prev_sample
    torch.testing.assert_close(step.x_next, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("spacing", "clip"), [("leading", True), ("trailing", False)])
def test_ddim_walks_equal_those_of_diffusers(spacing, clip):
    """With use_clipped_model_output, as guided-diffusion does, and alpha_bar in float64, where it has float32."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, clip_sample=clip)
    scheduler.set_timesteps(20)
    scheduler.alphas_cumprod = torch.from_numpy(alpha_bars("linear", 1000))
    path, x = levels("linear", 1000, f"{spacing}20"), START
    for step, t in zip(walk(bounded, path, START, DDIM(), DRAWS, clip=clip), scheduler.timesteps, strict=True):
        torch.testing.assert_close(step.x, x, rtol=0, atol=1e-10)
        x = scheduler.step(bounded(x, step.level).eps, t, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(step.x_next, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", [DPMSolverPP2M(), UniPC()], ids=lambda solver: type(solver).__name__)
def test_multistep_walks_start_without_signal_and_without_memory(solver):
    """From alpha = 0 the first step is DDIM's, and so is every teacher-forced one; an object serves walks in turn."""
    apart = [run(solver, FLOW, x, bounded) for x in (START, -START)]
    together = zip(*(walk(bounded, FLOW, x, solver, DRAWS, clip=False) for x in (START, -START)), strict=True)
    for (one, other), first, second in zip(together, *apart, strict=True):
        assert torch.equal(one.x_next, first.x_next)
        assert torch.equal(other.x_next, second.x_next)
    torch.testing.assert_close(apart[0][0].x_next, run(DDIM(), FLOW, START, bounded)[0].x_next, rtol=0, atol=1e-12)
    x0 = torch.zeros(2, 1, 4, 4)
    forced = (list(teacher_forced(bounded, FLOW, x0, made, DRAWS, clip=False)) for made in (solver, DDIM()))
    for one, other in zip(*forced, strict=True):
        torch.testing.assert_close(one.x_next, other.x_next.double(), rtol=0, atol=1e-6)  # DDIM's states are float32


@pytest.mark.parametrize("solver", [DPMSolverPP2M(), UniPC(), FlowSDE()], ids=lambda solver: type(solver).__name__)
def test_solvers_without_guidance_refuse_it(solver):
    with pytest.raises(ValueError, match="no classifier guidance"):
        run(solver, FLOW, START, lambda x, level, cond=None: Prediction(x, x, guidance=x))


def test_the_sde_of_a_flow_by_hand():
    """One step of Euler-Maruyama from sigma .8 to .5: x - .3 (v - w s / 2) + sqrt(.3 w) z, w = .8, s = -eps / .8."""
    x, z = torch.tensor([1.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    pred = Prediction(0 * x + 1.1, (x - 0.8 * 1.1) / 0.2)
    v, w, score = pred.eps - pred.x0, 0.8, -pred.eps / 0.8
    moved = FlowSDE().update(x, pred, Level(800, 0.2, 0.8), Level(500, 0.5, 0.5), z)
    torch.testing.assert_close(moved, x - 0.3 * (v - w * score / 2) + math.sqrt(0.3 * w) * z)


@pytest.mark.parametrize("v", [0.1, 2.0])
def test_the_sde_of_a_flow_keeps_the_variance_of_gaussian_data(v):
    """Every step is linear in x: the recursion of the variance, whose error is of first order, halves with the step."""
    oracle, gaps = Standard(v), []
    for steps in (200, 400):
        variance = 1.0
        for level, after in pairwise(flow_levels("flow", steps)):
            one = torch.ones(1, dtype=torch.float64)
            gain = FlowSDE().update(one, oracle(one, level), level, after, 0 * one).item()
            noise = 0.0 if after.is_clean else level.sigma * (level.sigma - after.sigma)
            variance = gain**2 * variance + noise
        gaps.append(abs(variance - v))
    assert gaps[1] < 0.02 * v
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.2)
