"""Floors of loops of one's own: the update is read from the states, and the exact denoiser's walk by it is closed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cases import at_first

from analysis.records.load import load_results
from bench.diffusion.posterior import Posterior
from bench.diffusion.types import CLEAN, Level
from bench.hooks import record

COUNT, SHAPE = 512, (1, 4, 4)
PRESERVING = [Level(t, (1 - s * s) ** 0.5, s) for t, s in ((900, 0.999), (600, 0.95), (300, 0.7), (100, 0.3))]
EXPLODING = [Level(s, 1.0, s) for s in (20.0, 5.0, 1.0, 0.3)]
FLOWING = [Level(s, 1 - s, s) for s in (0.999, 0.7, 0.4, 0.1)]


def white(seed):
    """Unit noise whose mean is 0 and whose covariance is the identity, over its images."""
    z = torch.randn(COUNT, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z = z - z.mean(0)
    return (z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / COUNT)).T).float().reshape(COUNT, *SHAPE)


@pytest.fixture(scope="module")
def data():
    mixed = white(1).flatten(1) @ torch.randn(16, 16, generator=torch.Generator().manual_seed(2)) / 8
    return (mixed + torch.linspace(-0.3, 0.3, 16)).reshape(COUNT, *SHAPE)


@pytest.fixture(scope="module")
def denoise(data):
    """The exact denoiser of the Gaussian with the data's mean and covariance."""
    flat = data.flatten(1).double()
    mean, cov = flat.mean(0), torch.cov(flat.T)

    def x0_hat(x, level):
        gain = level.alpha * cov @ torch.linalg.inv(level.alpha**2 * cov + level.sigma**2 * torch.eye(16))
        return (mean + (x.flatten(1).double() - level.alpha * mean) @ gain.T).float().reshape(x.shape)

    return x0_hat


def ddim(x, x0, level, level_next, z, scale=1.0):
    """With ``scale``, the remedy that divides eps: x0_hat and eps of the update are others than the network's."""
    eps = (x - level.alpha * x0) / level.sigma / scale
    return level_next.alpha * (x - level.sigma * eps) / level.alpha + level_next.sigma * eps


def ancestral(x, x0, level, level_next, z, large=False):
    q = Posterior.between(level, level_next)
    std = 0 if level_next.is_clean else (q.large if large else q.small) ** 0.5
    return q.c1 * x0 + q.c2 * x + std * z


LOOPS = {
    "flow": (FLOWING, ddim, "DDIM", 4e-3),
    "scaled": (PRESERVING, lambda *step: ddim(*step, scale=1.05), "LinearSteps", 4e-3),
    "small": (PRESERVING, ancestral, "Ancestral", 0.08),  # a variance of 512 x 16 draws is off by 1.6 %
    "ddim": (PRESERVING, ddim, "DDIM", 4e-3),
    "euler": (EXPLODING, ddim, "DDIM", 4e-3),
    "large": (EXPLODING, lambda *step: ancestral(*step, large=True), "Ancestral", 0.08),
}


def walked(out, data, denoise, levels, update, start=1.0):
    with record(real=data, out=out, network=denoise, forced=COUNT, name="mine") as log:
        x = start * levels[0].sigma * white(0)
        for k, level in enumerate(levels):
            level_next = (*levels, CLEAN)[k + 1]
            x0 = denoise(x, level)
            x_next = update(x, x0, level, level_next, white(10 + k))
            log.step(t=level.t, alpha=level.alpha, sigma=level.sigma, x=x, prediction=x0, x_next=x_next, kind="x0")
            x = x_next
    return log


@pytest.mark.parametrize("name", at_first(LOOPS, 3))
def test_an_exact_denoiser_is_on_its_own_floor(name, tmp_path, data, denoise):
    """Of white noise a deterministic walk has the very moments of the recursion, to n / (n - 1) = .2 %."""
    levels, update, solver, tolerance = LOOPS[name]
    log = walked(tmp_path, data, denoise, levels, update)
    assert log.notes == []
    assert json.loads(next(tmp_path.glob("cells/*/metrics.json")).read_text())["cell"]["update"] == solver
    results = load_results(tmp_path)
    assert not results.problems
    table = results.steps.pivot_table(index=["quantity", "i"], columns="arm", values="value", observed=True)
    for quantity in ("variance_ratio", "eps_rms"):
        rows = table.loc[quantity]
        np.testing.assert_allclose(rows["free"], rows["gaussian"], rtol=tolerance)
        np.testing.assert_allclose(rows["forced-train"], rows["gaussian-forced"], rtol=0.08)


@pytest.mark.parametrize(
    ("update", "start", "reason"),
    [
        (lambda x, x0, level, level_next, z: ddim(x, x0 + 0.1 * z, level, level_next, z), 1, "neither DDIM's, Euler's"),
        (lambda x, x0, level, level_next, z: ddim(x, x0, level, level_next, z) + 0.01 * x**2, 1, "step 1 is neither"),
        (ddim, 0.8, "does not begin with noise of its first level"),
    ],
)
def test_a_loop_that_does_something_else_has_no_floor_and_says_why(tmp_path, data, denoise, update, start, reason):
    log = walked(tmp_path, data, denoise, PRESERVING, update, start)
    assert len(log.notes) == 1
    assert reason in log.notes[0]
    assert not (tmp_path / "exact").exists()
    assert "forced-train" in set(log.table()["arm"])
