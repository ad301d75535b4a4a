import math
import pickle

import diffusers
import numpy as np
import pytest

from bench.diffusion.schedules import (
    alpha_bars,
    betas,
    edm_levels,
    edm_position,
    flow_grid,
    flow_levels,
    levels,
    respace,
    schedule_table,
    zero_snr,
)
from bench.diffusion.types import CLEAN, Level

SPECS = [*(str(n) for n in (5, 10, 20, 50, 80, 100, 250, 300, 1000)), *(f"ddim{n}" for n in (10, 20, 25, 50, 100))]


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_betas_equal_the_published_ones_bit_for_bit(golden, name):
    assert np.array_equal(betas(name, 1000), golden("schedules")[f"betas_{name}"])


def test_every_golden_respacing_is_listed(golden):
    assert {f"timesteps_{spec}" for spec in SPECS} == {k for k in golden("schedules") if k.startswith("timesteps_")}


@pytest.mark.parametrize("spec", SPECS)
def test_respacing_equals_the_published_one(golden, spec):
    assert np.array_equal(respace(spec, 1000), golden("schedules")[f"timesteps_{spec}"])


@pytest.mark.parametrize("spec", [7, " 7 "])
def test_halves_round_to_even(spec):
    """Stride 999 / 6 = 166.5 is exact in binary; the published code calls Python's round."""
    assert respace(spec, 1000).tolist() == [0, 166, 333, 500, 666, 832, 999]


def reachable(T):
    """The lengths a whole stride can give, by trying them all."""
    return {len(range(0, T, stride)) for stride in range(1, T + 1)}


@pytest.mark.parametrize("steps", [80, 300, 101, 999])
def test_an_impossible_stride_names_the_nearest_possible(steps):
    nearest = min(reachable(1000), key=lambda n: (abs(n - steps), n))
    with pytest.raises(ValueError, match=rf"ddim{steps} with 1000 training steps; the nearest is ddim{nearest}$"):
        respace(f"ddim{steps}", 1000)


@pytest.mark.parametrize("T", [10, 100, 997])
def test_every_possible_stride_is_found(T):
    for steps in reachable(T):
        chosen = respace(f"ddim{steps}", T)
        assert len(chosen) == steps
        assert chosen[0] == 0
        assert len(set(np.diff(chosen))) <= 1  # one stride throughout


OUTSIDE = [0, 1001, "0", "1001", "ddim0", "ddim1001"]
NOT_WHOLE = ["", "twenty", "-3", -3, "1.5", "ddim", "ddim-5", "2e1", "²", "20ddim"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [*((spec, "between 1 and 1000") for spec in OUTSIDE), *((spec, "whole number or 'ddimN'") for spec in NOT_WHOLE)],
)
def test_steps_that_cannot_be_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        respace(spec, 1000)


UNKNOWN = [
    "sigmoid", "linear()", "linear(0.1)", "linear(0.1,0.2,0.3)", "linear(0.1,0.2", "cosine(0.1,0.2)", "scaled_linear",
    "linear(0.1,0.2)\n", "", "LINEAR",
]  # fmt: skip
NO_VARIANCES = ["0,0.1", "0.1,1", "-0.1,0.2", "nan,0.1", "0.1,inf", "a,0.1", "0.1,1e400"]


IMPOSSIBLE = [
    ("cosine", 0, "not 0"),
    *((name, 10, r"unknown noise schedule .* choose cosine, linear or flow") for name in UNKNOWN),
    *(
        (f"{kind}({ends})", 10, r"must be numbers above 0 and below 1$")
        for kind in ("linear", "scaled_linear")
        for ends in NO_VARIANCES
    ),
]


@pytest.mark.parametrize(("name", "T", "message"), IMPOSSIBLE)
def test_schedules_that_cannot_be_are_refused(name, T, message):
    with pytest.raises(ValueError, match=message):
        betas(name, T)


@pytest.mark.parametrize("T", [1, 2, 500, 1000])
@pytest.mark.parametrize("name", ["linear(0.0001,0.02)", "linear( 1e-4 , 2e-2 )"])
def test_ends_given_are_not_rescaled(name, T):
    assert np.array_equal(betas(name, T), np.linspace(1e-4, 0.02, T))


def test_scaled_linear_is_even_in_the_square_root():
    """Rombach et al. 2022. Two roundings of a number below 1, a root and a square: 4e-16 relative to each."""
    variances = betas("scaled_linear(0.00085,0.012)", 1000)
    np.testing.assert_allclose(variances[[0, -1]], [0.00085, 0.012], rtol=1e-15)
    # Differences of neighbours are 8e-5, so a rounding of 1.4e-17 in each root is 2e-13 of them.
    np.testing.assert_allclose(np.diff(np.sqrt(variances)), (0.012**0.5 - 0.00085**0.5) / 999, rtol=1e-12)


def test_a_schedule_that_leaves_no_signal_is_refused():
    """A half a step, 200 times, is 6e-61: no float32."""
    with pytest.raises(ValueError, match="leaves no signal after 200 steps"):
        alpha_bars("linear(0.5,0.5)", 200)
    assert alpha_bars("linear(0.5,0.5)", 100)[-1] == 0.5**100


@pytest.mark.parametrize("T", [2, 10, 19, 20])
def test_a_linear_schedule_too_short_to_keep_any_signal_is_refused(T):
    """Its last beta is 20 / T, so at T of 20 and below nothing, or less, would be left; T of 1 has beta .1."""
    message = rf"the linear schedule needs T of at least 21, not {T}: its variances reach 1$"
    with pytest.raises(ValueError, match=message):
        levels("linear", T, 2)


@pytest.mark.parametrize(("name", "T"), [("linear", 1), ("linear", 21), ("cosine", 1), ("cosine", 2), ("cosine", 20)])
def test_the_shortest_schedules_keep_some_signal(name, T):
    bars = alpha_bars(name, T)
    assert np.array_equal(bars, np.cumprod(1 - betas(name, T)))
    assert np.all((bars > 0) & (bars < 1))
    assert len(levels(name, T, T)) == T + 1


def test_cosine_alpha_bar_is_the_closed_form():
    """alpha_bar_t = f((t+1)/T) / f(0) until the last beta, the only one that is capped.

    The product has up to 999 factors of three roundings each: 999 * 3 * 1.1e-16 = 3.3e-13. Near t = T the argument's
    rounding, 1.6e-16, is divided by cos > 1.5e-3 and doubled by the square: 2.1e-13. Together below 1e-12.
    """
    T = 1000

    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [f((t + 1) / T) / f(0) for t in range(T - 1)]
    np.testing.assert_allclose(alpha_bars("cosine", T)[:-1], expected, rtol=1e-12)
    assert betas("cosine", T)[-1] == 0.999


def test_linear_betas_rescale_with_the_length():
    """For a length other than 1000 the same total noise is spread: T * beta keeps its end points."""
    np.testing.assert_allclose(betas("linear", 250)[[0, -1]], [4e-4, 0.08], rtol=1e-15)
    assert np.array_equal(betas("linear(0.0001,0.02)", 1000), betas("linear", 1000))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "linear(0.001,0.01)", "scaled_linear(0.00085,0.012)"])
@pytest.mark.parametrize("spec", ["20", "ddim20", 1, 1000])
def test_levels_keep_the_training_alpha_bar(schedule, spec):
    walk = levels(schedule, 1000, spec)
    indices = respace(spec, 1000)
    bars = alpha_bars(schedule, 1000)[indices][::-1]
    assert walk[-1] == CLEAN
    assert [level.t for level in walk[:-1]] == indices[::-1].tolist()
    # One square root and one square: two roundings of 1.1e-16 each.
    np.testing.assert_allclose([level.alpha**2 for level in walk[:-1]], bars, rtol=4e-16)
    np.testing.assert_allclose([level.sigma**2 for level in walk[:-1]], 1 - bars, rtol=4e-16)


def test_edm_levels_are_the_published_formula():
    path = edm_levels(18)
    wanted = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    np.testing.assert_allclose([level.sigma for level in path[:-1]], wanted, rtol=1e-12)
    assert (path[-1], {level.alpha for level in path}) == (CLEAN, {1.0})


def test_edm_positions_are_even_and_end_at_0_and_999():
    t = [level.t for level in edm_levels(10)[:-1]]
    np.testing.assert_allclose(t, np.linspace(999, 0, 10), atol=1e-9)  # roundings of 999 in a seventh root
    assert edm_position(0.002) == pytest.approx(0, abs=1e-9)


def test_edm_levels_stay_within_what_the_network_knows():
    sigmas = [level.sigma for level in edm_levels(5, low=0.02, high=50)[:-1]]
    assert sigmas == pytest.approx(sorted(sigmas, reverse=True))
    assert (sigmas[0], sigmas[-1]) == (pytest.approx(50), pytest.approx(0.02))
    assert edm_levels(3, rounded=round)[0].sigma == 80
    assert [level.sigma for level in edm_levels(1)] == [pytest.approx(80), 0.0]


@pytest.mark.parametrize(
    ("steps", "message"), [(0, "at least one step"), (-3, "at least one step"), (200, "use fewer")]
)
def test_numbers_of_edm_steps_that_cannot_be_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        edm_levels(steps, rounded=lambda sigma: float(math.ceil(sigma)))


def test_flow_levels_by_hand():
    """alpha = 1 - sigma, sigma even from 1; a shift of 3 is 3 s / (1 + 2 s): 1, 6 / 7, 3 / 4 at 1, 2 / 3, 1 / 2."""
    path = flow_levels("flow", 4)
    assert path == (*(Level(1000 * sigma, 1 - sigma, sigma) for sigma in (1.0, 0.75, 0.5, 0.25)), CLEAN)
    shifted = [level.sigma for level in flow_levels("flow(3)", 6)]
    assert [shifted[0], shifted[2], shifted[3]] == [pytest.approx(value) for value in (1, 6 / 7, 3 / 4)]
    assert [level.t for level in flow_grid()] == pytest.approx(list(range(1000, 0, -1)))


def test_flow_levels_are_those_of_diffusers():
    """Shifted by 3; its scheduler ends the even levels at 1 / T and ours at 1 / N, so it is given ours. Float32."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - i / 10 for i in range(10)])
    path = flow_levels("flow(3)", 10)
    np.testing.assert_allclose(scheduler.sigmas, [level.sigma for level in path], rtol=0, atol=1e-6)
    np.testing.assert_allclose(scheduler.timesteps, [level.t for level in path[:-1]], rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["flow()", "flow(0)", "flow(-1)", "flow(nan)", "flow(1e9)", "flow(x)", "flows", "linear"]
)
def test_what_is_no_flow_is_refused(name):
    with pytest.raises(ValueError, match=r"is no flow|must be a number from 0\.01 to 100"):
        flow_levels(name, 4)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [2, 10, 80, 300])
def test_spacings_by_the_names_of_diffusers(spacing, steps):
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert respace(f"{spacing}{steps}", 1000)[::-1].tolist() == scheduler.timesteps.tolist()


def test_spacings_of_another_name():
    """ddim is leading where a whole stride gives exactly N, and plain is linspace but for how halves are rounded."""
    assert np.array_equal(respace("leading50", 1000), respace("ddim50", 1000))
    assert np.array_equal(respace("linspace20", 1000), respace("20", 1000))
    assert [respace(f"{name}1", 1000).tolist() for name in ("", "leading", "linspace", "trailing")] == [[999]] * 4
    assert respace("ddim1", 1000).tolist() == [0]


def test_schedules_of_diffusers_beside_its_tables():
    """Its alphas_cumprod is float32: a thousand products of it are off by 1e-6 at most."""
    schedulers = {
        "sigmoid(0.0001,0.02)": {"beta_schedule": "sigmoid"},
        "zero_snr(linear)": {"rescale_betas_zero_snr": True},
        "zero_snr(cosine)": {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True},
    }
    for name, settings in schedulers.items():
        theirs = diffusers.DDPMScheduler(**settings).alphas_cumprod.numpy()
        np.testing.assert_allclose(alpha_bars(name, 1000), theirs, atol=2e-6)
    assert alpha_bars("zero_snr(linear)", 1000)[-1] == 0


def test_a_table_has_the_name_of_its_numbers():
    bars = alpha_bars("linear", 50)
    name = schedule_table(bars)
    assert (schedule_table(bars.copy()), alpha_bars(name, 50).tolist()) == (name, bars.tolist())
    assert alpha_bars(pickle.loads(pickle.dumps(str(name))), 50).tolist() == bars.tolist()
    np.testing.assert_array_equal(alpha_bars(zero_snr(name), 50), alpha_bars("zero_snr(linear)", 50))
    with pytest.raises(ValueError, match="50 entries, and T is 49"):
        alpha_bars(name, 49)


@pytest.mark.parametrize(
    "bars", [[0.5, 0.6], [1.0, 0.5], [0.5, -0.1], [0.5, float("nan")], [], [[0.5, 0.4]], [0.5, 0.5]]
)
def test_numbers_that_are_no_schedule_are_refused(bars):
    with pytest.raises(ValueError, match="alpha_bar must"):
        schedule_table(np.array(bars))
