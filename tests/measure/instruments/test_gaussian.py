"""The exact recursion against hand-written scalars, closed forms of exact samplers, and real sampling."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from bench.diffusion.noise import Noise
from bench.diffusion.posterior import Posterior
from bench.diffusion.samplers import Draws, paired, prior, teacher_forced, walk
from bench.diffusion.schedules import alpha_bars, edm_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, Churn, Euler, Heun
from bench.diffusion.types import CLEAN, Level
from bench.measure.instruments.gaussian import LinearGaussian, ddim_map, learned_fraction

N = 20_000  # images sampled
STEPS = 6
SHAPE = (1, 4, 4)
SIGMAS = 5  # standard errors allowed; about 1000 numbers are compared, each beyond with probability 6e-7
MODES = ["fixed-small", "fixed-large", "learned", "exact", "ddim", "ddim-eta", "euler", "heun"]


def solver_of(mode):
    solvers = {"ddim": DDIM(), "ddim-eta": DDIM(1.0), "euler": Euler(), "heun": Heun()}
    return solvers.get(mode) or Ancestral(mode)


class Estimates:
    """Moments of samples y [n, D] ~ N(mean, cov), and the standard errors that this law gives them."""

    def __init__(self, mean, cov, n=N):
        self.mean, self.cov, self.n = mean, cov, n

    def variance(self):
        """Mean over pixels of the sample variance: Cov(s_p^2, s_q^2) = 2 cov_pq^2 / (n - 1)."""
        error = math.sqrt(2 * np.square(self.cov).sum() / (self.n - 1)) / len(self.cov)
        return np.diag(self.cov).mean(), error

    def std(self):
        """Mean over pixels of the sample std: the delta method divides each Cov by 4 std_p std_q."""
        std = np.sqrt(np.diag(self.cov))
        error = math.sqrt((np.square(self.cov) / np.outer(std, std)).sum() / (2 * (self.n - 1))) / len(std)
        return std.mean(), error

    def energy(self):
        """E ||y||^2, whose variance over images is 2 tr(cov^2) + 4 mean' cov mean."""
        spread = 2 * np.square(self.cov).sum() + 4 * self.mean @ self.cov @ self.mean
        return np.trace(self.cov) + self.mean @ self.mean, math.sqrt(spread / self.n)

    def check(self, y):
        y = y.flatten(1).double().numpy()
        variance = y.var(0, ddof=1)
        measured = variance.mean(), np.sqrt(variance).mean(), np.square(y).sum(1).mean()
        for value, (expected, error) in zip(measured, (self.variance(), self.std(), self.energy()), strict=True):
            assert abs(value - expected) <= SIGMAS * error + 1e-6  # states are float32
        off = abs(y.mean(0) - self.mean)
        assert (off <= SIGMAS * np.sqrt(np.diag(self.cov) / self.n) + 1e-6).all()


def residual_law(state, linear):
    """Mean and covariance of x - alpha x0."""
    alpha = state.level.alpha
    cov = state.cov - alpha * (state.cross + state.cross.T) + alpha**2 * linear.cov
    return state.mean - alpha * linear.mean, cov


def eps_law(state, linear):
    """Mean and covariance of eps_hat = sigma Cov(x)^-1 (x - alpha mean)."""
    level = state.level
    back = level.sigma * np.linalg.inv(level.alpha**2 * linear.cov + level.sigma**2 * np.eye(len(linear.mean)))
    return back @ (state.mean - level.alpha * linear.mean), back @ state.cov @ back.T


def error_law(state, linear):
    """Mean and covariance of x0_hat - x0 with x0_hat = mean + G (x - alpha mean)."""
    gain, _ = linear.gain(state.level)
    mixed = gain @ state.cross
    return gain @ (
        state.mean - state.level.alpha * linear.mean
    ), gain @ state.cov @ gain.T - mixed - mixed.T + linear.cov


def check_step(step, before, reached, linear, know_x0):
    Estimates(reached.mean, reached.cov).check(step.x_next)
    Estimates(*eps_law(before, linear)).check(step.prediction.eps)
    assert linear.eps_energy(before) == pytest.approx(Estimates(*eps_law(before, linear)).energy()[0], rel=1e-9)
    if know_x0:
        Estimates(*residual_law(reached, linear)).check(step.x_next - step.level_next.alpha * step.x0)
        Estimates(*error_law(before, linear)).check(step.x0_used - step.x0)


def whole(steps):
    """Yield one step a solver step: the first call's, with the state that the last call reached."""
    first = None
    for step in steps:
        first = step if step.stage == 0 else first
        if step.completes:
            yield replace(first, x_next=step.x_next)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", ["prior", "paired"])
def test_equals_sampling_free_running(gaussian, mode, start):
    linear, path, draws = gaussian.linear(), levels("cosine", 1000, "ddim5"), Draws(Noise(0), torch.arange(N))
    x0 = gaussian.images(N).float()
    x = prior(path[0], draws, SHAPE) if start == "prior" else paired(path[0], draws, x0)
    state = linear.prior(path[0]) if start == "prior" else linear.forward(path[0])
    known = x0 if start == "paired" else None
    steps = walk(gaussian.denoiser(), path, x, solver_of(mode), draws, clip=False, x0=known)
    for step, reached in zip(whole(steps), linear.walk(state, path, solver_of(mode)), strict=True):
        check_step(step, state, reached, linear, know_x0=start == "paired")
        state = reached


@pytest.mark.parametrize("mode", MODES)
def test_equals_sampling_teacher_forced(gaussian, mode):
    linear, path, draws = gaussian.linear(), levels("cosine", 1000, STEPS), Draws(Noise(1), torch.arange(N))
    steps = teacher_forced(gaussian.denoiser(), path, gaussian.images(N).float(), solver_of(mode), draws, clip=False)
    for position, step in enumerate(whole(steps)):
        state = linear.forward(path[position])
        reached = next(linear.walk(state, path[position : position + 2], solver_of(mode)))
        check_step(step, state, reached, linear, know_x0=True)


@pytest.mark.parametrize("mode", ["euler", "heun"])
def test_equals_sampling_on_edm_levels(gaussian, mode):
    linear, path, draws = gaussian.linear(), edm_levels(STEPS), Draws(Noise(2), torch.arange(N))
    state = linear.prior(path[0])
    steps = walk(gaussian.oracle(), path, prior(path[0], draws, SHAPE), solver_of(mode), draws, clip=False)
    for step, reached in zip(whole(steps), linear.walk(state, path, solver_of(mode)), strict=True):
        check_step(step, state, reached, linear, know_x0=False)
        state = reached


@pytest.mark.parametrize("solver", [Euler(Churn(4.0, STEPS)), Heun(Churn(4.0, STEPS))])
def test_equals_sampling_with_churn(gaussian, solver):
    linear, path, draws = gaussian.linear(), edm_levels(STEPS), Draws(Noise(4), torch.arange(N))
    state = linear.prior(path[0])
    steps = walk(gaussian.oracle(), path, prior(path[0], draws, SHAPE), solver, draws, clip=False)
    for step, reached in zip(whole(steps), linear.walk(state, path, solver), strict=True):
        check_step(step, linear.stirred(state, solver), reached, linear, know_x0=False)
        state = reached


def test_euler_is_ddim(gaussian):
    linear, path = gaussian.linear(), levels("cosine", 1000, STEPS)
    euler, ddim = (linear.walk(linear.prior(path[0]), path, solver_of(mode)) for mode in ("euler", "ddim"))
    for one, other in zip(euler, ddim, strict=True):
        # x / alpha reaches 2e4, so variances of 4e8 cancel: 4e8 roundings of 2e-16 at the worst.
        np.testing.assert_allclose(one.mean, other.mean, rtol=0, atol=1e-7)
        np.testing.assert_allclose(one.cov, other.cov, rtol=0, atol=1e-7)


def test_heun_ends_near_the_data_and_nearer_with_more_steps(gaussian):
    linear, gaps = gaussian.linear(), []
    for steps in (6, 12, 24, 48):
        path = edm_levels(steps)
        *_, end = linear.walk(linear.prior(path[0]), path, Heun())
        gaps.append(abs(end.cov - linear.cov).max())
    assert gaps == sorted(gaps, reverse=True)
    # Second order: twice the steps leave about a quarter of the gap, down to what sigma_max = 80 leaves out,
    # (.6 / 80^2 = 1e-4 of a variance) and the last Euler step from .002 to 0.
    assert gaps[2] < gaps[1] / 3


def test_a_solver_without_a_closed_form_is_refused(gaussian):
    class Other(DDIM.__base__):
        """A solver of one call that the recursion does not know."""

    with pytest.raises(TypeError, match="Other"):
        gaussian.linear().step(gaussian.linear().prior(Level(5, 0.5, 0.5)), Level(3, 0.7, 0.3), Other())


def test_the_comparison_can_tell_the_modes_apart(gaussian):
    # Half-way the marginal variances of the modes differ by more than the errors allowed above, so that a mode
    # mistaken for another would be found out. (Unclipped, DDIM with eta = 1 is fixed-small, and Euler is DDIM.)
    linear, path = gaussian.linear(), levels("cosine", 1000, STEPS)
    modes = [mode for mode in MODES if mode not in ("ddim-eta", "euler")]
    middle = [list(linear.walk(linear.prior(path[0]), path, solver_of(mode)))[3] for mode in modes]
    values = sorted(Estimates(state.mean, state.cov).variance() for state in middle)
    for (low, low_error), (high, high_error) in pairwise(values):
        assert high - low > 2 * SIGMAS * (low_error + high_error)


def test_ddim_with_eta_one_is_fixed_small(gaussian):
    linear, path = gaussian.linear(), levels("cosine", 1000, STEPS)
    small, eta = (linear.walk(linear.prior(path[0]), path, solver_of(mode)) for mode in ("fixed-small", "ddim-eta"))
    for one, other in zip(small, eta, strict=True):
        np.testing.assert_allclose(one.cov, other.cov, rtol=0, atol=1e-12)


def hand_ancestral(level, following, variance, mean, m, s2, lam):
    """One DDPM step of a scalar Gaussian state N(m, s2), written out in alpha_bar."""
    bar, bar_next = level.alpha**2, following.alpha**2
    beta = 1 - bar / bar_next
    c1, c2 = math.sqrt(bar_next) * beta / (1 - bar), math.sqrt(1 - beta) * (1 - bar_next) / (1 - bar)
    small = beta * (1 - bar_next) / (1 - bar)
    total = bar * lam + 1 - bar
    gain, post = level.alpha * lam / total, lam * (1 - bar) / total
    noise = {"fixed-small": small, "fixed-large": beta if bar_next < 1 else 0, "exact": small + c1**2 * post}[variance]
    slope = c1 * gain + c2
    return slope * m + c1 * (mean - gain * level.alpha * mean), slope**2 * s2 + noise


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large", "exact"])
def test_equals_a_scalar_hand_recursion(variance):
    mean, lam, path = 0.3, 0.25, levels("linear", 1000, 7)
    linear = LinearGaussian(np.array([mean]), np.array([[lam]]))
    m, s2 = 0.0, path[0].sigma ** 2
    states = linear.walk(linear.prior(path[0]), path, Ancestral(variance))
    for state, level, following in zip(states, path, path[1:], strict=False):
        m, s2 = hand_ancestral(level, following, variance, mean, m, s2, lam)
        assert state.mean[0] == pytest.approx(m, rel=1e-9)  # 1 - bar cancels near the clean end: 1e-16 / 1e-4
        assert state.cov[0, 0] == pytest.approx(s2, rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_equals_a_scalar_hand_recursion(eta):
    lam, path = 0.4, levels("cosine", 1000, 5)
    linear = LinearGaussian(np.zeros(1), np.array([[lam]]))
    s2 = path[0].sigma ** 2
    states = linear.walk(linear.prior(path[0]), path, DDIM(eta))
    for state, level, following in zip(states, path, path[1:], strict=False):
        bar, bar_next = level.alpha**2, following.alpha**2
        # Song et al. 2021, eq. 16 and 12, with eps = sigma x / total and x0_hat = alpha lam x / total.
        noise = eta**2 * (1 - bar_next) / (1 - bar) * (1 - bar / bar_next)
        total = bar * lam + 1 - bar
        slope = following.alpha * level.alpha * lam / total
        slope += math.sqrt(max(1 - bar_next - noise, 0)) * level.sigma / total
        s2 = slope**2 * s2 + noise
        assert state.cov[0, 0] == pytest.approx(s2, rel=1e-9)


def test_ddim_map_reproduces_the_update():
    level, following, noise = Level(5, 0.6, 0.8), Level(2, 0.8, 0.6), 0.1
    x0_weight, x_weight = ddim_map(level, following, noise)
    x0, eps = 0.7, -1.3
    x = level.alpha * x0 + level.sigma * eps
    direct = following.alpha * x0 + math.sqrt(following.sigma**2 - noise) * eps
    assert x0_weight * x0 + x_weight * x == pytest.approx(direct, rel=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_exact_variance_keeps_the_marginal_at_any_step_count(gaussian, schedule, steps):
    linear, path = gaussian.linear(schedule), levels(schedule, 1000, steps)
    for state in linear.walk(linear.forward(path[0]), path, Ancestral("exact")):
        truth = linear.forward(state.level)
        np.testing.assert_allclose(state.cov, truth.cov, rtol=0, atol=1e-12)
        np.testing.assert_allclose(state.mean, truth.mean, rtol=0, atol=1e-12)
        np.testing.assert_allclose(np.diag(state.cov).mean() / np.diag(truth.cov).mean(), 1, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_from_noise_the_exact_marginal_is_off_by_the_start_alone(gaussian, steps):
    # The start lacks alpha_T^2 lam of variance, of which the clean end keeps a share (alpha_T lam / V_T)^2 (see
    # floor_gap below): alpha_T^4 lam^3 = 6e-18 on the cosine schedule, below the rounding.
    linear, path = gaussian.linear(), levels("cosine", 1000, steps)
    final = list(linear.walk(linear.prior(path[0]), path, Ancestral("exact")))[-1]
    ratio = np.diag(final.cov).mean() / np.diag(linear.cov).mean()
    assert ratio == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("steps", "low", "high"), [(20, 0.70, 0.95), (1000, 0.99, 1.0)])
def test_few_fixed_small_steps_bias_the_variance(steps, low, high):
    # The posterior variance leaves out c1^2 Cov(x0 | x): too little at few steps, nearly nothing at many.
    linear, path = LinearGaussian(np.zeros(1), np.array([[0.25]])), levels("cosine", 1000, steps)
    final = list(linear.walk(linear.prior(path[0]), path, Ancestral("fixed-small")))[-1]
    assert low < final.cov[0, 0] / 0.25 < high


def floor_gap(linear, top, level, start):
    """Closed form of (residual variance - its floor) per pixel for an exact sampler.

    Per eigenvalue lam, with V = alpha^2 lam + sigma^2: the exact reverse chain keeps Cov(x_t, x_T) =
    (alpha_T / alpha_t) V_t. A paired x_T has Cov(x_T, x0) = alpha_T lam and leaves Cov(x_t, x0) =
    alpha_T^2 lam V_t / (alpha_t V_T), which enters -2 alpha_t-fold. A start from noise has no covariance with x0
    but lacks alpha_T^2 lam of the variance, carried along by the squared regression of x_t on x_T.
    """
    lam = linear.values
    v_t, v_top = (spot.alpha**2 * lam + spot.sigma**2 for spot in (level, top))
    slope = top.alpha * v_t / (level.alpha * v_top)
    gap = -2 * level.alpha * slope * top.alpha * lam if start == "paired" else -(slope**2) * top.alpha**2 * lam
    return np.square(linear.vectors) @ gap


@pytest.mark.parametrize("start", ["paired", "prior"])
@pytest.mark.parametrize(
    ("schedule", "spec", "largest"),
    [
        ("cosine", "20", (0, 1e-8)),  # alpha_T^2 = 2.4e-9: nothing is remembered
        ("cosine", "ddim20", (1e-4, 1e-2)),  # 6e-3: starts at t = 950
        ("cosine", "ddim5", (1e-2, 1)),  # 9e-2: starts at t = 800
        ("linear", "20", (1e-6, 1e-3)),  # 4e-5, even at t = 999
    ],
)
def test_where_the_paired_residual_meets_the_floor(gaussian, schedule, spec, largest, start):
    linear, path = gaussian.linear(schedule), levels(schedule, 1000, spec)
    state = linear.forward(path[0]) if start == "paired" else linear.prior(path[0])
    gaps = []
    for reached in linear.walk(state, path, Ancestral("exact")):
        alpha, sigma = reached.level.alpha, reached.level.sigma
        floor = sigma**2 + 2 * alpha**2 * np.diag(linear.cov)
        gap = reached.residual_variance(linear.cov) - floor
        np.testing.assert_allclose(gap, floor_gap(linear, path[0], reached.level, start), rtol=0, atol=1e-12)
        gaps.append(abs(np.sqrt(floor + gap).mean() - np.sqrt(floor).mean()))
    low, high = largest
    if start == "paired":
        assert low <= max(gaps) < high
    else:  # a start from noise errs by alpha_T^4 only
        assert max(gaps) < high**2 + 1e-12


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learned_fraction_gives_the_true_step_variance(schedule):
    bars, post = alpha_bars(schedule, 1000), np.array([1e-4, 0.01, 0.2])
    for t in (1, 10, 500, 998):
        now, before = (Level(s, bars[s] ** 0.5, (1 - bars[s]) ** 0.5) for s in (t, t - 1))
        q = Posterior.between(now, before)
        v = learned_fraction(bars, t, post)
        mixed = np.exp(v * math.log(q.large) + (1 - v) * math.log(q.small))
        np.testing.assert_allclose(mixed, q.small + q.c1**2 * post, rtol=1e-10)


def test_learned_fraction_of_the_last_step_is_zero():
    assert learned_fraction(alpha_bars("cosine", 10), 0, np.ones(3)).tolist() == [0, 0, 0]


def test_learned_variance_equals_the_exact_diagonal_over_the_full_length():
    # At T steps the learned variance is the exact one of each pixel; one-dimensional data have no other entries.
    linear = LinearGaussian(np.array([0.1]), np.array([[0.3]]), alpha_bars("cosine", 50))
    path = levels("cosine", 50, 50)
    learned = list(linear.walk(linear.prior(path[0]), path[:-1], Ancestral("learned")))
    exact = list(linear.walk(linear.prior(path[0]), path[:-1], Ancestral("exact")))
    for one, other in zip(learned, exact, strict=True):
        assert one.cov[0, 0] == pytest.approx(other.cov[0, 0], rel=1e-10)


def test_learned_variance_needs_the_training_schedule():
    linear, path = LinearGaussian(np.zeros(1), np.eye(1)), levels("cosine", 100, 5)
    with pytest.raises(ValueError, match="alpha_bar"):
        list(linear.walk(linear.prior(path[0]), path, Ancestral("learned")))


def test_gain_and_posterior_covariance(gaussian):
    # Against the plain matrix formulas of Gaussian conditioning.
    linear, level = gaussian.linear(), Level(400, 0.7, math.sqrt(1 - 0.49))
    gain, post = linear.gain(level)
    total = level.alpha**2 * linear.cov + level.sigma**2 * np.eye(16)
    wanted = level.alpha * linear.cov @ np.linalg.inv(total)
    np.testing.assert_allclose(gain, wanted, atol=1e-13)
    np.testing.assert_allclose(post, linear.cov - level.alpha * wanted @ linear.cov, atol=1e-13)


def test_singular_covariances_stay_finite():
    linear, path = LinearGaussian(np.zeros(2), np.diag([0.0, 0.5])), levels("cosine", 1000, 4)
    final = list(linear.walk(linear.prior(path[0]), path, Ancestral("exact")))[-1]
    assert final.level == CLEAN
    np.testing.assert_allclose(final.cov, np.diag([0.0, 0.5]), atol=1e-8)
