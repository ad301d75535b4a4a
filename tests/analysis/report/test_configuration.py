"""A run's settings, read from ``run.json`` whatever is in it, and never with a path of the machine."""

import json

import pytest

from analysis.report.configuration import read_configuration, without_paths

RECORD = {
    "configuration": {"models": {"adm": {"eps": [[1.0, 0.0]], "weights": "/mine/w.pt"}}, "steps": [5, 20]},
    "command": ["/suite/run_bench.py", "--out", "/mine/runs/first", "--models", "adm,mine=/mine/w.pt"],
    "packages": {"numpy": "2.4"},
    "device": "cpu",
    "end": None,
}


def test_the_settings_are_listed_without_paths(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    assert read_configuration(tmp_path) == {
        "Configuration": [("models.adm.eps", "[[1.0, 0.0]]"), ("models.adm.weights", "w.pt"), ("steps", "[5, 20]")],
        "Environment": [
            ("command", "run_bench.py --out first --models adm,mine=w.pt"),
            ("packages.numpy", "2.4"),
            ("device", "cpu"),
        ],
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--out=/a/b c/d", "--out=d"), ("C:\\runs\\first", "first"), ("~/runs/x", "x"), ("results/x", "results/x"),
        ("10,20", "10,20"), ("a=/b/c,d=/e/f", "a=c,d=f"), ("/", ""), ("", ""),
    ],
)  # fmt: skip
def test_paths_are_cut_to_their_last_part(text, expected):
    assert without_paths(text) == expected


@pytest.mark.parametrize("content", [None, "", "{", "[]", "null", "3", '"x"', "{}", "[" * 99999, b"\xff"])
def test_a_record_that_says_nothing(tmp_path, content):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_configuration(tmp_path) == {}


def test_a_record_of_other_shapes(tmp_path):
    (tmp_path / "run.json").write_text('{"configuration": 3, "command": "x", "a": [{"b": "/c/d"}], "e": {"": true}}')
    expected = {"Configuration": [("", "3")], "Environment": [("a", '[{"b": "d"}]'), ("e.", "true")]}
    assert read_configuration(tmp_path) == expected
