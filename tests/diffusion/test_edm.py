"""EDM's levels, Euler and Heun against the published implementation's numbers, and against algebra."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.diffusion.corrections import EpsilonScaling
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, teacher_forced, walk
from bench.diffusion.schedules import edm_levels, edm_position, levels
from bench.diffusion.solvers import DDIM, Churn, Euler, Heun
from bench.diffusion.types import CLEAN, Level, Prediction

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "edm_epsilon_scaling.npz")
CASES = [name for name in GOLDEN.files if "_b" in name]
SOLVERS = {"heun": Heun(), "euler": Euler()}
DRAWS = Draws(Noise(0), torch.arange(2))


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


def test_levels_are_the_published_formula():
    path = edm_levels(18)
    wanted = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    np.testing.assert_allclose([level.sigma for level in path[:-1]], wanted, rtol=1e-12)
    assert path[-1] == CLEAN
    assert {level.alpha for level in path} == {1.0}


def test_positions_are_even_and_end_at_0_and_999():
    t = [level.t for level in edm_levels(10)[:-1]]
    np.testing.assert_allclose(t, np.linspace(999, 0, 10), atol=1e-9)  # roundings of 999 in a seventh root
    assert edm_position(0.002) == pytest.approx(0, abs=1e-9)


def test_levels_stay_within_what_the_network_knows():
    sigmas = [level.sigma for level in edm_levels(5, low=0.02, high=50)[:-1]]
    assert sigmas == pytest.approx(sorted(sigmas, reverse=True))
    assert (sigmas[0], sigmas[-1]) == (pytest.approx(50), pytest.approx(0.02))
    assert edm_levels(3, rounded=round)[0].sigma == 80


def test_one_step_starts_from_noise():
    assert [level.sigma for level in edm_levels(1)] == [pytest.approx(80), 0.0]


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps):
    with pytest.raises(ValueError, match="at least one step"):
        edm_levels(steps)


def test_more_steps_than_levels_are_refused():
    with pytest.raises(ValueError, match="use fewer"):
        edm_levels(200, rounded=lambda sigma: float(math.ceil(sigma)))


def test_heun_takes_two_calls_a_step_but_for_the_last():
    made = run(Heun(), edm_levels(4), 80 * torch.ones(2, 1, 4, 4, dtype=torch.float64))
    assert [(step.i, step.stage, step.completes) for step in made] == [
        (3, 0, False), (3, 1, True), (2, 0, False), (2, 1, True), (1, 0, False), (1, 1, True), (0, 0, True),
    ]  # fmt: skip
    for call, correction in ((made[0], made[1]), (made[2], made[3])):
        assert correction.level == call.level_next == correction.level_next
        assert torch.equal(correction.x, call.x_next)
    assert torch.equal(made[2].x, made[1].x_next)  # the walk goes on from the corrected state


def test_states_are_float64_whatever_the_start():
    for solver in SOLVERS.values():
        for step in run(solver, edm_levels(3), torch.ones(2, 1, 4, 4)):
            assert step.x.dtype == step.x_next.dtype == torch.float64


def test_euler_is_ddim_on_a_variance_preserving_path():
    path = levels("cosine", 1000, 20)
    x = prior(path[0], DRAWS, (1, 4, 4)).double()

    def network(x, level, cond=None):
        eps = torch.tanh(x)
        return Prediction(eps, (x - level.sigma * eps) / level.alpha)

    euler, ddim = (run(solver, path, x, network)[-1].x_next for solver in (Euler(), DDIM()))
    # x / alpha starts at 2e4 times x: the same numbers by another order of operations, 2e4 * 2e-16 * 20 steps.
    np.testing.assert_allclose(euler.numpy(), ddim.numpy(), rtol=0, atol=1e-9)


def test_heun_is_of_second_order_and_euler_of_first():
    # dx / dsigma = eps of x0 ~ N(0, 1): the exact solution is x(s) = x(S) sqrt((1 + s^2) / (1 + S^2)).
    def gaussian(x, level, cond=None):
        x0 = x / (1 + level.sigma**2)
        return Prediction((x - x0) / level.sigma, x0)

    start = torch.full((2, 1, 1, 1), 80.0, dtype=torch.float64)
    exact = 80 / math.sqrt(1 + 80**2)
    gaps = {
        name: [abs(run(solver, edm_levels(n), start, gaussian)[-1].x_next[0].item() - exact) for n in (20, 40, 80)]
        for name, solver in SOLVERS.items()
    }
    for coarse, fine in zip(gaps["euler"], gaps["euler"][1:], strict=False):
        assert coarse / fine == pytest.approx(2, rel=0.15)  # order one, with a second-order term at these counts
    for coarse, fine in zip(gaps["heun"], gaps["heun"][1:], strict=False):
        assert coarse / fine == pytest.approx(4, rel=0.3)


def test_teacher_forced_steps_are_whole_heun_steps():
    path, x0 = edm_levels(4), torch.zeros(2, 1, 4, 4)
    made = list(teacher_forced(closed_form, path, x0, Heun(), DRAWS, clip=False, indices={3, 0}))
    assert [(step.i, step.stage) for step in made] == [(3, 0), (3, 1), (0, 0)]
    again = list(walk(closed_form, path[:2] + path[1:2], made[0].x, Heun(), DRAWS, clip=False))
    assert torch.equal(made[1].x_next, again[1].x_next)


def test_churn_adds_the_noise_of_the_level_it_names():
    level = Level(5, 1.0, 2.0)
    churn = Churn(amount=3.0, steps=10)
    noisier = churn.raised(level)
    assert noisier.sigma == pytest.approx(2.6)
    assert noisier.t == edm_position(noisier.sigma)
    assert churn.added_variance(level) == pytest.approx(2.6**2 - 2**2)
    assert Churn(3.0, 10, noise=1.5).added_variance(level) == pytest.approx(1.5**2 * (2.6**2 - 2**2))
    assert Churn(3.0, 10, rounded=math.floor).raised(level).sigma == 2


def test_churn_is_at_most_a_factor_root_two_and_within_its_bounds():
    assert Churn(1e9, 10).raised(Level(5, 1.0, 2.0)).sigma == pytest.approx(2 * math.sqrt(2))
    level = Level(5, 1.0, 0.01)
    assert Churn(10, 10, least=0.05).raised(level) == level
    assert Churn(10, 10, most=0.005).added_variance(level) == 0


def churned_variance(path, gamma):
    """Variance that Heun with churn ends with on x0 ~ N(0, 1): eps = s x / (1 + s^2), so every step is linear in x."""
    variance = path[0].sigma ** 2
    for level, following in pairwise(path):
        s, t = (1 + gamma) * level.sigma, following.sigma
        variance += s**2 - level.sigma**2
        euler = 1 + (t - s) * s / (1 + s**2)
        factor = euler if t == 0 else 1 + (t - s) / 2 * (s / (1 + s**2) + t / (1 + t**2) * euler)
        variance *= factor**2
    return variance


def test_churned_walk_of_gaussian_data_has_the_variance_of_its_recursion():
    def gaussian(x, level, cond=None):
        x0 = x / (1 + level.sigma**2)
        return Prediction((x - x0) / level.sigma, x0)

    n, steps = 40_000, 40
    draws, path = Draws(Noise(3), torch.arange(n)), edm_levels(steps)
    solver = Heun(Churn(20.0, steps))
    *_, last = walk(gaussian, path, prior(path[0], draws, (1, 1, 1)), solver, draws, clip=False)
    wanted = churned_variance(path, math.sqrt(2) - 1)  # 20 / 40 is above the cap
    assert wanted > 1.05  # so much churn is not integrated away in 40 steps, and the test would see its absence
    # A variance of n draws is known to a share sqrt(2 / n) = .7 %; five of them.
    assert last.x_next.var().item() == pytest.approx(wanted, rel=5 * math.sqrt(2 / n))


def test_guidance_is_refused():
    def guided(x, level, cond=None):
        return Prediction(x, x, guidance=x)

    for solver in SOLVERS.values():
        with pytest.raises(ValueError, match="know no classifier guidance"):
            run(solver, edm_levels(2), torch.ones(2, 1, 4, 4), guided)


def test_churned_walks_take_uniform_scaling():
    path = edm_levels(6)
    x = 80 * torch.ones(2, 1, 4, 4)
    made = run(Heun(Churn(4.0, 6)), path, x, correction=EpsilonScaling(path, 1.01))
    assert torch.equal(made[0].eps_used, made[0].prediction.eps / 1.01)
    assert made[0].level.sigma > path[0].sigma
