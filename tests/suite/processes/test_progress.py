"""What a run says while it works: a line for people, JSON lines for machines."""

import json
import re
import threading
from datetime import UTC, datetime, timedelta

import pytest
from suite_ranks import command as suite_command
from suite_ranks import launch

from bench.suite.processes import progress as module
from bench.suite.processes.progress import Progress, log_path
from bench.suite.processes.ranks import Share, Team

RUN = ("--models", "adm", "--steps", "2,3", "--samples", "24", "--batch-size", "8", "--compile", "off")
RUN += ("--features", "none")
CELLS = ["adm-ddpm-2-seed0", "adm-ddpm-3-seed0"]
CALLS = 24 * (2 + 3) + 24 * (2 + 3) + 76 * (2 + 3)  # the samples, 24 forced images and 76 more for their errors


def events(path, measurements=False):
    """Return a log's lines, each of which must be a JSON object; those of measurements beside the cells on request."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(isinstance(event, dict) for event in found)
    return [event for event in found if measurements or event["event"] != "measurement"]


def line_of(err):
    """Return the last state of the progress line."""
    return err.replace("\n", "\r").rstrip("\r").split("\r")[-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What a run says, the folder it leaves, and the times between which it ran."""
    out, began = tmp_path_factory.mktemp("progress") / "out", datetime.now(UTC) - timedelta(milliseconds=1)
    code, _, said = suite_command(*RUN, "--out", str(out))
    assert code == 0
    return out, said, began, datetime.now(UTC)


# --- the progress line --------------------------------------------------------------------------------------------


STATE = r"100%.*\[\d\d:\d\d<00:00, +[\d.]+k?call/s, cells 2/2, [\d.e+]+ images/s\]"


def assert_complete(line):
    """The whole run is done: all its calls and cells, so many images a second, and no time left."""
    assert re.search(STATE, line), line
    assert f"{CALLS}/{CALLS}" in line.replace(".00", "")
    assert float(re.search(r"([\d.e+]+) images/s", line)[1]) > 0


def test_the_line_shows_calls_cells_speed_and_the_time_left(finished):
    states = finished[1].splitlines()
    assert "0%|" not in finished[1]  # a file, here, where a bar cannot be written over
    assert f"0/{CALLS}" in states[0]
    assert_complete(states[-1])


def test_the_line_counts_what_all_ranks_do(tmp_path):
    found = launch(2, suite_command, *RUN, "--out", str(tmp_path / "out"))
    assert [code for code, _, _ in found] == [0, 0]
    assert_complete(line_of(found[0][2]))
    assert found[1][1:] == ("", "")


@pytest.mark.parametrize(
    ("flags", "shown"), [(("--quiet",), False), (("--no-progress",), False), (("--quiet", "--progress"), True)]
)
def test_the_line_can_be_switched(tmp_path, command, flags, shown):
    found = command(*RUN, "--steps", "2", "--no-probes", *flags, "--out", tmp_path / "out")
    assert (found.code, "call/s" in found.err) == (0, shown)
    assert shown or found.err == ""


def test_a_run_goes_on_from_what_was_done_and_appends_to_its_log(tmp_path, command, monkeypatch, interrupting):
    monkeypatch.setattr("bench.suite.plan.SHARD", 8)
    log = tmp_path / "out" / "log.jsonl"
    with interrupting(2 * 3 + 1):  # the 24 samples of the first cell
        assert command(*RUN, "--out", tmp_path / "out").code == 130
    begun = ["start", *["unit"] * 3, "interrupted"]
    assert [event["event"] for event in events(log)] == begun
    with log.open("a") as file:
        file.write('{"time": "2026-')  # of a process that was killed while it wrote
    found = command(*RUN, "--out", tmp_path / "out")
    assert found.code == 0
    assert f"{24 * 2}.0/{CALLS}" in found.err.splitlines()[0]
    assert_complete(line_of(found.err))
    assert [event["event"] for event in events(log)][: len(begun) + 1] == [*begun, "start"]


# --- the log --------------------------------------------------------------------------------------------------------


def test_the_log_tells_what_happened_in_order(finished):
    out, _, began, ended = finished
    found = events(out / "log.jsonl")
    kinds = [event["event"] for event in found]
    assert kinds == ["start", *["unit"] * 3, "cell", *["unit"] * 3, "cell", "end"]
    times = [datetime.fromisoformat(event["time"]) for event in found]
    assert times == sorted(times)
    assert began <= times[0]
    assert times[-1] <= ended
    assert {event["rank"] for event in found} == {0}
    assert (found[0]["calls"], found[0]["cells"], found[0]["processes"]) == (CALLS, 2, 1)
    assert [event["cell"] for event in found if event["event"] == "cell"] == CELLS
    for cell in CELLS:
        units = [event for event in found if event["event"] == "unit" and event["cell"] == cell]
        assert [event["images"] for event in units] == [24, 24, 76]
        assert all(event["seconds"] >= 0 for event in units)
        assert units[0]["unit"] == "shard-free-00000000-00000024"
        written = json.loads((out / "cells" / cell / "metrics.json").read_text())["scores"]
        (done,) = (event for event in found if event["event"] == "cell" and event["cell"] == cell)
        assert done["scores"] == {score["metric"]: score["value"] for score in written if score["value"] is not None}
    assert found[-1]["failures"] == 0


def test_a_cell_that_is_given_up_is_logged(tmp_path, command):
    args = ("--models", "adm-es", "--eps-scale", "1e-300", "--no-clip", "--steps", "2", "--samples", "8", "--quiet")
    assert command(*args, "--out", tmp_path / "out").code == 2
    found = events(tmp_path / "out" / "log.jsonl")
    assert [event["event"] for event in found] == ["start", "failed", "end"]
    assert found[1]["name"] == "adm-es-ddpm-2-seed0"
    assert "not finite" in found[1]["why"]
    assert found[2]["failures"] == 1


def test_measurements_are_logged(tmp_path, command, toml):
    args = ("--models", "tiny", "--dataset", "pictures", "--config", toml, "--features", "none", "--steps", "1")
    args += ("--samples", "2", "--measure", "response", "--quiet", "--compile", "off")
    assert command(*args, "--out", tmp_path / "out").code == 0
    found = events(tmp_path / "out" / "log.jsonl", measurements=True)
    assert [event["name"] for event in found if event["event"] == "measurement"] == ["response of tiny at 1 steps"]


LOGS = [
    (None, 0, "log.jsonl"), (None, 3, "log-rank-3.jsonl"), (Share(0, 4), 0, "log-shard-0-of-4.jsonl"),
    (Share(3, 4), 0, "log-shard-3-of-4.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("share", "rank", "name"), LOGS)
def test_every_process_has_a_log_of_its_own(tmp_path, share, rank, name):
    team = Team(share)
    team.rank = rank
    assert log_path(tmp_path, team) == tmp_path / name


# --- the watch itself -----------------------------------------------------------------------------------------------


def test_counts_of_several_threads_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_EXCHANGE_EVERY", 0.0)  # exchange at every call
    progress = Progress(Team(), (4000, 0), (4, 0), tmp_path / "log.jsonl", shown=False)

    def work():
        for _ in range(1000):
            progress.calls(1)
            progress.images(2)
        progress.cell()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress.close()
    assert [progress.team.add(name, 0) for name in ("calls", "images", "cells")] == [4000, 8000, 4]
