"""Every instrument on Gaussian data equals the exact recursion on the same levels and variance mode."""

import math

import numpy as np
import pytest
import torch

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, paired, prior, teacher_forced, walk
from bench.diffusion.schedules import edm_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, Churn, Euler, Heun
from bench.diffusion.types import Level
from bench.measure.instruments.probes import WalkProbe
from bench.measure.instruments.step_table import (
    SCALARS,
    STEP_COLUMNS,
    PixelStatistics,
    Row,
    delta_floor,
    gaussian_rows,
    to_table,
)

N = 8000
STEPS = 8
SHAPE = (1, 4, 4)
SIGMAS = 5
MODES = ["fixed-small", "fixed-large", "learned", "exact", "ddim", "ddim-eta", "euler", "heun"]


def solver_of(mode):
    solvers = {"ddim": DDIM(), "ddim-eta": DDIM(0.7), "euler": Euler(), "heun": Heun()}
    solvers["churned"] = Heun(Churn(4.0, STEPS))
    return solvers.get(mode) or Ancestral(mode)


def statistics(gaussian):
    return PixelStatistics(gaussian.mean.reshape(SHAPE), np.diag(gaussian.cov).reshape(SHAPE))


def record_of(steps, count, gaussian, knows_x0):
    centre = torch.from_numpy(gaussian.mean).float().reshape(SHAPE)
    probe = WalkProbe(count, range(count), centre, knows_x0, stages=2)
    for step in steps:
        probe.update(step)
    return probe.state()


def measure(gaussian, path, mode, arm):
    """Sample an arm with its instruments and return {(i, quantity): row}."""
    x0, draws = gaussian.images(N, seed=5).float(), Draws(Noise(2), torch.arange(N))
    solver = solver_of(mode)
    denoiser = gaussian.oracle() if isinstance(solver, Euler) else gaussian.denoiser()
    if arm == "free":
        steps = walk(denoiser, path, prior(path[0], draws, SHAPE), solver, draws, clip=False)
    elif arm == "paired":
        start = paired(path[0], draws, x0)
        steps = walk(denoiser, path, start, solver, draws, clip=False, x0=x0)
    else:
        steps = teacher_forced(denoiser, path, x0, solver, draws, clip=False)
    count = len(path) - 1
    record = record_of(steps, count, gaussian, knows_x0=arm != "free")
    rows = WalkProbe.result(arm, record, range(count), path, statistics(gaussian), solver)
    return {(row.i, row.quantity): row for row in rows if row.stage == 0}


def exact(gaussian, path, mode):
    """Return {(arm, i, quantity): row} of the recursion."""
    rows = gaussian_rows(gaussian.linear(), path, range(len(path) - 1), solver_of(mode), paired=True)
    return {(row.arm, row.i, row.quantity): row for row in rows}


def states(gaussian, path, mode, arm):
    """Return {i: (state the network saw, state it reached)} of the recursion."""
    linear, solver = gaussian.linear(), solver_of(mode)
    top = len(path) - 2
    if arm == "forced-train":
        starts = [linear.forward(level) for level in path[:-1]]
        reached = [next(linear.walk(s, path[k : k + 2], solver)) for k, s in enumerate(starts)]
    else:
        start = linear.prior(path[0]) if arm == "free" else linear.forward(path[0])
        reached = list(linear.walk(start, path, solver))
        starts = [start, *reached[:-1]]
    starts = [linear.stirred(state, solver) for state in starts]
    return {top - k: pair for k, pair in enumerate(zip(starts, reached, strict=True))}


def variance_error(cov):
    """Standard error of the pixel-mean sample variance: Cov(s_p^2, s_q^2) = 2 cov_pq^2 / (N - 1)."""
    return math.sqrt(2 * np.square(cov).sum() / (N - 1)) / len(cov)


def root_error(cov, roots):
    """Standard error of mean sqrt(s_p^2 + const), by the delta method: each Cov over 4 root_p root_q."""
    return math.sqrt((2 * np.square(cov) / (4 * np.outer(roots, roots))).sum() / (N - 1)) / len(cov)


def errors(gaussian, arm, reached):
    """Return the standard errors of the state's quantities, by name."""
    alpha, truth = reached.level.alpha, reached.level.alpha**2 * np.diag(gaussian.cov).mean() + reached.level.sigma**2
    marginal, conditional = variance_error(reached.cov), {}
    if arm == "free":
        roots = np.sqrt(np.diag(reached.cov) + alpha**2 * np.diag(gaussian.cov))
        pred = root_error(reached.cov, roots)
    else:
        cov = reached.cov - alpha * (reached.cross + reached.cross.T) + alpha**2 * gaussian.cov
        roots = np.sqrt(np.diag(cov))
        pred = root_error(cov, roots)
        conditional = {"var_conditional": variance_error(cov)}
    delta = 2 * abs(roots.mean() - reached.level.sigma) * pred + SIGMAS * pred**2
    return {
        "var_marginal": marginal,
        "variance_ratio": marginal / truth,
        "pred_std": pred,
        "delta_t": delta,
        "floor_std": 0.0,
        "delta_t_floor": 0.0,
        "excess_std": pred,
        **conditional,
    }


def check_states(gaussian, arm, measured, wanted, pairs):
    for i, (_, reached) in pairs.items():
        for quantity, error in errors(gaussian, arm, reached).items():
            found, row = measured.get((i - 1, quantity)), wanted.get((i - 1, quantity))
            assert (found is None) == (row is None), quantity
            if row is not None:
                assert (found.t, found.alpha, found.sigma) == (row.t, row.alpha, row.sigma)
                assert abs(found.value - row.value) <= SIGMAS * error + 2e-6, (i, quantity)  # states are float32


def check_eps(measured, wanted, pairs, linear):
    for i, (state, _) in pairs.items():
        found, level = measured[i, "eps_norm"], state.level
        # Mean and spread of norms give back the mean square, which is what the recursion knows.
        square = found.value**2 + found.std**2 * (N - 1) / N
        assert measured[i, "eps_rms"].value ** 2 == pytest.approx(square, rel=1e-6)
        back = level.sigma * np.linalg.inv(level.alpha**2 * linear.cov + level.sigma**2 * np.eye(16))
        cov, mean = back @ state.cov @ back.T, back @ (state.mean - level.alpha * linear.mean)
        error = math.sqrt((2 * np.square(cov).sum() + 4 * mean @ cov @ mean) / N)
        assert square == pytest.approx(wanted[i, "eps_rms"].value ** 2, abs=SIGMAS * error + 1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("arm", "law"), [("free", "gaussian"), ("paired", "gaussian-paired"), ("forced-train", "gaussian-forced")]
)
def test_instruments_equal_the_recursion(gaussian, arm, law, mode):
    path = levels("cosine", 1000, "ddim5" if arm == "paired" else STEPS)  # ddim5 starts where x0 is not forgotten
    measured = measure(gaussian, path, mode, arm)
    wanted = {key[1:]: row for key, row in exact(gaussian, path, mode).items() if key[0] == law}
    pairs = states(gaussian, path, mode, arm)
    check_states(gaussian, arm, measured, wanted, pairs)
    check_eps(measured, wanted, pairs, gaussian.linear())
    known = {quantity for _, quantity in wanted}
    assert ("var_conditional" in known) == (arm != "free")
    assert ("delta_t_floor" in known) == (arm != "forced-train")
    assert "eps_norm" not in known  # a mean norm has no closed form
    assert known <= {quantity for _, quantity in measured}


@pytest.mark.parametrize(
    ("arm", "law"), [("free", "gaussian"), ("paired", "gaussian-paired"), ("forced-train", "gaussian-forced")]
)
@pytest.mark.parametrize("mode", ["euler", "heun", "churned"])
def test_instruments_equal_the_recursion_on_edm_levels(gaussian, arm, law, mode):
    path = edm_levels(STEPS)
    measured = measure(gaussian, path, mode, arm)
    wanted = {key[1:]: row for key, row in exact(gaussian, path, mode).items() if key[0] == law}
    pairs = states(gaussian, path, mode, arm)
    check_states(gaussian, arm, measured, wanted, pairs)
    check_eps(measured, wanted, pairs, gaussian.linear())


def test_a_correcting_call_has_rows_of_its_own(gaussian):
    path, draws = edm_levels(STEPS), Draws(Noise(2), torch.arange(64))
    steps = list(walk(gaussian.oracle(), path, prior(path[0], draws, SHAPE), Heun(), draws, clip=False))
    record = record_of(steps, STEPS, gaussian, knows_x0=False)
    table = to_table(list(WalkProbe.result("free", record, range(STEPS), path, statistics(gaussian))))
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


def test_errors_of_x0_equal_the_posterior(gaussian):
    # Forced on exact states, x0_hat - x0 ~ N(0, P) with P = Cov(x0 | x_t), for every solver alike.
    path, linear = levels("cosine", 1000, STEPS), gaussian.linear()
    measured = measure(gaussian, path, "fixed-small", "forced-train")
    for position, level in enumerate(path[:-1]):
        i, post = STEPS - 1 - position, linear.gain(level)[1]
        roots = np.sqrt(np.diag(post))
        nu, rmse, bias = (measured[i, name].value for name in ("x0_nu", "x0_rmse", "x0_bias"))
        assert abs(nu - roots.mean()) <= SIGMAS * root_error(post, roots) + 1e-6
        mse_error = math.sqrt(2 * np.square(post).sum() / N) / 16
        assert abs(rmse**2 - np.diag(post).mean()) <= SIGMAS * mse_error + 1e-6
        assert abs(bias) <= SIGMAS * math.sqrt(post.sum() / N) / 16 + 1e-6
        # std of the root of m by the delta method: std(m) / (2 sqrt m), std(m)^2 = 2 tr(P^2) / D^2; itself known to
        # about one in sqrt(N / 2), times a kurtosis of a few.
        spread = math.sqrt(2 * np.square(post).sum()) / 16 / (2 * math.sqrt(np.diag(post).mean()))
        assert measured[i, "x0_rmse"].std == pytest.approx(spread, rel=SIGMAS * 2 / math.sqrt(N / 2))


def test_published_measure_of_an_exact_sampler_is_its_floor_only_where_x0_is_forgotten(gaussian):
    # Plain cosine: no excess. ddim5 starts at alpha = .3, so a paired walk keeps part of its x0 and falls below.
    for spec, forgets in (("20", True), ("ddim5", False)):
        path = levels("cosine", 1000, spec)
        found = measure(gaussian, path, "exact", "paired")[-1, "excess_std"].value
        reached = states(gaussian, path, "exact", "paired")[0][1]
        error = errors(gaussian, "paired", reached)["pred_std"]
        assert (abs(found) <= SIGMAS * error) == forgets
        assert forgets or found < -SIGMAS * error


def test_ratio_std_gives_its_standard_error(gaussian):
    # std / sqrt(n) of variance_ratio against the exact error of a pixel-mean variance, up to its own sampling error.
    path = levels("cosine", 1000, STEPS)
    measured = measure(gaussian, path, "exact", "free")
    for i, (_, reached) in states(gaussian, path, "exact", "free").items():
        row = measured[i - 1, "variance_ratio"]
        wanted = errors(gaussian, "free", reached)["variance_ratio"]
        assert row.std / math.sqrt(row.n) == pytest.approx(wanted, rel=SIGMAS * 2 / math.sqrt(N / 2))


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
    assert rows["floor_std"].value == pytest.approx(math.sqrt(0.4))
    assert rows["delta_t_floor"].value == pytest.approx(0.4)
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


def test_gaussian_rows_report_the_wanted_indices_only(gaussian):
    path = levels("cosine", 1000, 10)
    rows = list(gaussian_rows(gaussian.linear(), path, [0, 4], Ancestral("exact")))
    assert {row.i for row in rows if row.quantity == "eps_rms"} == {0, 4}
    assert {row.i for row in rows if row.quantity == "var_marginal"} == {-1, 3}
    assert all(row.n is None for row in rows)  # exact: no sample size
    assert to_table(rows)["n"].isna().all()


def test_exact_variance_gives_ratio_one_and_no_excess(gaussian):
    rows = exact(gaussian, levels("cosine", 1000, 5), "exact")
    ratios = [row.value for (arm, _, name), row in rows.items() if name == "variance_ratio" and arm == "gaussian"]
    excess = [row.value for (arm, _, name), row in rows.items() if name == "excess_std" and arm == "gaussian"]
    assert len(ratios) == len(excess) == 5
    # From noise: x_T lacks alpha_T^2 = 2.4e-9 of the data's variance.
    np.testing.assert_allclose(ratios, 1, rtol=0, atol=1e-8)
    np.testing.assert_allclose(excess, 0, atol=1e-8)


def test_a_paired_walk_from_a_forgetting_level_is_the_free_one(gaussian):
    # x_T of plain cosine keeps alpha_T = 5e-5 of x0; from ddim5's first level, alpha = .3, the two walks differ.
    for spec, forgets in (("10", True), ("ddim5", False)):
        rows = exact(gaussian, levels("cosine", 1000, spec), "exact")
        pairs = [
            (row.value, rows["gaussian-paired", *key[1:]].value) for key, row in rows.items() if key[0] == "gaussian"
        ]
        assert np.allclose(*zip(*pairs, strict=True), rtol=1e-3, atol=1e-3) == forgets


def test_an_exact_row_leaves_its_number_empty(tmp_path):
    rows = [Row("free", 0, 0, 1, 0.5, 0.5, 3, "eps_rms", 2.0), Row("gaussian", 0, 0, 1, 0.5, 0.5, None, "eps_rms", 2.0)]
    table = to_table(rows)
    assert str(table["n"].dtype) == "Int64"
    assert table["n"].isna().tolist() == [False, True]
    lines = table.to_csv(index=False).splitlines()
    assert lines[1:] == ["free,0,0,1,0.5,0.5,3,eps_rms,2.0,", "gaussian,0,0,1,0.5,0.5,,eps_rms,2.0,"]


def test_table_has_the_promised_columns():
    table = to_table([Row("free", 0, 0, 1, 0.5, 0.5, 3, "eps_norm", 2.0)])
    assert tuple(table.columns) == STEP_COLUMNS
    assert STEP_COLUMNS == ("arm", "i", "stage", "t", "alpha", "sigma", "n", "quantity", "value", "std")
