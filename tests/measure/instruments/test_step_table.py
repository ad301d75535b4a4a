"""Rows of steps.csv follow from a record by hand, stand at the level they describe, and carry standard errors."""

import math

import numpy as np
import pytest
import torch

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, teacher_forced, walk
from bench.diffusion.schedules import edm_levels, levels
from bench.diffusion.solvers import Ancestral, Heun
from bench.diffusion.types import Level
from bench.measure.instruments.probes import WalkProbe
from bench.measure.instruments.step_table import SCALARS, PixelStatistics, delta_floor, to_table

N = 4000
STEPS = 6
SHAPE = (1, 4, 4)


def statistics(gaussian):
    return PixelStatistics(gaussian.mean.reshape(SHAPE), np.diag(gaussian.cov).reshape(SHAPE))


def table_of(steps, arm, path, gaussian, solver):
    centre = torch.from_numpy(gaussian.mean).float().reshape(SHAPE)
    probe = WalkProbe(len(path) - 1, range(len(path) - 1), centre, arm != "free", solver.stages)
    for step in steps:
        probe.update(step)
    rows = WalkProbe.result(arm, probe.state(), range(len(path) - 1), path, statistics(gaussian), solver)
    return to_table(list(rows))


def test_a_correcting_call_has_rows_of_its_own(gaussian):
    path, draws = edm_levels(STEPS), Draws(Noise(2), torch.arange(64))
    steps = list(walk(gaussian.oracle(), path, prior(path[0], draws, SHAPE), Heun(), draws, clip=False))
    table = table_of(steps, "free", path, gaussian, Heun())
    corrected = table[(table["stage"] == 1) & (table["quantity"] == "eps_norm")]
    assert corrected["i"].tolist() == list(range(STEPS - 1, 0, -1))  # the last step is not corrected
    for step in steps:
        row = table[(table["i"] == step.i) & (table["stage"] == step.stage) & (table["quantity"] == "eps_norm")]
        assert row["sigma"].item() == step.level.sigma
        # The record is float64, the sum of 64 norms of order 4 is taken in another order: 1e-12.
        assert row["value"].item() == pytest.approx(step.prediction.eps.flatten(1).norm(dim=1).mean().item(), rel=1e-9)
    assert set(table[table["stage"] == 1]["quantity"]) == {
        "eps_norm", "eps_used_norm", "x0_norm", "clipped", "eps_rms"
    }  # fmt: skip


def test_the_spread_of_the_error_is_the_posteriors(gaussian):
    """Forced on exact states, x0_hat - x0 ~ N(0, P): nu is the mean of sqrt(P_pp) within five errors, the bias 0."""
    path, draws = levels("cosine", 1000, STEPS), Draws(Noise(2), torch.arange(N))
    x0 = gaussian.images(N, seed=5).float()
    steps = teacher_forced(gaussian.oracle(), path, x0, Ancestral("exact"), draws, clip=False)
    table = table_of(steps, "forced-train", path, gaussian, Ancestral("exact")).set_index(["i", "quantity"])
    law = gaussian.linear()
    for i, level in enumerate(reversed(path[:-1])):
        post = (law.vectors * law.posterior(level)) @ law.vectors.T
        roots = np.sqrt(np.diag(post))
        error = math.sqrt((2 * np.square(post) / (4 * np.outer(roots, roots))).sum() / (N - 1)) / 16
        assert abs(table.loc[(i, "x0_nu"), "value"] - roots.mean()) <= 5 * error + 1e-6
        assert abs(table.loc[(i, "x0_bias"), "value"]) <= 5 * math.sqrt(post.sum() / N) / 16 + 1e-6
        # std of the root of m by the delta method: std(m) / (2 sqrt m), std(m)^2 = 2 tr(P^2) / D^2; itself known to
        # about one in sqrt(N / 2), times a kurtosis of a few.
        spread = math.sqrt(2 * np.square(post).sum()) / 16 / (2 * math.sqrt(np.diag(post).mean()))
        assert table.loc[(i, "x0_rmse"), "std"] == pytest.approx(spread, rel=10 / math.sqrt(N / 2))


def test_the_ratios_std_gives_its_standard_error(gaussian):
    """std / sqrt(n) of variance_ratio is the error of a pixel-mean variance, up to its own sampling error."""
    path, draws, law = levels("cosine", 1000, STEPS), Draws(Noise(2), torch.arange(N)), gaussian.linear()
    steps = walk(gaussian.oracle(), path, prior(path[0], draws, SHAPE), Ancestral("exact"), draws, clip=False)
    table = table_of(steps, "free", path, gaussian, Ancestral("exact")).set_index(["i", "quantity"])
    for i, state in enumerate(law.walk(law.prior(path[0]), path, Ancestral("exact"))):
        error = math.sqrt(2 * np.square(state.variance).sum() / (N - 1)) / 16
        truth = law.forward(state.level).variance.mean()
        row = table.loc[(STEPS - 2 - i, "variance_ratio")]
        assert row["std"] / math.sqrt(row["n"]) == pytest.approx(error / truth, rel=10 / math.sqrt(N / 2))


def fake_record(steps, shape, knows_x0, count=4.0):
    record = {}
    parts = {"scalars": (steps, (len(SCALARS),)), "state": (steps, shape), "eps": (steps, shape)}
    if knows_x0:
        parts |= {"residual": (steps, shape), "error": (steps, shape)}
    for k, (name, (rows, tail)) in enumerate(parts.items()):
        mean = np.full((rows, *tail), 0.1 * (k + 1))
        record |= {f"{name}/count": np.full(rows, count), f"{name}/mean": mean, f"{name}/second": mean**2 + 0.3}
    return record


def test_rows_stand_at_the_level_they_describe():
    path = levels("cosine", 1000, 4)
    data = PixelStatistics(np.zeros(SHAPE), np.full(SHAPE, 0.2))
    rows = list(WalkProbe.result("forced-train", fake_record(2, SHAPE, True), [0, 1], path[2:], data))
    table = to_table(rows)
    for quantity, (first, last) in {"eps_norm": (1, 0), "x0_nu": (1, 0), "var_conditional": (0, -1)}.items():
        here = table[table["quantity"] == quantity]
        assert here["i"].tolist() == [first, last]  # noisiest first
        assert here["t"].tolist() == [path[len(path) - 2 - i].t for i in (first, last)]
        assert (here["n"] == 4).all()
    assert not {"floor_std", "excess_std"} & set(table["quantity"])  # a forced state never forgot its x0


def test_values_follow_from_the_record_by_hand():
    path = (Level(500, 0.6, 0.8), Level(-1, 1.0, 0.0))
    data = PixelStatistics(np.zeros(SHAPE), np.full(SHAPE, 0.2))
    rows = {r.quantity: r for r in WalkProbe.result("free", fake_record(1, SHAPE, False), [0], path, data)}
    variance = 0.3 * 4 / 3  # second - mean^2, with n - 1
    assert rows["var_marginal"].value == pytest.approx(variance)
    assert rows["variance_ratio"].value == pytest.approx(variance / 0.2)
    assert rows["pred_std"].value == pytest.approx(math.sqrt(variance + 0.2))
    assert rows["delta_t"].value == pytest.approx(variance + 0.2)  # sigma is 0 here
    assert (rows["floor_std"].value, rows["delta_t_floor"].value) == (pytest.approx(math.sqrt(0.4)), pytest.approx(0.4))
    assert rows["excess_std"].value == pytest.approx(math.sqrt(variance + 0.2) - math.sqrt(0.4))
    assert rows["eps_norm"].value == pytest.approx(0.1)
    assert rows["eps_rms"].value == pytest.approx(math.sqrt(0.1**2 + 0.3))
    assert "var_conditional" not in rows
    assert "x0_rmse" not in rows


def test_delta_floor_of_unequal_pixels():
    level, variance = Level(100, 0.8, 0.6), np.array([0.0, 0.5])
    wanted = (math.sqrt(0.36) + math.sqrt(0.36 + 2 * 0.64 * 0.5)) / 2
    assert delta_floor(level, variance) == pytest.approx(wanted)


def test_constant_data_have_no_ratio_at_the_clean_end():
    path = levels("cosine", 1000, 1)
    data = PixelStatistics(np.zeros(SHAPE), np.zeros(SHAPE))
    rows = WalkProbe.result("free", fake_record(1, SHAPE, False), [0], path, data)
    assert "variance_ratio" not in {row.quantity for row in rows}
