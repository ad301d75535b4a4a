import csv
import subprocess
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.__main__ import OUT, PARTS, main
from benchmarks.document import DOCUMENT, PUBLISHED
from benchmarks.speed.pixels import pixels

ROOT = Path(__file__).parents[2]


def test_the_command_runs_one_part(tmp_path, capsys, tiny, monkeypatch):
    monkeypatch.setitem(PARTS, "pixels", lambda setting: pixels(tiny))
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


def test_every_flag_and_part_of_the_document_exists(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--device" in capsys.readouterr().out
    assert all(f"| `{part}` |" in DOCUMENT.read_text() for part in PARTS)


def test_measurements_go_where_git_ignores_them_unless_they_are_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written, filled = [], []
    monkeypatch.setattr(command, "PARTS", {"none": lambda setting: iter(())})
    monkeypatch.setattr(command, "write_csv", lambda path, rows: written.append(path))
    monkeypatch.setattr(command, "fill", lambda: filled.append(True))
    main(["none"])
    assert (written, filled) == ([OUT], [])
    main(["none", "--publish"])
    assert (written, filled) == ([OUT, PUBLISHED], [True])
    ignored = subprocess.run(["git", "check-ignore", "-q", str(OUT)], cwd=ROOT)
    assert ignored.returncode in (0, 128)  # 128: not a git repository
