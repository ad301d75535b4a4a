"""The model of a run's cost: counts, rules, and its answer against what a run takes."""

import json
import re
import time
from types import SimpleNamespace

import pytest

from bench.models.acceleration import Accelerated
from bench.suite import cost, timing
from bench.suite.cli import run
from bench.suite.cost import Estimate, duration, repays_compiling
from bench.suite.space import size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "about 0.1 s"),
        (4.26, "about 4.3 s"),
        (59.0, "about 59 s"),
        (99.0, "about 99 s"),
        (100.0, "about 1 min 40 s"),
        (594.0, "about 9 min 50 s"),
        (596.0, "about 10 min"),
        (59.4 * 60, "about 59 min"),
        (59.6 * 60, "about 1 h 0 min"),
        (12_000.0, "about 3 h 20 min"),
        (47.9 * 3600, "about 47 h 54 min"),
        (50 * 3600.0, "about 2 d 2 h"),
    ],
)
def test_times_as_people_say_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(100, "0.1 kB"), (12_345, "12 kB"), (3.4e6, "3.4 MB"), (7.77e10, "78 GB"), (5e15, "5000 TB")]
)
def test_sizes_as_people_say_them(count, text):
    assert size(count) == text


def test_a_run_repays_compiling_after_some_minutes():
    # 100 layers take 20 + 25 s, so 450 s; two architectures twice that.
    assert not repays_compiling(449, [100])
    assert repays_compiling(451, [100])
    assert not repays_compiling(451, [100, 100])
    assert repays_compiling(901, [100, 100])


def test_processes_share_the_time():
    found = Estimate({"a": 10.0, "b": 20.0}, {"chains": 60.0}, 10.0, 4, 5.0)
    assert (found.sampling, found.total) == (90.0, 30.0)


@pytest.fixture
def tiny(command, toml, tmp_path):
    def call(*flags):
        args = ("--config", toml, "--dataset", "pictures", "--models", "tiny", "--features", "none", "--quiet")
        return command(*args, "--out", tmp_path / "out", *flags)

    return call


@pytest.fixture
def priced(monkeypatch):
    """Let every call of a batch take one second."""
    walked = []

    def second(make, unit):
        walked.append((make(lambda calls: None).cell.name, unit.arm))
        return 1.0

    monkeypatch.setattr(cost, "seconds_a_step", second)
    return walked


def seconds_of(outcome, name):
    [line] = [line for line in outcome.out.splitlines() if line.split()[:1] == [name]]
    return read(line)


def read(text):
    """Return the seconds of the first time in a line."""
    minutes, seconds = re.search(r"about (?:(\d+) min ?)?(?:([\d.]+) s)?", text).groups(default="0")
    return 60 * float(minutes) + float(seconds)


def test_padding_is_counted(tiny, priced):
    outcome = tiny("--steps", "7", "--samples", "20", "--batch-size", "8", "--no-probes", "--dry-run")
    assert seconds_of(outcome, "tiny-ddpm-7-seed0") == 3 * 7  # batches of 8, 8 and 4 + 4
    assert priced == [("tiny-ddpm-7-seed0", "free")]


def test_one_price_for_cells_of_a_kind(tiny, priced):
    outcome = tiny("--steps", "3,7", "--samples", "8", "--batch-size", "8", "--seeds", "0-2", "--dry-run")
    assert outcome.code == 0
    # From the longest walk of each kind, free-running and teacher-forced; 8 images stay in one batch of 8, the 40
    # teacher-forced ones in five.
    assert [(name[:11], arm) for name, arm in priced] == [("tiny-ddpm-7", "free"), ("tiny-ddpm-7", "forced")]
    forced = 5 * 3 + 3
    assert seconds_of(outcome, "tiny-ddpm-3-seed1") in (pytest.approx(forced), pytest.approx(forced + 1))


def test_remedies_have_prices_of_their_own(tiny, priced):
    flags = ("--models", "tiny,tiny-es", "--eps-scale", "1.01", "--no-probes")
    assert tiny(*flags, "--steps", "3", "--samples", "8", "--dry-run").code == 0
    assert [name for name, _ in priced] == ["tiny-ddpm-3-seed0", "tiny-es-ddpm-3-seed0"]


def test_measurements_with_calls_of_their_own(tiny, priced):
    outcome = tiny("--steps", "3", "--samples", "8", "--batch-size", "8", "--measure", "chains,response", "--dry-run")
    assert outcome.code == 0
    lines = {line.strip().split("  ")[0]: line for line in outcome.out.splitlines()}
    # 100 + 300 + 600 + 900 + 1000 calls of one batch.
    assert "to do, about 48 min" in lines["mean chains of tiny"]
    assert "to do, about" in lines["response of tiny at 3 steps"]
    assert "about" not in lines["baselines of cosine chains"]


def test_what_is_done_costs_nothing(tiny, priced):
    args = ("--steps", "3", "--samples", "8", "--no-probes")
    assert tiny(*args).code == 0
    outcome = tiny(*args, "--dry-run")
    assert priced == []
    assert re.search(r"tiny-ddpm-3-seed0 +24 network calls  done\n", outcome.out)
    assert "time      about 10 s here: about 0.1 s of sampling, about 0.1 s of scoring, about 10 s of" in outcome.out


def test_a_share_of_the_work_takes_its_share_of_the_time(tiny, priced):
    args = ("--steps", "10", "--samples", "8", "--batch-size", "4", "--no-probes", "--dry-run")
    around = 10.1  # start-up, tables and figures of one cell
    assert seconds_of(tiny(*args), "time") == pytest.approx(20 + around, abs=1)
    outcome = tiny(*args, "--shard", "0/4")
    assert seconds_of(outcome, "time") == pytest.approx(5 + around, abs=1)
    assert "both shared by 4 processes" in outcome.out


def test_images_that_cannot_be_scored_are_told(command, toml, priced, tmp_path):
    args = ("--config", toml, "--dataset", "pictures", "--models", "tiny", "--features", "inception", "--quiet")
    outcome = command(
        *args, "--inception-weights", tmp_path / "none.pth", "--steps", "2", "--samples", "4", "--dry-run"
    )
    assert outcome.code == 0
    assert "no scores: " in outcome.out


def test_the_dry_run_calls_networks_and_writes_nothing(tiny, tmp_path, monkeypatch):
    calls, real = [], Accelerated.__call__
    monkeypatch.setattr(Accelerated, "__call__", lambda self, *asked: calls.append(1) or real(self, *asked))
    assert tiny("--steps", "1000", "--samples", "128", "--dry-run").code == 0
    assert 2 <= len(calls) <= 200
    assert not (tmp_path / "out").exists()


def test_what_a_dry_run_says_is_what_a_run_takes(tiny, tmp_path):
    args = ("--steps", "100", "--samples", "32", "--batch-size", "16", "--compile", "off")
    said = seconds_of(tiny(*args, "--dry-run"), "tiny-ddpm-100-seed0")
    assert tiny(*args).code == 0
    took = json.loads((tmp_path / "out" / "cells" / "tiny-ddpm-100-seed0" / "metrics.json").read_text())["seconds"]
    # Loosely: other work of this machine may halve its speed between the two.
    assert 0.4 < said / took < 2.5


def test_disk_space(tiny, tmp_path):
    args = ("--steps", "20", "--samples", "64", "--features", "digits")
    said = re.search(r"disk      about ([\d.]+) (\w+)", tiny(*args, "--dry-run").out)
    assert tiny(*args).code == 0
    found = sum(path.stat().st_size for path in (tmp_path / "out" / "cells").rglob("*.np[yz]"))
    said = float(said[1]) * {"kB": 1e3, "MB": 1e6}[said[2]]
    assert 1.0 < said / found < 3  # cells, and while they are made as much again


@pytest.mark.slow
def test_the_total_is_within_a_fifth(tmp_path, capsys, monkeypatch):
    """Of a run of a minute, by the clock of this process, which other work of the machine does not move."""
    for module in (timing, cost):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=time.process_time))
    args = ["--models", "adm,adm-ip", "--steps", "20,50", "--seeds", "0-2", "--compile", "off", "--quiet"]
    args += ["--out", str(tmp_path / "out")]
    assert run([*args, "--dry-run"])[0] == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("time"))
    started = time.process_time()
    assert run(args)[0] == 0
    took = time.process_time() - started
    sampling, scoring = (read(part) for part in line.partition(": ")[2].split(",")[:2])
    assert abs(sampling + scoring - took) < 0.2 * took
