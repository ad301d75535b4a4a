from __future__ import annotations

import csv
import time
from dataclasses import replace

import pytest

from benchmarks.__main__ import PARTS, main
from benchmarks.comparison import HEADER, compare, line, ratios, write_csv
from benchmarks.network_share import share
from benchmarks.peak_memory import memory
from benchmarks.processes import processes


def test_a_ratio_is_theirs_over_ours(tiny):
    row = ratios("part", "what", "peer", [(1.0, 3.0), (2.0, 2.0), (4.0, 8.0)], tiny, unit="MiB", goal=1.5)
    assert (row.ours, row.theirs, row.ratio, row.low, row.high, row.pairs) == (2.0, 3.0, 2.0, 1.0, 3.0, 3)
    assert line(row) == "| part | what | peer | 2 | 3 | MiB | 2 | 1 to 3 | 1.5 |"
    assert line(row).count("|") == HEADER.splitlines()[0].count("|")


def test_pairs_are_interleaved_and_change_sides(tiny):
    called = []
    row = compare("p", "n", "q", lambda: called.append("o"), lambda: called.append("t"), tiny, pairs=3)
    assert "".join(called) == "ot" + "ot" + "to" + "ot"
    assert row.unit == "s"


def test_the_slower_side_has_the_larger_time(tiny):
    row = compare("p", "n", "q", lambda: None, lambda: time.sleep(0.02), tiny, images=4)
    assert row.theirs >= 1000 * 0.02 / 4 > row.ours
    assert row.unit == "ms/image"


def test_parts_measured_again_replace_their_rows(tmp_path, tiny):
    path = tmp_path / "new" / "performance.csv"
    first, second = (ratios(part, "what", "peer", [(1.0, 2.0)], tiny) for part in ("a", "b"))
    write_csv(path, [first, second])
    write_csv(path, [replace(first, name="again"), replace(first, name="other", device="GPU")])
    rows = list(csv.DictReader(path.open()))
    assert [(row["part"], row["name"], row["device"]) for row in rows] == [
        ("b", "what", "cpu"), ("a", "again", "cpu"), ("a", "other", "GPU"),
    ]  # fmt: skip
    assert not list(path.parent.glob(".*"))
    assert rows[0]["ratio"] == "2"
    assert rows[0]["goal"] == ""


def test_the_command_runs_one_part(tmp_path, capsys):
    main(["pixels", "--pairs", "1", "--out", str(tmp_path / "out.csv")])
    assert capsys.readouterr().out.count("| pixels |") == 2
    assert {row["part"] for row in csv.DictReader((tmp_path / "out.csv").open())} == {"pixels"}


@pytest.mark.parametrize("wrong", [["sampling", "speed"], ["--device", "abacus"], ["--steps", "3"], ["--pairs", "0"]])
def test_mistakes_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        main(wrong)
    told = capsys.readouterr().err
    assert any(word in told for word in ("'speed'", "'abacus'", "at least 1"))


def test_a_device_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "no cuda" in capsys.readouterr().err


def test_the_networks_share_is_a_share(tiny, capsys):
    rows = list(share(tiny))
    assert len(rows) == 2
    assert all(0 < row.low <= row.high < 1 for row in rows)
    assert "outside the network" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_grows_with_stored_states_alone(tiny):
    rows = list(memory(replace(tiny, size=16, counts=(128, 1280))))
    growth = rows[-1]
    # 1152 images x 3 x 16 x 16 floats x 20 steps are 67.5 MiB; ours keeps the pixels and what allocators round up.
    assert growth.theirs > 60
    assert growth.ours < 30
    assert len(rows) == 3


@pytest.mark.slow
def test_processes_give_a_row(tiny):
    (row,) = processes(tiny)
    assert row.ratio > 0


def test_every_part_is_named():
    assert list(PARTS) == ["sampling", "modes", "instruments", "share", "frechet", "pixels", "memory", "processes"]
