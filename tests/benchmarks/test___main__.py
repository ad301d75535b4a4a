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


WRONG = {
    "sampling speed": "'speed'", "--device abacus": "'abacus'", "--device cuda": "no cuda", "--steps 3": "at least 1",
    "--pairs 0": "at least 1",
}  # fmt: skip


@pytest.mark.parametrize("flags", WRONG)
def test_mistakes_are_refused(flags, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        main(flags.split())
    assert WRONG[flags] in capsys.readouterr().err


def test_every_flag_and_part_of_the_document_exists(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--device" in capsys.readouterr().out
    assert all(f"| `{part}` |" in DOCUMENT.read_text() for part in PARTS)


def test_measurements_go_where_git_ignores_them_unless_they_are_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written, filled = [], []
    monkeypatch.setattr(command, "PARTS", {"none": lambda setting: ()})
    monkeypatch.setattr(command, "write_csv", lambda path, rows: written.append(path))
    monkeypatch.setattr(command, "fill", lambda: filled.append(True))
    main(["none"])
    assert (written, filled) == ([OUT], [])
    main(["none", "--publish"])
    assert (written, filled) == ([OUT, PUBLISHED], [True])
    ignored = subprocess.run(["git", "check-ignore", "-q", str(OUT)], cwd=ROOT)
    assert ignored.returncode in (0, 128)  # 128: not a git repository
