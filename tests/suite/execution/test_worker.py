"""The same run by one process and by several, at any batch size: the same noise, images and tables."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import suite_ranks
import torch
from results_of_runs import assert_same_results
from suite_ranks import command as suite_command
from suite_ranks import launch

import run_bench
from bench.diffusion.types import Prediction
from bench.suite import plan
from bench.suite.cells.runner import CellRunner
from bench.suite.cells.walks import CellWalks
from bench.suite.config.resolve import Configuration
from bench.suite.execution.worker import Finisher
from bench.suite.processes.ranks import Share, Team
from bench.suite.store.store import Store

BATCH = 64
RUN = ("--models", "adm", "--steps", "2,3", "--samples", "200", "--quiet")
CELLS = ["adm-ddpm-2-seed0", "adm-ddpm-3-seed0"]
FILES = ("samples.npz", "steps.csv", "moments.npz", "errors.npz", "features.npz", "kernel.npy", "influence.npz")
UNITS = ("free-00000000-00000128", "free-00000128-00000200", "forced-00000000-00000064", "errors-00000000-00000036")


def run_alone(out, batch):
    assert suite_command(*RUN, "--batch-size", str(batch), "--out", str(out)) == (0, "", "")
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run by one process."""
    return run_alone(tmp_path_factory.mktemp("alone") / "out", BATCH)


@pytest.fixture(scope="module", params=[3, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 4))])
def shared(request, tmp_path_factory):
    """The same run by several processes, and how many."""
    out = tmp_path_factory.mktemp("shared") / "out"
    found = launch(request.param, suite_command, *RUN, "--batch-size", str(BATCH), "--out", str(out))
    assert found == [(0, "", "")] * request.param
    return out, request.param


def facts(out, cell):
    found = json.loads((out / "cells" / cell / "metrics.json").read_text())
    assert found.pop("seconds") > 0
    assert found.pop("checksum")  # of the record itself, the seconds among it
    return found


def events(out):
    logs = [path.read_text().splitlines() for path in sorted(out.glob("log*.jsonl"))]
    return [json.loads(line) for log in logs for line in log]


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_several_processes_leave_what_one_leaves(alone, shared, cell):
    out, _ = shared
    assert {path.name for path in (out / "cells" / cell).iterdir()} == {*FILES, "metrics.json"}
    assert_same_results(out / "cells" / cell, alone / "cells" / cell)
    assert facts(out, cell) == facts(alone, cell)


def test_every_unit_is_done_by_one_process_and_every_cell_completed_by_one(shared):
    out, size = shared
    found = events(out)
    units = [(event["cell"], event["unit"]) for event in found if event["event"] == "unit"]
    assert sorted(units) == sorted((cell, f"shard-{unit}") for cell in CELLS for unit in UNITS)
    assert sorted(event["cell"] for event in found if event["event"] == "cell") == sorted(CELLS)
    assert {event["rank"] for event in found if event["event"] == "start"} == set(range(size))


def test_the_account_says_how_many_processes_there_were(alone, shared):
    out, size = shared
    one, several = (json.loads((folder / "run.json").read_text()) for folder in (alone, out))
    assert (one["processes"], several["processes"]) == (1, size)
    assert one["configuration"] == several["configuration"]
    assert one["network_calls"] == several["network_calls"] > 0


def test_a_complete_run_returns_at_once_on_every_rank(shared):
    out, _ = shared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    found = launch(2, suite_command, *RUN, "--batch-size", str(BATCH), "--out", str(out))
    assert found == [(0, "", "")] * 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


REPOSITORY = Path(run_bench.__file__).parent


def torchrun(processes, *command):
    """Run a command of the repository under torchrun; return the completed process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", processes, *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    how = {"capture_output": True, "text": True, "timeout": 180}
    return subprocess.run(list(map(str, launcher)), cwd=REPOSITORY, env=environment, **how)


def ours(text):
    """Return the lines that are not torchrun's own."""
    return [line for line in text.splitlines() if line.startswith(("error: ", "interrupted"))]


@pytest.mark.slow
def test_torchrun_leaves_what_one_process_leaves(alone, tmp_path):
    found = torchrun(2, suite_ranks.__file__, *RUN, "--batch-size", BATCH, "--out", tmp_path / "out")
    assert (found.returncode, found.stdout, ours(found.stderr)) == (0, "", [])
    assert_same_results(tmp_path / "out" / "cells", alone / "cells")


@pytest.mark.slow
def test_a_misspelt_model_under_torchrun_is_one_line_of_ours(tmp_path):
    found = torchrun(2, "run_bench.py", "--models", "amd", "--out", tmp_path / "out")
    assert found.returncode == 1
    (line,) = ours(found.stderr)
    assert line.startswith("error: unknown model 'amd'; did you mean 'adm'?")
    assert found.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_torchrun_draws_what_it_leaves(alone, tmp_path, processes):
    out = tmp_path / "out"
    found = torchrun(processes, "run_bench.py", *RUN, "--batch-size", BATCH, "--out", out)
    assert (found.returncode, found.stdout, ours(found.stderr)) == (0, "", [])
    assert_same_results(out / "cells", alone / "cells")
    assert (out / "report.html").exists()
    assert (out / "tables" / "fid_vs_steps.csv").exists()


# --- batch sizes and threads --------------------------------------------------------------------------------------


def images(out, cell):
    with np.load(out / "cells" / cell / "samples.npz") as file:
        return file["arr_0"].astype(int)


def assert_alike(first, second):
    """Compare two runs whose convolutions may add in another order.

    A network's answers then differ by about 1e-6 of their size. The noisiest level's estimate of x0 divides that by
    alpha_T = 6.3e-3 before it is clipped, which makes 1.6e-4: the tolerance of means and spreads, relative to the
    larger of the two, as a spread far below its mean loses the mean's digits. Single pixels: ten times as much, since
    noise has its tails; images one grey level on 1e-3 of the pixels, as promised; shares of clipped pixels as much;
    and scores 1e-3 of themselves, as that few grey levels move a mean pixel by 1e-5 of the range.
    """
    for cell in CELLS:
        apart = np.abs(images(first, cell) - images(second, cell))
        assert apart.max() <= 1
        assert (apart > 0).mean() <= 1e-3
        one, two = (pd.read_csv(out / "cells" / cell / "steps.csv") for out in (first, second))
        labels = [name for name in one.columns if name not in ("value", "std")]
        pd.testing.assert_frame_equal(one[labels], two[labels])
        size = one[["value", "std"]].abs().max(axis=1)
        allowed = 2e-4 * size + 1e-3 * (one["quantity"] == "clipped") + 1e-12
        for name in ("value", "std"):
            assert (one[name].isna() == two[name].isna()).all()
            off = (one[name] - two[name]).abs().fillna(0) > allowed
            assert not off.any(), one[off].join(two[off][["value", "std"]], rsuffix=" of the other")
        with (
            np.load(first / "cells" / cell / "moments.npz") as a,
            np.load(second / "cells" / cell / "moments.npz") as b,
        ):
            assert a.files == b.files
            for name in a.files:
                np.testing.assert_allclose(b[name], a[name], rtol=0, atol=2e-3 * np.abs(a[name]).max(), err_msg=name)
        one, two = (facts(out, cell) for out in (first, second))
        for a, b in zip(one.pop("scores"), two.pop("scores"), strict=True):
            assert {**a, "value": None} == {**b, "value": None}
            assert (a["value"] is None) == (b["value"] is None)
            assert a["value"] is None or b["value"] == pytest.approx(a["value"], rel=1e-3), a
        sums = one.pop("sha256"), two.pop("sha256")
        assert sums[0].keys() == sums[1].keys()
        sizes = one.pop("files"), two.pop("files")
        assert sizes[0].keys() == sizes[1].keys()
        assert one == two


@pytest.mark.parametrize("batch", [48, *(pytest.param(batch, marks=pytest.mark.slow) for batch in (7, 500))])
def test_any_batch_size_gives_the_same_images_and_tables_within_the_stated_tolerance(alone, tmp_path, batch):
    assert_alike(alone, run_alone(tmp_path / "out", batch))


# --- noise --------------------------------------------------------------------------------------------------------


class Listening:
    """An elementwise denoiser, which no batch size can change, that keeps every state it was shown."""

    def __init__(self):
        self.states = []

    def __call__(self, x, level, cond=None):
        self.states.append((level.t, x.clone()))
        x0 = 0.5 * level.alpha * x
        return Prediction((x - level.alpha * x0) / level.sigma, x0, torch.full_like(x, 0.3))


def states_of(cell, make_context, batch, jobs):
    """Return every state of every image, float32, by arm and level, as so many processes make them."""
    found = {}
    for job in range(jobs):
        denoiser = Listening()
        arms = CellWalks(cell, make_context(denoiser, batch=batch))
        units = list(cell.units(batch))
        for number in Team(Share(job, jobs)).take("units", len(units)):
            unit = units[number]
            denoiser.states.clear()
            arms.compute(unit)
            for level, rows in itertools.groupby(
                sorted(denoiser.states, key=lambda one: one[0]), key=lambda one: one[0]
            ):
                rows = torch.cat([x for _, x in rows])[: unit.stop - unit.start]  # the last batch is padded
                found[unit.arm, level, unit.start] = rows
    order = sorted(found)
    return {
        key: torch.cat([found[one] for one in group])
        for key, group in itertools.groupby(order, key=lambda one: one[:2])
    }


@pytest.mark.ci
def test_noise_is_the_same_for_any_processes_and_batch_size(make_cell, make_context, monkeypatch):
    monkeypatch.setattr(plan, "SHARD", 3)
    cell = make_cell(steps=3, spacing="ddim")  # whose first level remembers x0, so that there are paired walks
    expected = states_of(cell, make_context, 12, 1)
    assert {arm for arm, _ in expected} == {"free", "forced", "errors", "paired"}
    assert all(len(states) == 12 for (arm, _), states in expected.items() if arm == "free")
    for batch, jobs in [(1, 1), *itertools.product((2, 5, 12), (1, 2, 3, 4))]:
        found = states_of(cell, make_context, batch, jobs)
        assert found.keys() == expected.keys()
        for key, states in expected.items():
            assert torch.equal(found[key], states), (batch, jobs, key)


# --- merging ------------------------------------------------------------------------------------------------------


def test_the_order_in_which_units_are_done_does_not_matter(make_cell, make_context, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SHARD", 3)
    cell, made = make_cell(), []
    for order in (1, -1, None):
        store = Store(tmp_path / str(order))
        runner = CellRunner(cell, make_context(Listening(), batch=3), store)
        store.begin(cell)
        units = runner.units()
        shuffled = np.random.default_rng(0).permutation(len(units))
        for number in range(len(units))[::order] if order else shuffled:
            runner.keep(units[number], runner.walk(units[number]))
        runner.complete()
        made.append(store.folder(cell))
    assert len(units) > 8
    for other in made[1:]:
        assert_same_results(other, made[0])


# --- work that follows a walk --------------------------------------------------------------------------------------


BOTH = pytest.mark.parametrize("beside", [False, True])


@BOTH
def test_work_is_done_in_order_one_at_a_time(beside):
    finisher, done, running = Finisher(beside), [], []

    def work(number):
        running.append(number)
        time.sleep(0.01)
        assert running == [number]
        done.append((running.pop(), threading.current_thread() is threading.main_thread()))

    for number in range(5):
        finisher.submit(lambda number=number: work(number))
    finisher.wait()
    assert done == [(number, not beside) for number in range(5)]


def test_what_is_done_beside_does_not_hold_up_what_follows():
    finisher, go, done = Finisher(True), threading.Event(), []
    finisher.submit(lambda: done.append(go.wait(10)))
    go.set()  # the caller got here while the work waits
    finisher.wait()
    assert done == [True]


@BOTH
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_is_the_callers(beside, error):
    def fail():
        raise error

    def two():
        finisher.submit(fail)
        finisher.submit(lambda: done.append("not reached"))

    finisher, done = Finisher(beside), []
    with pytest.raises(type(error)) as caught:
        two()
    assert caught.value is error
    assert not done
    finisher.submit(lambda: done.append("again"))  # and it is told once
    finisher.wait()
    assert done == ["again"]


@pytest.mark.ci
def test_a_cell_finished_beside_is_the_same(tmp_path, command, monkeypatch):
    monkeypatch.setattr(plan, "SHARD", 8)
    args = ("--models", "adm", "--steps", "2,3", "--samples", "24", "--batch-size", "8", "--quiet", "--compile", "off")
    threads, submit = set(), Finisher.submit

    def noted(self, work):
        submit(self, lambda: threads.add(threading.current_thread() is threading.main_thread()) or work())

    for name, beside in (("plain", False), ("beside", True)):
        with monkeypatch.context() as patch:
            patch.setattr(Configuration, "overlaps", beside)
            patch.setattr(Finisher, "submit", noted)
            assert command(*args, "--out", tmp_path / name).code == 0
    assert threads == {False, True}
    assert len(list((tmp_path / "plain" / "cells").iterdir())) == 2
    assert_same_results(tmp_path / "plain" / "cells", tmp_path / "beside" / "cells")


def test_a_full_disk_met_beside_is_one_line(tmp_path, command, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr(Configuration, "overlaps", True)
    monkeypatch.setattr("bench.suite.store.store.write_shard", full)
    found = command("--models", "adm", "--steps", "2", "--samples", "8", "--quiet", "--out", tmp_path / "out")
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith(f"error: {tmp_path / 'out'}: No space left on device")
    assert len(found.err.splitlines()) == 1
