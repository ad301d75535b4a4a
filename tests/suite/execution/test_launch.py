"""Runs that are killed, interrupted, starved or damaged: the same command then completes them as if nothing was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from cases import at_first
from records import edited
from results_of_runs import assert_same_results
from survival import (
    CALL,
    PHASES,
    Job,
    break_at,
    die_at,
    done,
    fail_from,
    largest_file,
    no_analysis,
    partials_in,
    read_only_from,
    signal_at,
    signal_in_analysis,
    signal_when_stopping,
    small_shards,
    whole_command,
)  # fmt: skip

from analysis.records.checks import checksum
from bench.files.writing import partial_path

ROOT = Path(__file__).parents[3]
SHARDS = partial(small_shards, 8)
SMALL = ("--models", "adm", "--steps", "2,3", "--samples", "20", "--batch-size", "8", "--compile", "off", "--quiet")
CELLS = ("adm-ddpm-2-seed0", "adm-ddpm-3-seed0")
UNITS = 6  # of one such cell: three of samples, three of single steps
LONGER = (*SMALL, "--models", "adm,adm-es", "--steps", "3,5")
MEASURED = ("steps.csv", "moments.npz", "errors.npz")
STOPPED = "interrupted; the same command goes on where it stopped\n"
CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return a function that makes a run in one go, once, and returns its folder."""
    made = {}

    def make(argv=SMALL):
        if argv not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            assert done([*argv, "--out", folder / "run"], folder, SHARDS) == (0, "", "")
            made[argv] = folder / "run"
        return made[argv]

    return make


@pytest.fixture(scope="module")
def unmerged(tmp_path_factory):
    """A run that was killed when the units of its first cell were all done."""
    folder = tmp_path_factory.mktemp("unmerged")
    job = Job([*SMALL, "--out", folder / "run"], folder, (SHARDS,))
    assert job.until("merging")
    job.process.kill()
    assert job.end().code == -9
    return folder / "run"


@pytest.fixture
def completed(tmp_path, undisturbed):
    """Return a function that completes a run of this test and compares it with an undisturbed one."""

    def complete(out=tmp_path / "run", argv=SMALL, *patches):
        job = Job([*argv, "--out", out], tmp_path, (SHARDS, *patches))
        code, said, told = job.end()
        assert (code, said) == (0, "")
        assert all(line.startswith("note: damaged or edited, and computed again: ") for line in told.splitlines())
        assert_same_results(out, undisturbed(argv))
        return Counter(job.entered)

    return complete


def refused(outcome, *words):
    """Assert that a run ended with one line that has these words, and code 2."""
    assert outcome.refused(*words), outcome
    assert outcome.out == ""


# Kills


def kill(argv, out, room, moment):
    """Start a run and kill it: at a moment of a phase, or at a change to its files; return where, None if it ended."""
    phase, count, seconds = moment
    if phase == "file":
        job = Job([*argv, "--out", out], room, (SHARDS, partial(die_at, count, out)))
    else:
        job = Job([*argv, "--out", out], room, (SHARDS,))
        if not job.until(phase, count):
            assert job.end().code == 0
            return None
        job.process.join(seconds)
        job.process.kill()
    code, said, error = job.end()
    assert (said, error) == ("", "")
    assert code in (-9, 0)
    return job.phase if code else None


def moments(seed):
    """Yield random moments: half of them of the phases, by their entry and the seconds since, half changes to files."""
    chance = random.Random(seed)
    longest = {"sampling": 0.1, "writing": 0.005, "merging": 0.03, "scoring": 0.05}
    while True:
        phase = chance.choice(PHASES)
        yield phase, chance.randint(1, 3 if phase in ("sampling", "writing") else 1), chance.uniform(0, longest[phase])
        yield "file", chance.randint(1, 60), 0.0


def killed_run(argv, out, room, chosen):
    """Kill a run and start it again, moment by moment, then let it end; return where it was killed."""
    where = []
    for moment in chosen:
        found = kill(argv, out, room, moment)
        if found is None:
            break
        where.append(found)
    assert done([*argv, "--out", out], room, SHARDS) == (0, "", "")
    return where


@pytest.mark.parametrize("times", at_first([1, 2, 5], 1))
def test_a_run_killed_a_few_times_ends_as_if_nothing_was(tmp_path, undisturbed, times):
    assert len(killed_run(SMALL, tmp_path / "run", tmp_path, islice(moments(1), times))) == times
    assert_same_results(tmp_path / "run", undisturbed())


@pytest.mark.slow
def test_fifty_kills_over_a_set_of_runs_change_nothing(tmp_path, undisturbed):
    where, runs = [], 0
    while len(where) < 50:
        runs += 1
        where += killed_run(LONGER, tmp_path / str(runs), tmp_path, islice(moments(runs), 12))
        assert_same_results(tmp_path / str(runs), undisturbed(LONGER))
    print(f"{len(where)} kills over {runs} runs: {dict(Counter(where))}")
    assert set(PHASES) <= set(where)
    shutil.copytree(undisturbed(LONGER), tmp_path / "whole")
    assert tables(tmp_path / "1") == tables(tmp_path / "whole")


def tables(folder):
    """Return the tables that the analysis makes of a folder; some of them hold times, which are put aside."""
    for path in folder.glob("cells/*/metrics.json"):
        with edited(path) as facts:
            facts["seconds"] = 1.0
            facts["checksum"] = checksum(facts)
    assert subprocess.run([sys.executable, "-m", "analysis", folder, "--quiet"], cwd=ROOT).returncode == 0
    found = {path.name: path.read_bytes() for path in (folder / "tables").glob("*.csv")}
    assert len(found) > 20
    return found


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_and_costs_them_nothing(tmp_path, undisturbed):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    line = [*launcher, ROOT / "tests/suite/survival.py", *LONGER, "--out", tmp_path / "run"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests/shared", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("run/cells/*/shard-*")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = [int(child) for child in children if b"survival.py" in Path(f"/proc/{child}/cmdline").read_bytes()]
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    assert process.returncode
    assert "Signal 9" in said
    assert not list(tmp_path.glob("run/cells/adm-es-ddpm-5-seed0/metrics.json"))
    assert subprocess.run(line, env=environment, capture_output=True, timeout=300).returncode == 0
    for log in tmp_path.glob("run/log-rank-1.jsonl"):
        log.unlink()  # which a run of one process does not have
    assert_same_results(tmp_path / "run", undisturbed(LONGER))


# Damage


def flip(path, seed=0):
    """Change one byte of a file, somewhere."""
    content, chance = bytearray(path.read_bytes()), random.Random(f"{path.name} {seed}")
    content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
    path.write_bytes(content)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_a_flipped_byte_of_a_shard_costs_that_unit_alone(tmp_path, unmerged, completed, seed):
    files = sorted(shutil.copytree(unmerged, tmp_path / "run").glob("cells/*/shard-*/*"))
    assert len(files) == 2 * UNITS
    flip(random.Random(seed).choice(files), seed)
    assert completed()["sampling"] == 1 + UNITS  # of the other cell, which was not begun


@pytest.mark.parametrize(
    "name", ["samples.npz", "metrics.json", *(pytest.param(name, marks=pytest.mark.ci) for name in MEASURED)]
)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_a_flipped_byte_of_a_complete_cell_costs_that_cell_alone(tmp_path, undisturbed, completed, name, seed):
    shutil.copytree(undisturbed(), tmp_path / "run")
    flip(tmp_path / "run" / "cells" / CELLS[seed % 2] / name, seed)
    entered = completed()
    assert (entered["sampling"], entered["merging"], entered["scoring"]) == (UNITS, 1, 1)


def test_a_flipped_byte_of_scores_has_them_made_anew_without_sampling(tmp_path, undisturbed, completed):
    shutil.copytree(undisturbed(), tmp_path / "run")
    for cell, name in zip(CELLS, ("features.npz", "kernel.npy"), strict=True):
        flip(tmp_path / "run" / "cells" / cell / name)
    entered = completed()
    assert (entered["sampling"], entered["merging"], entered["scoring"]) == (0, 0, 2)


def test_what_is_left_by_a_process_that_died_when_all_was_done_goes(tmp_path, undisturbed, unmerged, completed):
    out = tmp_path / "run"
    shutil.copytree(undisturbed(), out)
    shutil.copytree(unmerged / "cells" / CELLS[0], out / "cells" / CELLS[0], dirs_exist_ok=True)
    for place in (out, out / "cells", out / "cells" / CELLS[1]):
        partial_path(place / "a.json").write_text("{")
    with edited(out / "run.json") as record:
        record |= {"end": None}
    assert not completed()
    assert json.loads((out / "run.json").read_text())["end"] is not None


# A file system that refuses


FULL = "No space left on device; free some space, then the same command goes on"
READ_ONLY = "Read-only file system; make it writable, then"
REFUSING = [
    ((20, 65), fail_from, FULL), ((30,), read_only_from, READ_ONLY), ((30_000,), largest_file, "File too large; "),
    pytest.param((1, 55), fail_from, FULL, marks=pytest.mark.ci),
    *(pytest.param((first,), fail_from, FULL, marks=pytest.mark.slow) for first in range(2, 125, 6)),
    *(pytest.param((first,), read_only_from, READ_ONLY, marks=pytest.mark.slow) for first in (1, 5, 62, 90)),
    *(pytest.param((size,), largest_file, "File too large; ", marks=pytest.mark.slow) for size in (1000, 5000, 10_000)),
]  # fmt: skip


@pytest.mark.parametrize(("numbers", "patch", "message"), REFUSING)
def test_a_file_system_that_refuses_is_one_line_and_costs_nothing(tmp_path, completed, numbers, patch, message):
    """A full disk or a read-only folder from some changes on, or a write that fails in the middle of a file."""
    out = tmp_path / "run"
    for number in numbers:
        refused(done([*SMALL, "--out", out], tmp_path, SHARDS, partial(patch, number, out)), message, out)
        assert patch is read_only_from or not partials_in(out)  # where nothing can be deleted either
        record = out / "run.json"
        assert patch is not read_only_from or not record.exists() or json.loads(record.read_text())["end"] is None
    completed()


# Others on the same folder, and what a run needs


@pytest.fixture
def held(tmp_path):
    """Return a function that starts a run in this test's folder and stops it in its tracks, to be continued."""
    jobs = []

    def hold(*more):
        room = tmp_path / "held"
        room.mkdir()
        job = Job([*SMALL, "--out", tmp_path / "run", *more], room, (SHARDS,))
        assert job.until("sampling", 2)
        job.send(signal.SIGSTOP)
        jobs.append(job)
        return job

    yield hold
    for job in jobs:
        job.process.kill()


def test_a_second_run_is_refused_and_the_first_goes_on(tmp_path, held, undisturbed):
    first, out = held(), tmp_path / "run"
    for more in ((), ("--shard", "1/2")):
        found = done([*SMALL, "--out", out, *more], tmp_path, SHARDS)
        refused(found, out, "is in use by another run; wait for it, stop it, or choose another --out")
    first.send(signal.SIGCONT)
    assert first.end() == (0, "", "")
    assert_same_results(out, undisturbed())


def test_a_share_runs_once_and_never_beside_a_whole_run(tmp_path, held, completed):
    first, out = held("--shard", "0/2"), tmp_path / "run"
    again = done([*SMALL, "--out", out, "--shard", "0/2"], tmp_path, SHARDS)
    refused(again, "--shard 0/2 is already running on", out)
    refused(done([*SMALL, "--out", out], tmp_path, SHARDS), out, "is in use by another run")
    assert done([*SMALL, "--out", out, "--shard", "1/2"], tmp_path, SHARDS).code == 0
    first.send(signal.SIGCONT)
    assert first.end().code == 0
    for log in out.glob("log-shard-*.jsonl"):
        log.unlink()  # which a whole run does not have
    assert not completed()


@pytest.mark.parametrize("lost", [pytest.param("tiny.safetensors", marks=pytest.mark.slow), "pictures.npz"])
def test_a_file_that_vanishes_is_one_line_and_costs_nothing(tmp_path, tiny_weights, pictures, lost):
    room, argv = tmp_path / "in", (*SMALL, "--models", "tiny", "--dataset", "pictures", "--features", "digits")
    room.mkdir()
    shutil.copy(tiny_weights, room / "tiny.safetensors")
    shutil.copy(pictures, room / "pictures.npz")
    toml = room / "bench.toml"
    toml.write_text(
        f'[models.tiny]\nweights = "{room}/tiny.safetensors"\n[datasets.pictures]\npath = "{room}/pictures.npz"\n'
    )
    argv = (*argv, "--config", toml)
    job = Job([*argv, "--out", tmp_path / "run"], tmp_path, (SHARDS,))
    assert job.until("merging")
    job.process.kill()
    job.end()
    (room / lost).rename(tmp_path / lost)
    shards = sorted(tmp_path.glob("run/cells/*/shard-*/*"))
    refused(done([*argv, "--out", tmp_path / "run"], tmp_path, SHARDS), room / lost)
    assert shards == sorted(tmp_path.glob("run/cells/*/shard-*/*"))
    (tmp_path / lost).rename(room / lost)
    job = Job([*argv, "--out", tmp_path / "run"], tmp_path, (SHARDS,))
    assert job.until("sampling")
    (room / lost).unlink()  # a run that works has read it
    assert job.end() == (0, "", "")
    shutil.copy(tiny_weights if lost == "tiny.safetensors" else pictures, room / lost)
    assert done([*argv, "--out", tmp_path / "whole"], tmp_path, SHARDS) == (0, "", "")
    assert_same_results(tmp_path / "run", tmp_path / "whole")


# Signals


MORE = [pytest.param(2, 130, (), marks=pytest.mark.ci), pytest.param(15, 143, (signal.SIGTERM,), marks=pytest.mark.ci)]


@pytest.mark.parametrize(
    ("number", "code", "more"), [(2, 130, (signal.SIGINT, signal.SIGINT)), (15, 143, (signal.SIGINT,)), *MORE]
)
def test_a_signal_ends_the_walk_within_its_step(tmp_path, completed, number, code, more):
    """Those that follow at once, or while the run ends, change nothing."""
    patches = (partial(signal_at, CALL, 7, number, *more), *(partial(signal_when_stopping, late) for late in more[:1]))
    job = Job([*SMALL, "--out", tmp_path / "run"], tmp_path, (SHARDS, *patches))
    assert job.end() == (code, "", STOPPED)
    assert job.entered.count(CALL) == 7
    if len(more) == 2:
        completed()


@pytest.mark.parametrize(("number", "code"), [CODES[0], pytest.param(*CODES[1], marks=pytest.mark.slow)])
def test_a_signal_while_scores_are_made(tmp_path, completed, number, code):
    patch = partial(signal_at, "scoring", 1, number)
    job = Job([*SMALL, "--out", tmp_path / "run"], tmp_path, (SHARDS, patch))
    assert job.end() == (code, "", STOPPED)
    assert completed()["sampling"] == UNITS  # of the other cell


@pytest.mark.parametrize(("number", "code"), [CODES[0], pytest.param(*CODES[1], marks=pytest.mark.ci)])
def test_a_signal_while_tables_are_made(tmp_path, undisturbed, number, code):
    shutil.copytree(undisturbed(), tmp_path / "run")
    patch = partial(signal_in_analysis, number)
    found = done([*SMALL, "--out", tmp_path / "run"], tmp_path, SHARDS, patch, command=whole_command)
    assert found == (code, "", STOPPED)


@pytest.mark.parametrize(("number", "code"), [CODES[0], pytest.param(*CODES[1], marks=pytest.mark.ci)])
def test_a_signal_while_python_imports(tmp_path, number, code):
    line = [sys.executable, "run_bench.py", *SMALL, "--out", tmp_path / "run"]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(1.0)  # Python starts in a small part of that, and imports for longer
        process.send_signal(number)
        assert process.communicate(timeout=60) == ("", STOPPED)
    assert process.returncode == code


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), CODES)
def test_signals_at_any_moment_and_in_any_number_are_one_line(tmp_path, undisturbed, number, code):
    chance = random.Random(code)
    for k in range(30):
        out = tmp_path / str(k)
        job = Job([*SMALL, "--out", out], tmp_path, (SHARDS,), command=whole_command)
        assert job.until("sampling", chance.randint(1, 2 * UNITS - 1))
        job.process.join(chance.uniform(0, 0.1))
        for _ in range(chance.randint(1, 3)):
            job.send(number)
            job.process.join(chance.choice([0, 0.001, 0.01]))
        assert job.end() == (code, "", STOPPED)
        if k % 6 == 0:
            assert done([*SMALL, "--out", out], tmp_path, SHARDS) == (0, "", "")
            assert_same_results(out, undisturbed())


# Values that are not finite


@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_a_prediction_that_is_not_finite_ends_its_cell_alone(tmp_path, undisturbed, completed, value):
    """The 8th network call, of batches of 8, is at the last level of the first cell's first batch of single steps."""
    out = tmp_path / "run"
    found = done(
        [*SMALL, "--out", out], tmp_path, SHARDS, partial(break_at, 8, value), no_analysis, command=whole_command
    )
    assert (found.code, found.out) == (2, f"analysed {out}\n")
    where = "error: model 'adm' at 2 steps, seed 0, gave values that are not finite, first at step i = 0 (t = 0); "
    assert found.err.startswith(where)
    assert found.err.count("\n") == 1
    assert [path.parent.name for path in out.glob("cells/*/metrics.json")] == [CELLS[1]]
    assert completed()["sampling"] == UNITS
