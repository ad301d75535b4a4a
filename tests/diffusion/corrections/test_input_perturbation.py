"""The emulator against the optimum of the input-perturbed loss, which is known where the data are Gaussian."""

import math

import numpy as np
import pytest
import torch
from small_walks import run

from bench.diffusion.corrections import EpsilonScaling, InOrder, InputPerturbation
from bench.diffusion.schedules import edm_levels, edm_position, flow_grid, levels
from bench.diffusion.solvers import DDIM, Euler
from bench.diffusion.types import CLEAN, Level, Prediction
from bench.models.denoisers.oracles import GaussianOracle, MixtureOracle

SHAPE = (1, 2, 3)
VP, EDM = levels("cosine", 1000, 1000)[:-1], edm_levels(1000)[:-1]
FRAMES = {"vp": VP, "edm": EDM, "flow": flow_grid()}


def covariance(seed):
    """A full covariance of variances near .25, as images in [-1, 1] have."""
    root = np.random.default_rng(seed).standard_normal((6, 6))
    return 0.04 * root @ root.T


def images(seed):
    return np.random.default_rng(seed).standard_normal((2, *SHAPE)) / 2


def torched(array):
    return torch.from_numpy(np.asarray(array))


def regression(y, level, gamma, mean, cov, scale=True):
    """E[target | y] of y = alpha x0 + sigma (eps + gamma xi), x0 ~ N(mean, cov): Cov(target, y) Var(y)^-1 (y - E y).

    The target of IP is eps, of covariance sigma I with y; that of DDPM-y is (eps + gamma xi) / sqrt(1 + gamma^2), of
    covariance sigma sqrt(1 + gamma^2) I.
    """
    s = math.sqrt(1 + gamma**2)
    variance = level.alpha**2 * cov + (level.sigma * s) ** 2 * np.eye(len(cov))
    centred = (y - level.alpha * mean).reshape(len(y), -1)
    return (level.sigma * (1 if scale else s) * np.linalg.solve(variance, centred.T).T).reshape(y.shape)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("gamma", [0.1, 0.15, 1.0])
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("t", [0, 250, 700, 946, 999])
def test_on_gaussian_data_it_is_the_optimum_of_the_perturbed_loss(frame, t, gamma, scale):
    """Both sides are float64; they invert alpha^2 cov + sigma^2 s^2, whose condition is 1e5 at most (sigma = .002
    against variances of 1), so they may differ by 1e5 * 1e-16 = 1e-11 of numbers of order 10."""
    level = FRAMES[frame][999 - t]
    gamma = gamma if level.alpha else 0.0  # a level without signal is left as it is
    mean, cov = images(1)[0], covariance(2)
    y = level.alpha * (mean + images(3)) + level.sigma * images(4)
    emulator = InputPerturbation(FRAMES[frame], gamma, scale=scale)
    pred = emulator.ask(GaussianOracle(torched(mean), torched(cov)), torched(y), level)
    wanted = regression(y, level, gamma, mean, cov, scale)
    np.testing.assert_allclose(pred.eps.numpy(), wanted, rtol=0, atol=1e-9)
    # What x0 and eps must give back is x, whatever the level; alpha x0 and x are of the order of 100 at most.
    np.testing.assert_allclose(level.alpha * pred.x0 + level.sigma * pred.eps, torched(y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("t", [300, 600])
def test_on_a_mixture_it_is_the_optimum_too(frame, t):
    """Each part's regression, weighed by how likely it is to have made y; roundings as on one Gaussian."""
    level, gamma = FRAMES[frame][999 - t], 0.5
    weights, means, covs = np.array([0.3, 0.7]), images(5), [covariance(6), covariance(7)]
    y = level.alpha * means + level.sigma * images(8)
    logs, parts = [], []
    for weight, mean, cov in zip(weights, means, covs, strict=True):
        variance = level.alpha**2 * cov + level.sigma**2 * (1 + gamma**2) * np.eye(6)
        centred = (y - level.alpha * mean).reshape(2, 6)
        squares = (centred * np.linalg.solve(variance, centred.T).T).sum(1)
        logs.append(math.log(weight) - (squares + np.linalg.slogdet(variance)[1]) / 2)
        parts.append(regression(y, level, gamma, mean, cov))
    shares = np.exp(logs - np.logaddexp(*logs))
    wanted = sum(share[:, None, None, None] * part for share, part in zip(shares, parts, strict=True))
    oracle = MixtureOracle(torched(weights), torched(means), torched(covs))
    got = InputPerturbation(FRAMES[frame], gamma).ask(oracle, torched(y), level)
    np.testing.assert_allclose(got.eps.numpy(), wanted, rtol=0, atol=1e-9)
    assert np.abs(wanted - oracle(torched(y), level).eps.numpy()).max() > 1e-3  # and not the plain denoiser


class Scripted:
    """Says eps = 1 at its first call and .5 at its second; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, x, level, cond=None):
        self.asked.append((x.item(), level))
        eps = torch.full_like(x, 1 / len(self.asked))
        return Prediction(eps, (x - level.sigma * eps) / level.alpha)


def scalars(path, grid, x, solver):
    network, start = Scripted(), torch.full((1, 1, 1, 1), x, dtype=torch.float64)
    steps = run(network, path, start, solver, InputPerturbation(grid, gamma=0.75))  # s = 1.25
    return network.asked, [step.x0_used.item() for step in steps], [step.x_next.item() for step in steps]


def test_two_steps_by_hand_in_the_frame_of_edm():
    # sigma 4 -> 2 -> 0, s = 1.25, so the network is asked at 5 and 2.5 about x itself.
    # Step 1: eps = 1 / 1.25 = .8, x0 = 10 - 4 * .8 = 6.8, x = 10 + (2 - 4) .8 = 8.4.
    # Step 2: eps = .5 / 1.25 = .4, x0 = 8.4 - 2 * .4 = 7.6, where the walk ends.
    path = (Level(2, 1.0, 4.0), Level(1, 1.0, 2.0), CLEAN)
    asked, x0, states = scalars(path, (Level(3, 1.0, 8.0), *path[:-1]), 10.0, Euler())
    assert [(x, level.alpha, level.sigma) for x, level in asked] == [(10.0, 1.0, 5.0), (pytest.approx(8.4), 1.0, 2.5)]
    # t is linear in log sigma between the grid's: log2(5 / 4) = .3219 above 2, log2(2.5 / 2) = .3219 above 1.
    assert [level.t for _, level in asked] == pytest.approx([2.321928, 1.321928], abs=1e-6)
    assert (x0, states) == (pytest.approx([6.8, 7.6]), pytest.approx([8.4, 7.6]))


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize(("quiet", "noisy"), [(0, 1), (300, 320), (998, 999)])
def test_a_shift_to_another_level_of_the_grid_is_that_level(frame, quiet, noisy):
    """s = the ratio of both noises to their signals; float64 through a root, a logarithm and back: 1e-10 of 999."""
    low, high = (FRAMES[frame][999 - t] for t in (quiet, noisy))
    if not high.alpha:  # a flow's first level is infinitely far
        low, high = FRAMES[frame][3], FRAMES[frame][1]
    s = (high.sigma / high.alpha) / (low.sigma / low.alpha)
    _, reached = InputPerturbation(FRAMES[frame], math.sqrt(s**2 - 1)).noisier(low)
    assert reached.t == pytest.approx(high.t, abs=1e-7)
    assert (reached.alpha, reached.sigma) == pytest.approx((high.alpha, high.sigma), rel=1e-10)


def test_edm_positions_between_the_grids_levels():
    """t is linear in p = sigma^(1/7); in log sigma it bends, by at most dp / (8 p) = 4.5e-4 between neighbours."""
    emulator = InputPerturbation(EDM, 0.1)
    for level in EDM[10::97]:
        _, reached = emulator.noisier(level)
        assert reached.t == pytest.approx(edm_position(math.sqrt(1.01) * level.sigma), abs=4.5e-4)


@pytest.mark.parametrize("frame", ["vp", "edm"])
def test_beyond_the_noisiest_level_the_index_stays(frame):
    noisiest = FRAMES[frame][0]
    _, reached = InputPerturbation(FRAMES[frame], 0.1).noisier(noisiest)
    assert reached.t == noisiest.t
    ratio = reached.sigma / reached.alpha
    assert ratio == pytest.approx(math.sqrt(1.01) * noisiest.sigma / noisiest.alpha)  # the state's own factors go on


@pytest.mark.parametrize("frame", FRAMES)
def test_ddpm_y_scaled_by_s_is_ip(frame):
    """The same divisions in the same order: not a rounding error."""
    path, gamma, x = FRAMES[frame], 0.2, torched(images(3))
    scaled = InOrder(
        [InputPerturbation(path, gamma, scale=False), EpsilonScaling((*path, CLEAN), math.hypot(1, gamma))]
    )
    oracle = GaussianOracle(torched(images(1)[0]), torched(covariance(2)))
    for level in path[::111]:
        both = (scaled, InputPerturbation(path, gamma))
        ours, theirs = (run(oracle, (level, CLEAN), x, DDIM(), correction)[0] for correction in both)
        assert torch.equal(ours.eps_used, theirs.eps_used)
        assert torch.equal(ours.x0_used, theirs.x0_used)


def test_two_emulators_are_one_of_their_joint_strength():
    """s multiplies: 1 + gamma^2 = (1 + .3^2) (1 + .4^2). Float64 numbers of order 10 by another order of operations."""
    joint = InputPerturbation(VP, math.sqrt(1.09 * 1.16 - 1))
    both = InOrder([InputPerturbation(VP, 0.3), InputPerturbation(VP, 0.4)])
    oracle, x = GaussianOracle(torched(images(1)[0]), torched(covariance(2))), torched(images(3))
    for level in VP[::111]:
        torch.testing.assert_close(both.ask(oracle, x, level).eps, joint.ask(oracle, x, level).eps, rtol=0, atol=1e-11)


def test_what_else_a_prediction_holds():
    level, x = VP[500], torched(images(3))
    network_said = Prediction(x, x, torch.cos(x), torch.eye(6), torch.ones_like(x))
    emulator = InputPerturbation(VP, 0.3)
    pred = emulator.ask(lambda seen, shown: network_said, x, level)
    c, _ = emulator.noisier(level)
    assert pred.variance_fraction is network_said.variance_fraction
    assert pred.x0_cov is None
    assert torch.equal(pred.guidance, c * torch.ones_like(x))  # d/dx log p(y | c x) = c log p'(c x)


@pytest.mark.parametrize(
    "grid",
    [(), (*VP, CLEAN), (*EDM, CLEAN), (Level(1, 0.4, 0.7), Level(0, 0.7, 0.2))],
    ids=["empty", "vp and clean", "edm and clean", "neither"],
)
def test_grids_of_no_known_family_are_refused(grid):
    with pytest.raises(ValueError, match="the grid must hold noisy levels"):
        InputPerturbation(grid, 0.1)
