"""What differs from the published rows: each setting a line, the largest first."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from synthetic_results import run_record

from analysis.doctor import _EFFECTS, diagnose, differences, main, unpublished
from analysis.published import protocol
from analysis.published.protocol import Protocol, published_rows
from analysis.published.tables import load_published
from analysis.records.load import load_results

CIFAR = {"dataset": "cifar10"}
PUBLISHED = Protocol("cifar10-train (50000)", "fid", 50_000, "ddpm", "learned", "floor", True, "plain")


def test_every_setting_has_its_line():
    changes = {
        "reference": "cifar10-all (60000)", "metric": "clean_fid", "n": 1000, "sampler": "ddim", "variance": None,
        "quantize": "round", "clip": False, "spacing": "ddim", "conditional": None, "guidance": 2.0,
        "precision": "bf16", "eta": 0.5, "churn": 1.0, "resize": "clean-fid's", "inception": "another file",
    }  # fmt: skip
    assert set(changes) == set(_EFFECTS) >= set(Protocol.__dataclass_fields__)
    theirs = dict.fromkeys(_EFFECTS, 0) | asdict(PUBLISHED)
    assert list(differences(theirs, theirs)) == []
    lines = list(differences(changes, theirs))
    assert [line.partition(":")[0] for line in lines] == list(_EFFECTS)
    assert lines[1].startswith("n: 1000 here, 50000 there; ")
    assert list(differences(changes, {"n": 1000})) == []  # what is not stated cannot differ


@pytest.mark.parametrize(
    ("ours", "theirs", "differs"),
    [
        ({"sampler": "ddpm"}, "stochastic", False), ({"sampler": "ddim", "eta": 0.0}, "stochastic", True),
        ({"sampler": "ddim", "eta": 0.5}, "stochastic", False), ({"sampler": "heun"}, "deterministic", False),
        ({"sampler": "heun"}, "euler", True),
    ],
)  # fmt: skip
def test_samplers_that_are_stated_by_kind(ours, theirs, differs):
    assert bool(list(differences(ours, {"sampler": theirs}))) == differs


@pytest.mark.parametrize(
    ("dataset", "rows"),
    [
        ("cifar10", True), ("cifar10-jpeg", True), ("imagenet64", True), ("lsun-tower64", True), ("digits", False),
        ("", False), ("cifar10-16", False), ("lsun", False),
    ],
)  # fmt: skip
def test_rows_of_a_dataset_are_found(dataset, rows):
    found = published_rows(dataset)
    assert bool(found) == rows
    assert all(row.metric in ("FID", "sFID", "Recall") for row in found)


def test_every_table_with_distances_has_rows():
    datasets = ["cifar10", "imagenet32", "imagenet64", "imagenet128", "lsun-tower64", "celeba64", "ffhq128"]
    sources = {row.source for dataset in datasets for row in published_rows(dataset)}
    folder = Path(protocol.__file__).parent
    tables = {path.stem for path in folder.glob("*.csv") if not path.stem.startswith("delta_t")}
    assert {name for name in tables if set(load_published(name)["source"]) & sources} == tables


def test_what_a_row_states():
    rows = published_rows("cifar10")
    edm = next(row for row in rows if row.model == "EDM" and row.value == 1.97)
    assert (edm.steps, edm.settings["sampler"], edm.settings["conditional"]) == (18, "heun", False)
    ddim = next(row for row in rows if row.model == "DDIM-IP" and row.value == 3.95)
    assert (ddim.settings["eta"], "n" in ddim.settings) == (0.5, False)  # by which evaluator is not said
    scheduled = next(row for row in rows if row.model == "ADM-IP, gamma 0.1")
    assert (scheduled.steps, scheduled.training) == (100, "140k iterations")
    tower = {row.settings.get("precision") for row in published_rows("lsun-tower64") if row.steps == 80}
    assert tower == {"fp16"}


def test_a_run_beside_the_papers(folder):
    folder.cell("adm", steps=100, value=12.5, probes=False)
    results = load_results(folder.root)
    lines = list(diagnose(results, CIFAR))
    assert "ADM, 100 steps: FID 3.37" in "\n".join(lines)
    assert any("fd_toy here: adm 12.50" in line for line in lines)
    assert any(line.startswith("  metric: fd_toy here, fid there") for line in lines)
    assert any(line.startswith("  n: 20 here, 50000 there") for line in lines)
    assert any(line.startswith("  not stated there: n, reference") for line in lines)
    assert any(
        line.startswith("EDM-ES, FID at step counts that were not run here: 1.95 at 18, 2.24 at 11") for line in lines
    )
    assert "  sFID was not computed here" in lines
    assert list(diagnose(results, {"dataset": "digits"})) == ["no published row is of the dataset digits"]
    more = list(unpublished(results, CIFAR | {"preprocessing": "resize 32", "inception_weights": "abc"}))
    assert [line.partition(":")[0] for line in more] == ["preprocessing", "Inception weights", "checkpoint"]


def test_the_command_reads_a_folder_or_says_why_not(folder, capsys):
    folder.cell("adm", steps=100, probes=False)
    (folder.root / "run.json").write_text(json.dumps(run_record(CIFAR)))
    assert main([str(folder.root)]) == 0
    assert "ADM-IP, 100 steps" in capsys.readouterr().out
    assert main([str(folder.root / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_where_nobody_reads_its_output_it_ends_without_a_word():
    root = Path(__file__).parents[2]
    line = [sys.executable, "-m", "analysis.doctor", root / "results" / "cifar10"]
    with subprocess.Popen(line, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE
