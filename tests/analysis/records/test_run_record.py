"""What run.json may hold: what the suite writes, and nothing else."""

import json

import pytest
from refusals import refusal
from synthetic_results import run_record

from analysis.__main__ import main
from analysis.doctor import main as doctor
from analysis.records.run_record import read_run

GOOD = run_record()


def changed(**values):
    """Return the text of the record with keys replaced; None removes one."""
    return json.dumps({name: value for name, value in (GOOD | values).items() if value is not ...})


BAD = {
    "empty": ("", "damaged"),
    "truncated": (changed()[:200], "damaged"),
    "bytes": (b"\xff\xfe", "damaged"),
    "nested": ("[" * 99999, "nested too deeply"),
    "list": ("[]", "no table of settings"),
    "nothing": ("{}", "no 'configuration'"),
    "a missing key": (changed(hash=...), "no 'hash'"),
    "an unknown key": (changed(verzion=2), "'verzion' is unknown"),
    "a wrong type": (changed(configuration=3), "configuration is 3"),
    "a number as text": (changed(batch_size="8"), "batch_size is '8'"),
    "a switch as number": (changed(processes=True), "processes is True"),
    "no models": (changed(configuration={}), "configuration has no 'models'"),
    "a model of another type": (
        changed(configuration=GOOD["configuration"] | {"models": {"adm": 3}}), "is no table"
    ),
    "a data set of another type": (
        changed(configuration=GOOD["configuration"] | {"dataset": 3}), "configuration.dataset is 3"
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", [changed(), changed(left_out=["x"], warnings=["y"]), '{"records_sha256": "a"}'])
def test_what_the_suite_writes_is_read(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert read_run(tmp_path) == json.loads(text)


def test_a_folder_may_be_without_one(tmp_path):
    assert read_run(tmp_path) == {}


@pytest.mark.parametrize("name", BAD)
def test_damage_is_named(tmp_path, name):
    text, message = BAD[name]
    (tmp_path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    advice = "run again, or delete it to draw without it"
    assert advice in refusal(ValueError, read_run, tmp_path, match=message)


@pytest.mark.parametrize("command", [main, doctor])
def test_commands_end_with_one_line(tmp_path, capsys, command):
    (tmp_path / "cells").mkdir()
    (tmp_path / "run.json").write_text(changed(verzion=2))
    assert command([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'run.json'} is damaged ('verzion' is unknown")


def test_a_file_for_a_folder_is_no_damage(tmp_path, capsys):
    (tmp_path / "run.json").write_text(changed())
    assert main([str(tmp_path / "run.json")]) == 2
    assert "run.json is not a results folder" in capsys.readouterr().err


def test_a_folder_for_the_file_is_named(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(ValueError, match=r"is damaged \(Is a directory\)"):
        read_run(tmp_path)
