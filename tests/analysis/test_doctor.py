"""What differs from the published rows: each setting a line, the largest first."""

import json
from dataclasses import replace

import pytest

from analysis.doctor import _EFFECTS, diagnose, differences, main, unpublished
from analysis.published.protocol import Protocol, published_rows
from analysis.records.load import load_results

CIFAR = {"dataset": "cifar10"}
PUBLISHED = Protocol("cifar10-train (50000)", "fid", 50_000, "ddpm", "learned", "floor", True, "plain")


def test_every_field_of_a_protocol_has_its_line():
    changes = {
        "reference": "cifar10-all (60000)", "metric": "clean_fid", "n": 1000, "sampler": "ddim", "variance": None,
        "quantize": "round", "clip": False, "spacing": "ddim", "conditional": None, "guidance": 2.0,
        "precision": "bf16",
    }  # fmt: skip
    assert set(changes) == set(_EFFECTS) == set(Protocol.__dataclass_fields__)
    assert list(differences(PUBLISHED, PUBLISHED)) == []
    lines = list(differences(replace(PUBLISHED, **changes), PUBLISHED))
    assert [line.partition(":")[0] for line in lines] == list(_EFFECTS)
    assert lines[1].startswith("n: 1000 here, 50000 there; ")


@pytest.mark.parametrize(
    ("dataset", "rows"),
    [("cifar10", True), ("cifar10-jpeg", True), ("imagenet64", True), ("digits", False), ("", False)],
)
def test_rows_of_a_dataset_are_found(dataset, rows):
    found = published_rows(dataset)
    assert bool(found) == rows
    assert all(protocol.metric in ("fid", "sfid") for _, protocol in found)


def test_a_run_beside_the_papers(folder):
    folder.cell("adm", steps=100, value=12.5, probes=False)
    results = load_results(folder.root)
    lines = list(diagnose(results, CIFAR))
    assert "ADM, 100 steps: FID 3.37" in "\n".join(lines)
    assert any("fd_toy here: adm 12.50" in line for line in lines)
    assert any(line.startswith("  metric: fd_toy here, fid there") for line in lines)
    assert any(line.startswith("  n: 20 here, 50000 there") for line in lines)
    assert list(diagnose(results, {"dataset": "digits"})) == ["no published row is of the dataset digits"]
    more = list(unpublished(results, CIFAR | {"preprocessing": "resize 32", "inception_weights": "abc"}))
    assert [line.partition(":")[0] for line in more] == ["preprocessing", "Inception weights", "checkpoint"]


def test_the_command_reads_a_folder_or_says_why_not(folder, capsys):
    folder.cell("adm", steps=100, probes=False)
    (folder.root / "run.json").write_text(json.dumps({"configuration": CIFAR}))
    assert main([str(folder.root)]) == 0
    assert "ADM-IP, 100 steps" in capsys.readouterr().out
    assert main([str(folder.root / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
