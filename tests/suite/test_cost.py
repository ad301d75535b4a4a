"""The cost of a run: counted calls, a measured price, one rounded time, and when networks are compiled."""

import json
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.models.acceleration import Accelerated
from bench.suite import cli, cost
from bench.suite.config.flags import make_parser
from bench.suite.cost import duration, network_calls, settle_compiling
from bench.suite.processes.ranks import Team

SMALL = ("--steps", "3", "--samples", "20", "--batch-size", "8", "--no-probes")


@pytest.fixture
def tiny(command, toml, tmp_path):
    def call(*flags, out="out"):
        args = ("--config", toml, "--dataset", "pictures", "--models", "tiny", "--features", "none", "--quiet")
        return command(*args, "--out", tmp_path / out, *flags)

    return call


@pytest.fixture
def prepared(toml, tmp_path):
    """Return a function that makes a run of the tiny network."""

    def make(*flags):
        args = ["--config", str(toml), "--dataset", "pictures", "--models", "tiny", "--features", "none", *flags]
        args += ["--out", str(tmp_path / "out")]
        return cli.prepare(make_parser().parse_args(args), args, Team())

    return make


@pytest.fixture
def priced(monkeypatch):
    """Let a call of an image take a second, and start-up and figures nothing; return the cells that were timed."""
    timed = []
    monkeypatch.setattr(cost, "seconds_a_call", lambda run, cell, reference: timed.append(cell.name) or 1.0)
    monkeypatch.setattr(cost, "_START_UP", 0.0)
    monkeypatch.setattr(cost, "_CELL_FIGURES", 0.0)
    return timed


def seconds_of(outcome):
    """Return the seconds of the last line of a dry run."""
    minutes, seconds = re.search(r"^time +about (?:(\d+) min ?)?(?:(\d+) s)?", outcome.out, re.M).groups(default="0")
    return 60 * int(minutes) + int(seconds)


TIMES = [
    (0.0, "about 1 s"), (4.26, "about 4 s"), (42.0, "about 40 s"), (99.0, "about 100 s"), (100.0, "about 1 min 40 s"),
    (594.0, "about 9 min 50 s"), (600.0, "about 10 min"), (59.4 * 60, "about 59 min"), (59.6 * 60, "about 1 h 0 min"),
    (12_000.0, "about 3 h 20 min"), (47.9 * 3600, "about 47 h 50 min"), (50 * 3600.0, "about 2 d 2 h"),
]  # fmt: skip


@pytest.mark.parametrize(("seconds", "text"), TIMES)
def test_times_are_rounded(seconds, text):
    assert duration(seconds) == text


# --- the count and the price ------------------------------------------------------------------------------------------


def test_padding_is_counted(tiny, priced):
    assert seconds_of(tiny(*SMALL, "--dry-run")) == 70  # batches of 8, 8 and 4 + 4 at 3 steps: 72
    assert priced == ["tiny-ddpm-3-seed0"]


def test_models_of_one_architecture_have_one_price_from_the_longest_walk(tiny, priced):
    flags = ("--models", "tiny,tiny-es", "--eps-scale", "1.01", "--steps", "3,7", "--seeds", "0-2", "--samples", "8")
    assert tiny(*flags, "--dry-run").code == 0
    assert priced == ["tiny-ddpm-7-seed0"]


def test_measurements_with_calls_of_their_own_count(prepared):
    flags = ("--steps", "3", "--samples", "8", "--batch-size", "8")
    cells = network_calls(prepared(*flags, "--measure", "steps"), only_left=True).total()
    chains = network_calls(prepared(*flags, "--measure", "steps,chains"), only_left=True).total()
    # Three kinds of chains, each of 100, 300, 600, 900 and 1000 calls an image.
    assert chains - cells == 3 * 2900 * 8


def test_what_is_done_costs_nothing(tiny, priced):
    assert tiny(*SMALL).code == 0
    outcome = tiny(*SMALL, "--dry-run")
    assert priced == []
    assert re.search(r"tiny-ddpm-3-seed0 +60 network calls  done\n", outcome.out)
    assert seconds_of(outcome) == 1


def test_a_share_of_the_work_takes_its_share_of_the_time(tiny, priced):
    assert seconds_of(tiny(*SMALL, "--dry-run", "--shard", "0/4")) == 20


def test_long_runs_are_forecast_compiled_but_not_compiled(tiny, priced, traced):
    flags = ("--steps", "100", "--samples", "8", "--no-probes", "--dry-run")
    assert seconds_of(tiny(*flags)) == 660  # rounded: 800 / 1.3 and a minute to compile
    assert seconds_of(tiny(*flags, "--compile", "off")) == 780
    assert traced() == 0


def test_images_that_cannot_be_scored_are_told(command, toml, priced, tmp_path):
    args = ("--config", toml, "--dataset", "pictures", "--models", "tiny", "--features", "inception", "--quiet")
    weights = ("--inception-weights", tmp_path / "none.pth")
    outcome = command(*args, *weights, "--steps", "2", "--samples", "4", "--dry-run")
    assert outcome.code == 0
    assert "a run would refuse: " in outcome.out


def test_the_dry_run_calls_networks_and_writes_nothing(tiny, tmp_path, monkeypatch):
    calls, real = [], Accelerated.__call__
    monkeypatch.setattr(Accelerated, "__call__", lambda self, *asked: calls.append(1) or real(self, *asked))
    assert tiny("--steps", "1000", "--samples", "128", "--dry-run").code == 0
    assert 4 <= len(calls) <= 32
    assert not (tmp_path / "out").exists()


def test_a_price_is_the_median_of_calls_in_pairs(monkeypatch):
    # Heun's two calls differ, and the first call of all warms up.
    watch, clock = cost._Stopwatch(torch.device("cpu")), iter([9.0, 9.04, 9.12, 9.16, 9.24, 10.44, 10.52])
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with pytest.raises(cost._Enough):
        list(map(watch, [1] * 7))
    assert len(watch.marks) == 5  # a fifth of a second of calls
    assert watch.seconds() == pytest.approx(0.06)


@pytest.mark.parametrize("steps", ["1", pytest.param("100", marks=pytest.mark.slow)])
def test_a_price_is_what_a_run_pays(tiny, prepared, tmp_path, steps, monkeypatch):
    """By the clock of this process, which other work of the machine does not move."""
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=time.process_time))
    flags = ("--steps", steps, "--samples", "32", "--batch-size", "16", "--compile", "off")
    run = prepared(*flags)
    price = cost.seconds_a_call(run, run.cells[0], run.reference())
    started = time.process_time()
    assert tiny(*flags).code == 0
    paid = time.process_time() - started
    calls = network_calls(prepared(*flags), only_left=False).total()
    assert 0 < price * calls < 1.5 * paid


# --- compiling --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_compiler(monkeypatch):
    def failing(*asked):
        raise RuntimeError("InvalidCxxCompiler: no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", lambda network, **how: failing)


@pytest.fixture
def long_run(monkeypatch):
    """Take any run for one that repays compiling."""
    monkeypatch.setattr(cost, "_WORTH_TIMING", 0)
    monkeypatch.setattr(cost, "_COMPILE_FROM", 0.0)


def samples(folder):
    with np.load(folder / "cells" / "tiny-ddpm-3-seed0" / "samples.npz") as file:
        return file["arr_0"]


def compiled(folder):
    return json.loads((folder / "run.json").read_text())["compiled"]


@pytest.mark.ci
def test_compiled_runs_make_the_same_images(tiny, tmp_path, traced):
    assert tiny(*SMALL, "--compile", "off", out="off").code == 0
    assert traced() == 0
    assert tiny(*SMALL, "--compile", "on", out="on").code == 0
    assert traced() == 1
    assert (samples(tmp_path / "off") == samples(tmp_path / "on")).all()
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("off", "on")]
    assert [record["compiled"] for record in records] == [False, True]
    assert records[0]["hash"] == records[1]["hash"]  # like the batch size, it is no part of the configuration


@pytest.mark.parametrize(("seconds", "expected"), [(9.0, False), pytest.param(11.0, True, marks=pytest.mark.ci)])
def test_ten_minutes_of_calls_are_compiled(prepared, priced, monkeypatch, traced, seconds, expected):
    monkeypatch.setattr(cost, "_WORTH_TIMING", 0)
    run = prepared(*SMALL)
    monkeypatch.setattr(cost, "seconds_a_call", lambda *asked: seconds)  # of 72 calls
    monkeypatch.setattr(cost, "_COMPILE_FROM", 720.0)
    assert settle_compiling(run, run.reference(), Team()) == expected
    assert traced() == expected


def test_the_decision_outlives_an_interruption(tiny, tmp_path, long_run, monkeypatch, traced):
    assert tiny(*SMALL).code == 0
    assert (traced(), compiled(tmp_path / "out")) == (1, True)
    for file in ("metrics.json", "samples.npz"):
        (tmp_path / "out" / "cells" / "tiny-ddpm-3-seed0" / file).unlink()
    monkeypatch.setattr(cost, "_COMPILE_FROM", 600.0)
    assert tiny(*SMALL).code == 0
    assert compiled(tmp_path / "out")
    assert tiny(*SMALL, "--seeds", "0,1").code == 0  # a longer plan is another, and decided anew
    assert not compiled(tmp_path / "out")


def test_scores_made_anew_need_no_compiler(tiny, tmp_path, no_compiler):
    assert tiny(*SMALL, "--compile", "off").code == 0
    assert tiny(*SMALL, "--compile", "on", "--features", "digits").code == 0
    assert not compiled(tmp_path / "out")


class Second(Team):
    """A rank that does not lead, beside one that says these lines."""

    def __init__(self, *first):
        super().__init__()
        self.rank, self.size, self.first = 1, 2, list(first)

    def gather(self, lines):
        return [*([self.first.pop(0)] if self.first else []), *lines]


def test_ranks_do_as_the_first(prepared, traced, capsys):
    run = prepared(*SMALL)
    assert settle_compiling(run, run.reference(), Second("compile"))
    assert traced() == 1
    assert not settle_compiling(run, run.reference(), Second("compile", "no compiler on the first"))
    assert not any(network.is_compiled for network in run.networks.values())
    assert capsys.readouterr().err == ""  # the first rank speaks


def test_without_a_compiler_on_is_a_mistake_and_auto_goes_on(tiny, tmp_path, no_compiler, long_run):
    outcome = tiny(*SMALL, "--compile", "on")
    assert outcome.code == 2
    assert outcome.err == "error: --compile on: InvalidCxxCompiler: no compiler here; use --compile off\n"
    assert not (tmp_path / "out").exists()
    outcome = tiny(*SMALL)
    assert outcome.code == 0
    assert outcome.err == "note: networks are not compiled (InvalidCxxCompiler: no compiler here)\n"
    assert not compiled(tmp_path / "out")
