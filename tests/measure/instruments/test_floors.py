"""Measurements of exact denoisers equal the floors, at every step count and for every solver."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, paired, prior, teacher_forced, walk
from bench.diffusion.schedules import edm_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, Churn, Euler, Heun
from bench.measure.instruments.floors import GaussianFloors, band_energies, walk_ratios
from bench.measure.instruments.gaussian import learned_fraction
from bench.measure.instruments.probes import WalkProbe, spread_indices
from bench.measure.instruments.spectra import RadialBins, haar_energy
from bench.measure.instruments.step_table import PixelStatistics
from bench.measure.quality.embedded_statistics import unseen

SHAPE = (1, 4, 4)
MODES = ["fixed-small", "fixed-large", "learned", "exact", "ddim", "ddim-eta", "euler", "heun", "churned"]
EDM = ("euler", "heun", "churned")
COUNTS = [10, *(pytest.param(count, marks=pytest.mark.slow) for count in (20, 50, 100, 1000))]


def solver_of(mode, steps):
    solvers = {"ddim": DDIM(), "ddim-eta": DDIM(0.7), "euler": Euler(), "heun": Heun()}
    solvers["churned"] = Heun(Churn(4.0, steps))
    return solvers.get(mode) or Ancestral(mode)


class Setting:
    """A Gaussian, the levels of a mode and step count, and n walks of each arm with every instrument on."""

    def __init__(self, gaussian, mode, steps, n):
        self.gaussian, self.n, self.solver = gaussian, n, solver_of(mode, steps)
        # The half of the schedule that forgets x0 least, where the paired arm differs from the free one.
        self.path = edm_levels(steps) if mode in EDM else levels("cosine", 1000, f"ddim{steps}")
        self.indices = spread_indices(steps, 8)
        self.denoiser = gaussian.oracle() if mode in EDM else gaussian.denoiser()
        self.data = PixelStatistics(gaussian.mean.reshape(SHAPE), np.diag(gaussian.cov).reshape(SHAPE))
        self.law = gaussian.linear()
        self.floors = GaussianFloors(self.law, self.path, self.indices, self.solver, True, band_energies(SHAPE))

    def measured(self, arm):
        """Return {(i, quantity): row} and the record of n walks."""
        draws, x0 = Draws(Noise(2), torch.arange(self.n)), self.gaussian.images(self.n, seed=5).float()
        if arm == "gaussian-forced":
            steps = teacher_forced(
                self.denoiser, self.path, x0, self.solver, draws, clip=False, indices=set(self.indices)
            )
        else:
            known = x0 if arm == "gaussian-paired" else None
            start = prior(self.path[0], draws, SHAPE) if known is None else paired(self.path[0], draws, x0)
            steps = walk(self.denoiser, self.path, start, self.solver, draws, clip=False, x0=known)
        centre = torch.from_numpy(self.gaussian.mean).float().reshape(SHAPE)
        probe = WalkProbe(len(self.path) - 1, self.indices, centre, arm != "gaussian", self.solver.stages)
        for step in steps:
            probe.update(step)
        record = probe.state()
        rows = WalkProbe.result(arm, record, self.indices, self.path, self.data, self.solver)
        return {(row.i, row.quantity): row for row in rows if row.stage == 0}, record

    def states(self, arm):
        """Return {i: (state the denoiser saw, state it reached)} in the basis of the pixels."""
        pairs, state = {}, self.law.prior(self.path[0]) if arm == "gaussian" else self.law.forward(self.path[0])
        for k, level_next in enumerate(self.path[1:]):
            if arm == "gaussian-forced":
                state = self.law.forward(self.path[k])
            before = self.law.folded(state)
            state = self.law.step(before, level_next, self.solver)
            pair = (self.law.churned(before, self.solver), state)
            pairs[len(self.path) - 2 - k] = tuple(map(self.gaussian.in_pixels, pair))
        return pairs


def variance_error(cov, n):
    """Standard error of the pixel-mean sample variance: Cov(s_p^2, s_q^2) = 2 cov_pq^2 / (n - 1)."""
    return math.sqrt(2 * np.square(cov).sum() / (n - 1)) / len(cov)


def root_error(cov, roots, n):
    """Standard error of mean sqrt(s_p^2 + const), by the delta method: each Cov over 4 root_p root_q."""
    return math.sqrt((2 * np.square(cov) / (4 * np.outer(roots, roots))).sum() / (n - 1)) / len(cov)


def energy_error(mean, cov, n):
    """Standard error of the mean of ||y||^2 for y ~ N(mean, cov)."""
    return math.sqrt((2 * np.square(cov).sum() + 4 * mean @ cov @ mean) / n)


def errors(setting, arm, i, before, reached):
    """Return {(index, quantity): standard error} of what is measured at one step."""
    n, alpha, x0 = setting.n, reached.level.alpha, setting.gaussian
    truth = alpha**2 * np.diag(x0.cov).mean() + reached.level.sigma**2
    marginal = variance_error(reached.cov, n)
    found = {(i - 1, "var_marginal"): marginal, (i - 1, "variance_ratio"): marginal / truth}
    if arm == "gaussian":
        cov, roots = reached.cov, np.sqrt(np.diag(reached.cov) + alpha**2 * np.diag(x0.cov))
    else:
        cov = reached.cov - alpha * (reached.cross + reached.cross.T) + alpha**2 * x0.cov
        roots = np.sqrt(np.diag(cov).clip(min=1e-12))
        found[i - 1, "var_conditional"] = variance_error(cov, n)
    pred = root_error(cov, roots, n)
    found |= {(i - 1, "pred_std"): pred, (i - 1, "excess_std"): pred}
    # A square: where it is near 0, three errors of its root change it by 3 (2 |root| error + 3 error^2).
    found[i - 1, "delta_t"] = 2 * abs(roots.mean() - reached.level.sigma) * pred + 3 * pred**2
    level = before.level
    total = level.alpha**2 * x0.cov + level.sigma**2 * np.eye(16)
    back = level.sigma * np.linalg.inv(total)
    mean, cov = back @ (before.mean - level.alpha * x0.mean), back @ before.cov @ back.T
    size = math.sqrt(np.trace(cov) + mean @ mean)
    found[i, "eps_rms"] = energy_error(mean, cov, n) / (2 * size)
    if arm != "gaussian":
        gain = level.alpha * x0.cov @ np.linalg.inv(total)
        mean = gain @ (before.mean - level.alpha * x0.mean)
        cov = gain @ before.cov @ gain.T - gain @ before.cross - (gain @ before.cross).T + x0.cov
        size = math.sqrt((np.trace(cov) + mean @ mean) / 16)
        found[i, "x0_rmse"] = energy_error(mean, cov, n) / 16 / (2 * size)
    return found


def compare(setting, arm):
    """Return {(arm, index or band, quantity): standard errors between measurement and floor}."""
    wanted = {(row.i, row.quantity): row for row in setting.floors.rows if row.arm == arm}
    measured, record = setting.measured(arm)
    scores, states = {}, setting.states(arm)
    for i in setting.indices:
        for key, error in errors(setting, arm, i, *states[i]).items():
            found, row = measured.get(key), wanted.get(key)
            assert (found is None) == (row is None), key
            if row is not None:
                assert (found.t, found.alpha, found.sigma) == (row.t, row.alpha, row.sigma)
                scores[arm, *key] = max(abs(found.value - row.value) - 2e-6, 0) / (error + 1e-15)
    for name, table in setting.floors.spectra().items():
        if name.startswith(f"{arm}/"):
            band = name.removeprefix(f"{arm}/")
            mean = record[f"{band}/mean"]
            error = np.sqrt((record[f"{band}/second"] - mean**2).clip(min=0) / setting.n) + 2e-6 * mean
            for key, score in np.ndenumerate(abs(mean - table) / (error + 1e-12)):
                scores[arm, band, key] = score
    return scores


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("mode", MODES)
def test_measurements_of_the_exact_denoiser_are_the_floors(gaussian, mode, steps):
    """Every quantity of every arm, within three standard errors but for one number in 25, and within five for all.

    Chance alone puts .3 % beyond three errors, but numbers of one arm share their images. States are float32: 2e-6.
    """
    setting = Setting(gaussian, mode, steps, n=2000 if steps <= 100 else 1000)
    scores = {}
    for arm in ("gaussian", "gaussian-paired", "gaussian-forced"):
        scores |= compare(setting, arm)
    beyond = {key: score for key, score in scores.items() if score > 3}
    assert len(scores) > 400
    assert max(scores.values()) < 5, beyond
    assert len(beyond) <= len(scores) / 25, beyond


def test_floors_differ_by_more_than_their_errors(gaussian):
    """So that a mode that is taken for another would be noticed: end variances at 20 steps, unclipped."""

    @cache
    def end(mode):
        rows = Setting(gaussian, mode, 20, n=2).floors.rows
        return next(row.value for row in rows if (row.arm, row.i, row.quantity) == ("gaussian", -1, "variance_ratio"))

    values = sorted(end(mode) for mode in ("fixed-small", "fixed-large", "learned", "exact", "ddim"))
    assert min(np.diff(values)) > 0.005


def test_rows_of_the_asked_indices_only(gaussian):
    path = levels("cosine", 1000, 10)
    floors = GaussianFloors(gaussian.linear(), path, [0, 4], Ancestral("exact"), energy=band_energies(SHAPE))
    table = {(row.arm, row.quantity): [] for row in floors.rows}
    for row in floors.rows:
        table[row.arm, row.quantity].append(row.i)
    assert sorted(table["gaussian", "eps_rms"]) == sorted(table["gaussian-forced", "eps_rms"]) == [0, 4]
    assert sorted(table["gaussian", "variance_ratio"]) == [-1, 3]
    assert ("gaussian", "x0_rmse") not in table  # from noise there is no x0
    assert ("gaussian-forced", "floor_std") not in table  # a forced state never forgot its x0
    assert not any(arm == "gaussian-paired" for arm, _ in table)
    assert floors.spectra()["gaussian/spectrum_state"].shape == (2, RadialBins(4, 4).count)


def test_what_needs_full_matrices_is_missing_where_they_are_too_large(gaussian, monkeypatch):
    monkeypatch.setattr("bench.measure.instruments.gaussian._ALWAYS", 8)
    monkeypatch.setattr("bench.measure.instruments.gaussian._STEPS", 5)
    path = levels("cosine", 1000, 6)
    floors = GaussianFloors(gaussian.linear(), path, range(6), Ancestral("learned"), energy=band_energies(SHAPE))
    arms = {(row.arm, row.quantity) for row in floors.rows}
    assert {("gaussian", "eps_rms"), ("gaussian", "variance_ratio"), ("gaussian-forced", "delta_t")} <= arms
    last = {row.quantity for row in floors.rows if (row.arm, row.i) == ("gaussian", -1)}
    assert last == {"var_marginal", "variance_ratio"}
    # Single steps from exact states are known at any size; of the walk, the spectrum of its first call alone.
    assert np.isfinite(floors.spectra()["gaussian-forced/spectrum_state"]).all()
    walked = floors.spectra()["gaussian/spectrum_x0"]
    assert np.isfinite(walked[5]).all()
    assert np.isnan(walked[:5]).all()


def test_energies_of_bands_are_those_of_the_instruments():
    images = torch.rand(5, 2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = band_energies((2, 4, 6))(images.flatten(1).numpy())
    wanted = torch.cat([RadialBins(4, 6).density(images), haar_energy(images)], dim=1)
    np.testing.assert_array_equal(found, wanted.numpy())


@pytest.mark.parametrize(
    ("mode", "wanted"), [("fixed-small", (-0.55, -0.35, -0.18, -0.10)), ("fixed-large", (16.2, 9.8, 4.7, 2.5))]
)
def test_norms_of_cifar10_are_those_computed_elsewhere(mode, wanted):
    """The average over levels is the geometric mean, without the least noisy level, which has the clean one's step."""
    law = unseen("cifar10").embedded.gaussian
    for steps, percent in zip((10, 20, 50, 100), wanted, strict=True):
        ratios = walk_ratios(law, levels("cosine", 1000, steps), Ancestral(mode))["eps_ratio"][1:]
        assert 100 * (math.exp(np.log(ratios).mean()) - 1) == pytest.approx(percent, abs=0.05)


@pytest.mark.parametrize(("levels_recorded", "tolerance"), [(100, 1e-12), (50, 0.01)])
def test_the_variance_that_an_exact_network_would_predict_gives_the_exact_floor(gaussian, levels_recorded, tolerance):
    """Between recorded levels v is linear in t, which it nearly is."""
    law, path, solver = gaussian.linear(), levels("cosine", 1000, 100), Ancestral("learned")
    called = [path[99 - i] for i in spread_indices(100, levels_recorded)[1:]]  # at i = 0 v means nothing
    v = [learned_fraction(law.learned, level.t, law.squares @ law.posterior(level)) for level in called]
    own = law.recorded(np.array([level.t for level in called], dtype=float), np.array(v))
    found, wanted = walk_ratios(own, path, solver), walk_ratios(law, path, solver)
    for name in ("eps_ratio", "variance_ratio"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=tolerance)


def test_ratios_of_walks_are_those_of_the_floors(gaussian):
    law, path, solver = gaussian.linear(), levels("cosine", 1000, 30), Ancestral("learned")
    wanted = walk_ratios(law, path, solver)
    floors = GaussianFloors(law, path, range(30), solver)
    rows = {(row.arm, row.quantity, row.i): row.value for row in floors.rows}
    for i in range(30):
        eps = rows["gaussian", "eps_rms", i] / rows["gaussian-forced", "eps_rms", i]
        assert wanted["eps_ratio"][i] == pytest.approx(eps)
        assert wanted["variance_ratio"][i] == pytest.approx(rows["gaussian", "variance_ratio", i - 1])
