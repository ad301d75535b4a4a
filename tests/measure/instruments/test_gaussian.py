"""The exact recursion against plain matrices, hand-written scalars, and closed forms of exact samplers."""

import math

import numpy as np
import pytest
import torch

from bench.diffusion.noise import Noise
from bench.diffusion.posterior import Posterior
from bench.diffusion.samplers import Draws, walk
from bench.diffusion.schedules import alpha_bars, edm_levels, flow_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, Churn, DPMSolverPP2M, Euler, FlowSDE, Heun, UniPC
from bench.diffusion.types import CLEAN, Level
from bench.measure.instruments.gaussian import LinearGaussian, learned_fraction

STEPS = 6
MODES = ["fixed-small", "fixed-large", "learned", "exact", "ddim", "ddim-eta", "euler", "heun", "churned"]


def solver_of(mode):
    solvers = {"ddim": DDIM(), "ddim-eta": DDIM(1.0), "euler": Euler(), "heun": Heun()}
    solvers["churned"] = Heun(Churn(4.0, STEPS))
    return solvers.get(mode) or Ancestral(mode)


class Plain:
    """The recursion with D x D matrices in the basis of the pixels."""

    def __init__(self, gaussian, bars):
        self.mean, self.cov, self.bars, self.eye = gaussian.mean, gaussian.cov, bars, np.eye(len(gaussian.mean))

    def denoiser(self, level):
        total = level.alpha**2 * self.cov + level.sigma**2 * self.eye
        gain = level.alpha * self.cov @ np.linalg.inv(total)
        return gain, self.mean - level.alpha * gain @ self.mean, self.cov - level.alpha * gain @ self.cov

    def eps(self, level):
        gain, offset, _ = self.denoiser(level)
        return (self.eye - level.alpha * gain) / level.sigma, -level.alpha * offset / level.sigma

    def step(self, mean, cov, cross, level, level_next, mode):
        """Return mean, cov and Cov(x, x0) one step on."""
        solver, noise = solver_of(mode), 0 * self.eye
        if mode == "churned":
            level, added = solver.churned(level)
            cov = cov + added * self.eye
        gain, offset, post = self.denoiser(level)
        if mode in ("euler", "heun", "churned"):  # Karras et al. 2022, algorithm 1, in x / alpha
            a, b = self.eps(level)
            distance = level_next.sigma / level_next.alpha - level.sigma / level.alpha
            linear, shift = self.eye / level.alpha + distance * a, distance * b
            if mode != "euler" and level_next.sigma > 0:
                a2, b2 = self.eps(level_next)
                second = level_next.alpha * a2 @ linear, level_next.alpha * a2 @ shift + b2
                linear = self.eye / level.alpha + distance * (a + second[0]) / 2
                shift = distance * (b + second[1]) / 2
            linear, shift = level_next.alpha * linear, level_next.alpha * shift
        elif mode.startswith("ddim"):  # Song et al. 2021, eq. 12
            q = Posterior.between(level, level_next)
            variance = solver.eta**2 * q.small
            a, b = self.eps(level)
            direction = math.sqrt(level_next.sigma**2 - variance)
            linear, shift = level_next.alpha * gain + direction * a, level_next.alpha * offset + direction * b
            noise = variance * self.eye
        else:  # Ho et al. 2020, eq. 7
            q = Posterior.between(level, level_next)
            linear, shift = q.c1 * gain + q.c2 * self.eye, q.c1 * offset
            if mode == "exact":
                noise = q.small * self.eye + q.c1**2 * post
            elif level_next.sigma > 0:
                v = learned_fraction(self.bars, int(level.t), np.diag(post)) if mode == "learned" else None
                v = {"fixed-small": 0 * self.mean, "fixed-large": 0 * self.mean + 1}.get(mode, v)
                noise = np.diag(q.large**v * q.small ** (1 - v))
        return linear @ mean + shift, linear @ cov @ linear.T + noise, linear @ cross


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", ["prior", "forward"])
def test_equals_plain_matrices(gaussian, mode, start):
    """Every state, its pixels, energies and errors, at 1e-9: a few products of 16 x 16 matrices a step in float64."""
    law, plain = gaussian.linear(), Plain(gaussian, alpha_bars("cosine", 1000))
    path = edm_levels(STEPS) if mode in ("euler", "heun", "churned") else levels("cosine", 1000, "ddim5")
    state = getattr(law, start)(path[0])
    law_now = gaussian.in_pixels(state)
    mean, cov, cross = law_now.mean, law_now.cov, law_now.cross
    for level, level_next, reached in zip(path, path[1:], law.walk(state, path, solver_of(mode)), strict=False):
        scale = max(1.0, level.sigma**2)
        level = solver_of(mode).churned(level)[0]
        before = law.churned(state, solver_of(mode))
        a, b = plain.eps(level)
        stirred = cov + (gaussian.in_pixels(before).cov - gaussian.in_pixels(state).cov)
        energy = np.trace(a @ stirred @ a.T) + np.square(a @ mean + b).sum()
        assert law.eps_energy(before) == pytest.approx(energy, rel=1e-9)
        gain, offset, _ = plain.denoiser(level)
        error = gain @ stirred @ gain.T - gain @ cross - (gain @ cross).T + plain.cov
        shift = gain @ mean + offset - plain.mean
        assert law.error_energy(before) == pytest.approx(np.trace(error) + shift @ shift, rel=1e-8, abs=1e-9)
        mean, cov, cross = plain.step(mean, cov, cross, path[path.index(state.level)], level_next, mode)
        found = gaussian.in_pixels(reached)
        for one, other in ((found.mean, mean), (found.cov, cov), (found.cross, cross)):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * scale)
        np.testing.assert_allclose(law.pixel_variance(reached), np.diag(cov), atol=1e-9 * scale)
        np.testing.assert_allclose(reached.variance.sum(), np.trace(cov), rtol=1e-9)
        alpha = level_next.alpha
        residual = np.diag(cov - alpha * (cross + cross.T) + alpha**2 * plain.cov)
        np.testing.assert_allclose(law.residual_variance(reached), residual, atol=1e-9 * scale)
        state = reached


PATHS = {"vp": levels("cosine", 1000, "ddim5"), "edm": edm_levels(STEPS), "flow": flow_levels("flow(2)", STEPS)}
ON_PATHS = [(solver, frame) for solver in (DPMSolverPP2M(), UniPC()) for frame in PATHS]
ON_PATHS += [(solver(straight=True), "flow") for solver in (Euler, Heun)] + [(FlowSDE(), "flow")]


class Silence(Draws):
    def normal(self, purpose, step, shape):
        return torch.zeros(len(self.samples), *shape)


@pytest.mark.parametrize(("solver", "frame"), ON_PATHS, ids=lambda value: str(getattr(value, "stages", value)))
def test_equals_walks_of_the_oracle(gaussian, solver, frame):
    """Without its noise a walk is affine: that of 0 and of the unit vectors shows its matrix A and its offset."""
    law, path, size = gaussian.linear(), PATHS[frame], len(gaussian.mean)
    start = torch.cat([torch.zeros(1, size), torch.eye(size)]).double().reshape(-1, 1, 4, 4)
    walked = walk(gaussian.oracle(), path, start, solver, Silence(Noise(0), torch.arange(size + 1)), clip=False)
    states = [step.x_next.flatten(1).numpy() for step in walked if step.completes]
    noise, before = np.zeros((size, size)), np.eye(size)  # of the SDE
    for state, rows, level, after in zip(
        law.walk(law.forward(path[0]), path, solver), states, path, path[1:], strict=False
    ):
        offset, matrix = rows[0], (rows[1:] - rows[0]).T
        if isinstance(solver, FlowSDE):
            step = matrix @ np.linalg.pinv(before)
            added = 0.0 if after.is_clean else level.sigma * (level.sigma - after.sigma)
            noise, before = step @ noise @ step.T + added * np.eye(size), matrix
        first = gaussian.in_pixels(law.forward(path[0]))
        here = gaussian.in_pixels(state)
        np.testing.assert_allclose(here.mean, matrix @ first.mean + offset, atol=1e-7)
        np.testing.assert_allclose(here.cov, matrix @ first.cov @ matrix.T + noise, atol=1e-7)
        np.testing.assert_allclose(here.cross, matrix @ first.cross, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_sums_over_pixels_need_the_diagonal_alone(gaussian, mode):
    """Without full matrices norms and mean variances are the same numbers, and single pixels are not told."""
    law = gaussian.linear()
    path = edm_levels(STEPS) if mode in ("euler", "heun", "churned") else levels("cosine", 1000, STEPS)
    walks = [law.walk(law.prior(path[0]), path, solver_of(mode), follow) for follow in (True, False)]
    for number, (full, diagonal) in enumerate(zip(*walks, strict=True)):
        np.testing.assert_allclose(diagonal.variance, full.variance, rtol=1e-9, atol=1e-15)
        unknown = mode == "learned" and number > 0  # the noise of one step alone is known for every pixel
        assert (law.pixel_variance(diagonal) is None) == unknown


def test_eigenvalues_alone_give_sums_over_pixels(gaussian):
    law, path = gaussian.linear(), levels("cosine", 1000, STEPS)
    bare = LinearGaussian.of_eigenvalues(law.values, law.mean)
    for whole, part in zip(*(one.walk(one.prior(path[0]), path, DDIM()) for one in (law, bare)), strict=True):
        assert bare.eps_energy(part) == law.eps_energy(whole)
        np.testing.assert_array_equal(part.variance, whole.variance)
        assert bare.residual_variance(part) is None
    with pytest.raises(ValueError, match="alpha_bar"):
        list(bare.walk(bare.prior(path[0]), path, Ancestral("learned")))


@pytest.mark.parametrize("single", [False, True])
def test_energies_of_bands_are_those_of_the_covariance(gaussian, single, monkeypatch):
    """A quadratic form ||B x||^2 has the expectation tr(B Cov B') + ||B mean||^2; single precision errs by 1e-6."""
    if single:
        monkeypatch.setattr("bench.measure.instruments.gaussian._ALWAYS", 8)
    bands = np.random.default_rng(0).normal(size=(3, 5, 16))
    law, path = gaussian.linear(), levels("cosine", 1000, STEPS)
    states = list(law.walk(law.prior(path[0]), path, Ancestral("learned")))
    for state in (*states[:3], law.folded(states[2]), law.denoised(law.folded(states[2])), law.forward(path[2])):
        found = law.band_energy(state, lambda images: np.square(np.einsum("bij,nj->nbi", bands, images)).sum(2))
        here = gaussian.in_pixels(state)
        wanted = [np.trace(b @ here.cov @ b.T) + np.square(b @ here.mean).sum() for b in bands]
        np.testing.assert_allclose(found, wanted, rtol=2e-5 if single else 1e-10)


def test_a_solver_without_a_closed_form_is_refused(gaussian):
    class Other(DDIM.__base__):
        """A solver of one call that the recursion does not know."""

    with pytest.raises(TypeError, match="Other"):
        gaussian.linear().step(gaussian.linear().prior(Level(5, 0.5, 0.5)), Level(3, 0.7, 0.3), Other())


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_exact_variance_keeps_the_marginal_at_any_step_count(gaussian, schedule, steps):
    linear, path = gaussian.linear(schedule), levels(schedule, 1000, steps)
    for state in linear.walk(linear.forward(path[0]), path, Ancestral("exact")):
        truth = linear.forward(state.level)
        np.testing.assert_allclose(state.variance, truth.variance, rtol=0, atol=1e-12)
        np.testing.assert_allclose(state.mean, truth.mean, rtol=0, atol=1e-12)
    # From noise the start lacks alpha_T^2 lam of variance, of which the clean end keeps a share (alpha_T lam / V_T)^2
    # (see floor_gap below): alpha_T^4 lam^3 = 6e-18 on the cosine schedule, below the rounding.
    *_, final = linear.walk(linear.prior(path[0]), path, Ancestral("exact"))
    assert final.variance.mean() / linear.values.mean() == pytest.approx(1, abs=1e-12 if schedule == "cosine" else 1e-8)


@pytest.mark.parametrize(("steps", "low", "high"), [(20, 0.70, 0.95), (1000, 0.99, 1.0)])
def test_few_fixed_small_steps_bias_the_variance(steps, low, high):
    # The posterior variance leaves out c1^2 Cov(x0 | x): too little at few steps, nearly nothing at many.
    linear, path = LinearGaussian(np.zeros(1), np.array([[0.25]])), levels("cosine", 1000, steps)
    *_, final = linear.walk(linear.prior(path[0]), path, Ancestral("fixed-small"))
    assert low < final.variance[0] / 0.25 < high


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


GAPS = [
    ("cosine", "20", (0, 1e-8)),  # alpha_T^2 = 2.4e-9: nothing is remembered
    ("cosine", "ddim20", (1e-4, 1e-2)),  # 6e-3: starts at t = 950
    ("cosine", "ddim5", (1e-2, 1)),  # 9e-2: starts at t = 800
    ("linear", "20", (1e-6, 1e-3)),  # 4e-5, even at t = 999
]


@pytest.mark.parametrize("start", ["paired", "prior"])
@pytest.mark.parametrize(("schedule", "spec", "largest"), GAPS)
def test_where_the_paired_residual_meets_the_floor(gaussian, schedule, spec, largest, start):
    linear, path = gaussian.linear(schedule), levels(schedule, 1000, spec)
    state = linear.forward(path[0]) if start == "paired" else linear.prior(path[0])
    gaps = []
    for reached in linear.walk(state, path, Ancestral("exact")):
        alpha, sigma = reached.level.alpha, reached.level.sigma
        floor = sigma**2 + 2 * alpha**2 * np.diag(gaussian.cov)
        gap = linear.residual_variance(reached) - floor
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
    assert learned_fraction(bars, 0, post).tolist() == [0, 0, 0]  # the last step has no noise


def test_one_decomposition_serves_every_training_process(gaussian):
    law, path = gaussian.linear(), levels("cosine", 100, 5)
    bare = law.trained_on(None)
    assert bare.vectors is law.vectors
    with pytest.raises(ValueError, match="alpha_bar"):
        list(bare.walk(bare.prior(path[0]), path, Ancestral("learned")))


@pytest.mark.parametrize(("size", "steps", "follows"), [(768, 1000, True), (3072, 100, True), (3072, 101, False)])
def test_full_matrices_are_followed_where_they_are_affordable(size, steps, follows):
    assert LinearGaussian.of_eigenvalues(np.ones(size), np.zeros(size)).follows(steps) == follows


def test_singular_covariances_stay_finite():
    linear, path = LinearGaussian(np.zeros(2), np.diag([0.0, 0.5])), levels("cosine", 1000, 4)
    *_, final = linear.walk(linear.prior(path[0]), path, Ancestral("exact"))
    assert final.level == CLEAN
    np.testing.assert_allclose(final.variance, [0.0, 0.5], atol=1e-8)
