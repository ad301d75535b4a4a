"""A cell from its units to its files, with a cheap denoiser that counts what it is asked."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from cases import at_first
from results_of_runs import assert_same_results

from bench.diffusion.types import Prediction
from bench.measure.instruments.moments import Moments
from bench.measure.quality.scores import SCORES_VERSION
from bench.suite import plan
from bench.suite.cells.runner import CellRunner
from bench.suite.cells.walks import RunError
from bench.suite.store.resume import extended, is_sampled
from bench.suite.store.store import Store

STEP_COLUMNS = ["arm", "i", "stage", "t", "alpha", "sigma", "n", "quantity", "value", "std"]


@pytest.fixture
def run_cell(make_context, tmp_path):
    """Return a function that runs a cell and returns its store."""

    def run(cell, denoiser, batch=4, folder="out", counted=None):
        store = Store(tmp_path / folder)
        runner = CellRunner(cell, make_context(denoiser, batch=batch, counted=counted), store)
        store.begin(cell)
        for unit in runner.units():
            if not store.has_shard(cell, unit):
                runner.keep(unit, runner.walk(unit))
        runner.complete()
        return store

    return run


def arrays(store, cell, name):
    with np.load(store.folder(cell) / name) as file:
        return {key: file[key] for key in file.files}


@pytest.mark.parametrize("spacing", ["plain", "ddim"])
@pytest.mark.parametrize("steps", [1, 4])
def test_network_calls_are_those_of_the_plan(make_cell, run_cell, shrink, spacing, steps):
    # A batch as large as any unit, so that no row is padding.
    cell, denoiser, counted = make_cell(spacing=spacing, steps=steps), shrink(), []
    store = run_cell(cell, denoiser, batch=256, counted=counted)
    assert denoiser.rows == sum(counted) == sum(cell.cost()) == store.metrics(cell)["network_calls"]
    if spacing == "ddim":
        assert cell.instruments.paired == 12


def test_progress_ignores_padding(make_cell, run_cell, shrink):
    cell, denoiser, counted = make_cell(), shrink(), []
    run_cell(cell, denoiser, batch=5, counted=counted)
    assert sum(counted) == sum(cell.cost()) < denoiser.rows


@pytest.mark.parametrize("batch", at_first([5, 100, 1, 12], 2))
def test_the_internal_batch_changes_nothing_of_an_elementwise_model(make_cell, run_cell, shrink, batch):
    cell = make_cell(spacing="ddim")
    first = run_cell(cell, shrink(), batch=4, folder="first")
    second = run_cell(cell, shrink(), batch=batch, folder="second")
    np.testing.assert_array_equal(first.samples(cell), second.samples(cell))
    one, other = arrays(first, cell, "moments.npz"), arrays(second, cell, "moments.npz")
    for name in one:  # sums in another order
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("fail_at", at_first([5, 14, 0, 11, 19], 2))
def test_an_interrupted_cell_goes_on_where_it_stopped(make_cell, run_cell, shrink, monkeypatch, fail_at):
    monkeypatch.setattr(plan, "SHARD", 4)
    cell = make_cell()
    undisturbed = run_cell(cell, shrink(), folder="undisturbed")
    broken = shrink(fail_at)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, broken)
    store = run_cell(cell, again := shrink())
    assert_same_results(undisturbed.folder(cell), store.folder(cell))
    total = shrink()
    run_cell(cell, total, folder="total")
    # Three free units of four calls each come first: a finished one is not computed twice.
    finished = sum(4 for end in (4, 8, 12) if end <= fail_at)
    assert again.calls <= total.calls - finished
    assert not list(store.folder(cell).glob("*shard-*"))


def test_seconds_are_those_of_every_attempt(make_cell, run_cell, shrink, monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "SHARD", 4)
    cell = make_cell(measure=())
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, shrink(9))  # in the third unit of four calls
    store = Store(tmp_path / "out")
    done = [unit for unit in cell.units(4) if store.has_shard(cell, unit)]
    assert len(done) == 2
    for unit in done:
        arrays = {**store.get_shard(cell, unit.name), "seconds": np.array(1000.0)}
        shutil.rmtree(store.folder(cell) / unit.name)
        store.put_shard(cell, unit, arrays)
    run_cell(cell, shrink())
    assert 2000 < store.metrics(cell)["seconds"] < 2100
    assert store.metrics(cell)["network_calls"] == 12 * 4


def test_samples_are_guided_diffusions_format(make_cell, run_cell, shrink):
    cell = make_cell()
    samples = arrays(run_cell(cell, shrink()), cell, "samples.npz")
    assert (list(samples), str(samples["quantize"])) == (["arr_0", "quantize"], "round")
    images = samples["arr_0"]
    assert (images.shape, images.dtype) == ((12, 4, 4, 3), np.uint8)
    assert (images[..., :1] == images).all()
    assert images.std() > 10  # not all one colour
    floored = make_cell(quantize="floor")
    other = arrays(run_cell(floored, shrink(), folder="floor"), floored, "samples.npz")
    assert str(other["quantize"]) == "floor"
    assert set(np.unique(images.astype(int) - other["arr_0"])) == {0, 1}


@pytest.fixture
def finished(make_cell, run_cell, shrink):
    cell = make_cell(spacing="ddim", samples=70)
    return cell, run_cell(cell, shrink(), batch=16)


def test_step_table(finished):
    cell, store = finished
    table = pd.read_csv(store.folder(cell) / "steps.csv")
    assert list(table.columns) == STEP_COLUMNS
    arms = {"free", "forced-train", "forced-heldout", "paired"}
    assert set(table["arm"]) == arms
    at = {len(cell.levels()) - 2 - k: level for k, level in enumerate(cell.levels())}
    for row in table.itertuples():
        level = at[row.i]
        assert (row.t, row.stage, row.alpha) == (level.t, 0, pytest.approx(level.alpha, rel=1e-12))
        assert row.sigma == pytest.approx(level.sigma, rel=1e-12)
    assert not table.duplicated(["arm", "i", "quantity"]).any()
    counts = table.drop_duplicates("arm").set_index("arm")["n"]
    # 64 forced images are wanted: all 18 held-out ones, all 42 training ones; 64 paired ones, again all 42.
    assert counts[["free", "forced-train", "forced-heldout", "paired"]].tolist() == [70, 42, 18, 42]


def test_moments_are_mergeable_records(finished):
    cell, store = finished
    moments = arrays(store, cell, "moments.npz")
    assert moments["i"].tolist() == [0, 1, 2, 3]
    assert {"t", "alpha_next", "sigma_next", "data/mean", "data/variance", "data/spectrum"} <= set(moments)
    for arm, names in {"free": ("state", "eps"), "forced-train": ("state", "eps", "error", "residual")}.items():
        for name in names:
            assert moments[f"{arm}/{name}/mean"].shape == moments[f"{arm}/{name}/second"].shape == (4, 1, 4, 4)
        assert moments[f"{arm}/spectrum_state/mean"].shape == (4, 4)  # radii 0 to 3 on a 4x4 grid
    state = {key: moments[f"free/state/{key}"] for key in ("count", "mean", "second")}
    table = pd.read_csv(store.folder(cell) / "steps.csv")
    row = table[(table["arm"] == "free") & (table["quantity"] == "var_marginal") & (table["i"] == 1)]
    assert row["value"].item() == pytest.approx(Moments.variance(state)[2].mean())  # the state that call 2 reached


def test_errors_are_those_of_single_images(finished):
    cell, store = finished
    errors = arrays(store, cell, "errors.npz")
    assert errors["errors"].shape == (4, 60, 1, 4, 4)  # all 42 training and 18 held-out images
    assert (errors["errors"].dtype, errors["i"].tolist()) == (np.float32, [0, 1, 2, 3])
    assert errors["t"].tolist() == [level.t for level in reversed(cell.levels()[:-1])]
    assert errors["part"].tolist() == ["train"] * 42 + ["heldout"] * 18
    moments = arrays(store, cell, "moments.npz")
    np.testing.assert_allclose(errors["errors"][:, :42].mean(1), moments["forced-train/error/mean"], atol=1e-6)


def test_metrics_file(finished):
    cell, store = finished
    found = json.loads((store.folder(cell) / "metrics.json").read_text())
    assert (found["nfe"], found["network_calls"]) == (4, sum(cell.cost()))
    assert found["features"] == f"none-scores{SCORES_VERSION}"
    assert [score["metric"] for score in found["scores"]] == ["nn_ratio"]
    assert set(found["scores"][0]) == {"metric", "value", "n", "reference", "reason"}
    others = [path for path in store.folder(cell).iterdir() if path.name != "metrics.json"]
    assert found["files"] == {path.name: path.stat().st_size for path in others}
    assert found["seconds"] > 0


def test_forced_noise_belongs_to_the_image(make_cell, run_cell, shrink):
    # More forced images, the same errors of the first ones: neither split nor number shifts a stream.
    few, many = make_cell(samples=10), make_cell(samples=40)
    first = arrays(run_cell(few, shrink(), batch=7, folder="few"), few, "errors.npz")
    second = arrays(run_cell(many, shrink(), batch=16, folder="many"), many, "errors.npz")
    assert first["part"].tolist() == second["part"].tolist()
    np.testing.assert_array_equal(first["errors"], second["errors"])


class Broken:
    def __call__(self, x, level, cond=None):
        return Prediction(x, torch.full_like(x, float("nan")), torch.zeros_like(x))


def test_values_that_are_not_finite_are_reported(make_cell, run_cell):
    with pytest.raises(RunError, match=r"model 'toy' at 4 steps, seed 0, .*not finite") as caught:
        run_cell(make_cell(measure=()), Broken())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("measure", "files"), [(("steps",), {"steps.csv", "moments.npz"}), (("normality",), {"errors.npz"}), ((), set())]
)
def test_each_measurement_writes_its_files_and_costs_its_calls(make_cell, run_cell, shrink, measure, files):
    cell, counted = make_cell(measure=measure), []
    store = run_cell(cell, shrink(), counted=counted)
    assert {path.name for path in store.folder(cell).iterdir()} == {"samples.npz", "metrics.json"} | files
    assert sum(counted) == sum(cell.cost())


def test_a_measurement_alone_gives_what_it_gives_among_others(make_cell, run_cell, shrink):
    both, errors = make_cell(), make_cell(measure=("normality",))
    first, second = run_cell(both, shrink(), folder="both"), run_cell(errors, shrink(), folder="alone")
    one, other = arrays(first, both, "errors.npz"), arrays(second, errors, "errors.npz")
    # The same noise belongs to the same images; how they are batched moves no element of this elementwise model.
    np.testing.assert_array_equal(one["errors"], other["errors"])
    np.testing.assert_array_equal(one["part"], other["part"])


def test_measuring_more_keeps_what_was_measured(make_cell, run_cell, shrink):
    store = run_cell(first := make_cell(measure=("normality",)), shrink())
    second = make_cell(measure=("steps",))
    assert not is_sampled(store, second)
    assert extended(store, second).measure == ("steps", "normality")
    run_cell(extended(store, second), shrink())
    assert is_sampled(store, first)
    assert is_sampled(store, second)
    assert {"errors.npz", "steps.csv"} <= {path.name for path in store.folder(second).iterdir()}
