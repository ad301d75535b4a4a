"""Precision and what must not mix: keys, folders, tables; and that quality does not depend on it."""

import json

import numpy as np
import pytest

from analysis.comparison.paired_tests import compare
from analysis.published.protocol import _ours
from analysis.records.arrays import cell_terms
from analysis.records.load import load_results
from bench.suite.experiments.chains import plan_chains
from bench.suite.experiments.response import plan_response
from bench.suite.settings import ConfigError, short_hash

ADM = ("--models", "adm", "--features", "none", "--no-probes", "--quiet", "--steps", "5", "--samples", "16")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same cells in float32 and in bfloat16."""
    from bench.suite.cli import run

    root = tmp_path_factory.mktemp("precision")
    for precision in ("fp32", "bf16"):
        code, _ = run([*ADM, "--precision", precision, "--out", str(root / precision)])
        assert code == 0
    return root


def pixels(folder):
    with np.load(folder / "cells" / "adm-ddpm-5-seed0" / "samples.npz") as file:
        return file["arr_0"].astype(int)


def test_pixels_differ_a_little(folders):
    apart = np.abs(pixels(folders / "fp32") - pixels(folders / "bf16"))
    # A call errs by about 1 % of eps (2^-9 a layer, some 30 layers), and x0_hat of the last steps by as much of the
    # [-1, 1] scale: one or two grey levels of 255, ten where errors add up along five steps.
    assert 0 < apart.mean() < 4
    assert (apart > 0).mean() > 0.01


def test_precision_is_recorded_and_float32_leaves_no_trace(folders):
    records = {name: json.loads((folders / name / "run.json").read_text()) for name in ("fp32", "bf16")}
    assert records["bf16"]["configuration"]["precision"] == "bf16"
    assert "precision" not in records["fp32"]["configuration"]
    assert records["fp32"]["hash"] != records["bf16"]["hash"]
    cells = {name: load_results(folders / name).cells[0] for name in records}
    assert cells["bf16"].cell == {**cells["fp32"].cell, "precision": "bf16"}
    assert cells["bf16"].facts["key"] != cells["fp32"].facts["key"]


def test_cells_of_another_precision_are_left_out_of_tables(folders, tmp_path):
    for name, steps in (("fp32", 5), ("fp32", 6), ("bf16", 7)):
        source = next((folders / name / "cells").iterdir())
        target = tmp_path / "cells" / f"adm-ddpm-{steps}-seed0"
        target.mkdir(parents=True)
        record = json.loads((source / "metrics.json").read_text())
        del record["checksum"]  # which says that nothing was edited
        record["cell"]["steps"] = record["nfe"] = steps
        record["key"] = short_hash(record["cell"])
        (target / "metrics.json").write_text(json.dumps(record))
        (target / "samples.npz").write_bytes((source / "samples.npz").read_bytes())
    results = load_results(tmp_path)
    assert [record.cell["steps"] for record in results.cells] == [5, 6]
    assert "its precision is not that of the other cells" in results.problems[0]


def test_captions_say_so_and_published_numbers_are_of_float32(folders):
    assert load_results(folders / "bf16").account().endswith(", network calls in bf16")
    assert "network" not in load_results(folders / "fp32").account()
    score = {"reference": "cifar10-train (50000)", "metric": "fid", "n": 50_000}
    ours = [_ours(load_results(folders / name).cells[0].cell, score, False) for name in ("fp32", "bf16")]
    assert ours[0] != ours[1]


@pytest.mark.parametrize("plan", [plan_chains, plan_response])
def test_precision_is_part_of_every_key(make_cell, plan, tmp_path):
    plain, fast = (
        [folder for extra in plan([cell]) for folder in extra.folders(tmp_path) if "model" in folder.description]
        for cell in (make_cell(), make_cell(precision="bf16"))
    )
    assert plain
    for a, b in zip(plain, fast, strict=True):
        assert b.description == {**a.description, "precision": "bf16"}
        a.path.mkdir(parents=True)
        a.facts.write_text(json.dumps({"key": a.key, a.kind: a.description}))
        with pytest.raises(ConfigError, match="another precision \\('fp32', now 'bf16'\\)"):
            b.check()


def test_tf32_is_refused_where_it_does_nothing(command, tmp_path):
    args = (*ADM, "--out", tmp_path / "out", "--precision")
    assert command(*args, "tf32", "--device", "cpu").refused("--precision tf32 has no effect on cpu")
    assert command(*args, "bf61").refused("did you mean 'bf16'?")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_quality_is_that_of_float32(tmp_path, command):
    """The paired test of bfloat16 against float32, on the same noise, is a tie.

    The samples are the same images but for a grey level or two, so that the test is far sharper than between models.
    """
    terms = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        outcome = command(
            "--models", "adm", "--steps", "20", "--seeds", "0-4", "--samples", "256", "--features", "digits",
            "--no-probes", "--precision", precision, "--quiet", "--out", out,
        )  # fmt: skip
        assert outcome.code == 0
        terms[precision] = cell_terms(load_results(out))[20]["adm", "ddpm"]
    found = compare(terms["bf16"], terms["fp32"])
    assert found.seeds == 5
    assert found.error > 0
    assert abs(found.z) < 2
