import json

import numpy as np
import pandas as pd
import pytest
from records import edited

from analysis.records.load import ResultsError, frechet_name, load_results, score_name
from bench.files.writing import sha256_of, write_record
from bench.measure.features.extractors import _metric_names
from bench.suite.settings import short_hash


def left_out(folder):
    """Return the one problem of a folder whose one sound cell is that of adm."""
    results = load_results(folder.root)
    assert [record.cell["model"] for record in results.cells] == ["adm"]
    (problem,) = results.problems
    assert problem.isprintable()
    return problem


STEPS = "arm,i,stage,t,alpha,sigma,n,quantity,value,std\nfree,0,0,1,0.5,0.5,3,eps_norm,2,0.1\n"
DAMAGE = {
    "half json": '{"key": "0", "cell": {"mod',
    "empty": "",
    "list": "[]",
    "nested": "[" * 100_000,
    "no cell": '{"scores": [], "nfe": 1}',
    "no scores": '{"cell": {"model": "m", "sampler": "ddpm", "steps": 1, "seed": 0}, "nfe": 1}',
    "no seed": '{"cell": {"model": "m", "sampler": "ddpm", "steps": 1}, "scores": [], "nfe": 1}',
}


def test_a_folder_without_results(tmp_path):
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ResultsError, match="not a results folder"):
            load_results(root)


def test_a_folder_without_a_complete_cell(folder):
    (folder.root / "cells" / "adm-ddpm-10-seed0" / "shard-free-0-8").mkdir(parents=True)
    with pytest.raises(ResultsError, match=r"no complete cell: .*adm-ddpm-10-seed0 is incomplete"):
        load_results(folder.root)


def test_complete_cells_are_read(folder):
    first = folder.cell("adm", 10, 0, 1.5)
    folder.cell("adm", 20, 1, 2.5)
    results = load_results(folder.root)
    assert results.problems == []
    assert [record.key() for record in results.cells] == [
        {"model": "adm", "sampler": "ddpm", "steps": 10, "seed": 0},
        {"model": "adm", "sampler": "ddpm", "steps": 20, "seed": 1},
    ]
    assert results.cells[0].facts == json.loads((first / "metrics.json").read_text())


BAD_FACTS = {
    "model a number": {"cell": {"model": 3, "sampler": "ddpm", "steps": 1, "seed": 0}},
    "steps a text": {"cell": {"model": "m", "sampler": "ddpm", "steps": "1", "seed": 0}},
    "seed a half": {"cell": {"model": "m", "sampler": "ddpm", "steps": 1, "seed": 0.5}},
    "cell a list": {"cell": ["model", "sampler", "steps", "seed"]},
    "cell nothing": {"cell": None},
    "nfe nothing": {"nfe": None},
    "nfe a word": {"nfe": "many"},
    "scores a number": {"scores": 3},
    "scores texts": {"scores": ["fid"]},
    "score without a value": {"scores": [{"metric": "fid", "reference": "r", "n": 3}]},
    "score without a name": {"scores": [{"value": 1.0, "reference": "r", "n": 3}]},
    "score a word": {"scores": [{"metric": "fid", "value": "low", "reference": "r", "n": 3}]},
    "score a list": {"scores": [{"metric": "fid", "value": [1.0], "reference": "r", "n": 3}]},
    "score of nothing": {"scores": [{"metric": "fid", "value": 1.0, "reference": "r", "n": None}]},
    "score beyond floats": {"scores": [{"metric": "fid", "value": 10**400, "reference": "r", "n": 3}]},
    "score not finite": {"scores": [{"metric": "fid", "value": float("nan"), "reference": "r", "n": 3}]},
    "score twice": {"scores": [{"metric": "fid", "value": v, "reference": "r", "n": 3} for v in (1.0, 2.0)]},
    "files a list": {"files": ["samples.npz"]},
    "files nothing": {"files": None},
}


@pytest.mark.parametrize("damage", [*DAMAGE.values(), *BAD_FACTS.values()], ids=[*DAMAGE, *BAD_FACTS])
def test_a_damaged_cell_is_named_and_left_out(folder, damage):
    folder.cell()
    path = folder.cell("bad") / "metrics.json"
    facts = json.loads(path.read_text())
    path.write_text(damage if isinstance(damage, str) else json.dumps(facts | damage))
    assert "bad-ddpm-10-seed0 is damaged" in left_out(folder)


@pytest.mark.parametrize("name", ["samples.npz", "steps.csv", "kernel.npy"])
@pytest.mark.parametrize("damage", ["gone", "cut", "longer"])
def test_a_cell_whose_files_changed_is_left_out(folder, terms, name, damage):
    folder.cell()
    bad = folder.cell("bad", terms=terms(1.0))
    folder.seal(bad)
    assert load_results(folder.root).problems == []
    content = (bad / name).read_bytes()
    if damage == "gone":
        (bad / name).unlink()
    else:
        (bad / name).write_bytes(content[:-1] if damage == "cut" else content + b" ")
    assert f"bad-ddpm-10-seed0 is damaged and left out ({name} is missing or has been changed)" in left_out(folder)


def test_models_come_by_name_or_in_the_order_of_the_run_after_those_that_were_there_before(folder):
    for model in ("b", "a", "c"):
        folder.cell(model, 10)
        folder.cell(model, 5)

    def found():
        return [(record.cell["model"], record.cell["steps"]) for record in load_results(folder.root).cells]

    assert found() == [(model, steps) for steps in (5, 10) for model in "abc"]
    folder.order("c", "a")
    assert found() == [(model, steps) for model in "bca" for steps in (5, 10)]


def test_files_of_the_same_size_with_other_content_are_named(folder):
    cell = folder.cell("adm", 10, 0, 1.5)
    np.save(cell / "kernel.npy", np.arange(3.0))
    folder.seal(cell)
    with edited(cell / "metrics.json") as facts:
        facts["sha256"] = {name: sha256_of(cell / name) for name in facts["files"]}
    sound = load_results(folder.root)
    assert (len(sound.steps) > 0, sound.cells[0].array("kernel.npy").tolist(), sound.problems) == (True, [0, 1, 2], [])
    np.save(cell / "kernel.npy", np.arange(1.0, 4.0))
    text = (cell / "steps.csv").read_text()
    (cell / "steps.csv").write_text(f"{text[:-2]}{'1' if text[-2] != '1' else '2'}\n")
    results = load_results(folder.root)
    assert results.steps.empty
    results.each(lambda record: record.array("kernel.npy"))
    assert [problem.removeprefix(f"{cell}/") for problem in results.problems] == [
        f"{name} is damaged (its sha256 is not the one in metrics.json); delete the cell and run again"
        for name in ("steps.csv", "kernel.npy")
    ]


def test_metrics_are_long(folder):
    folder.cell("adm", 10, 0, 1.5)
    folder.cell("adm", 10, 1, None)
    table = load_results(folder.root).metrics
    columns = ["model", "sampler", "steps", "nfe", "seed", "n", "reference", "metric", "value", "reason"]
    assert (list(table.columns), len(table)) == (columns, 4)
    row = table[(table["metric"] == "fd_toy") & (table["seed"] == 0)].iloc[0]
    assert (row["value"], row["nfe"], row["n"], row["reference"]) == (1.5, 10, 20, "toy-train (30)")
    empty = table[(table["metric"] == "fd_toy") & (table["seed"] == 1)].iloc[0]
    assert np.isnan(empty["value"])
    assert empty["reason"] == "too few images"


def test_steps_carry_the_cells_key(folder):
    folder.cell("ip", 5, 0, probes=False)
    assert len(load_results(folder.root).steps) == 0
    folder.cell("adm", 3, 0)
    folder.cell("adm", 3, 1)
    table = load_results(folder.root).steps
    assert (set(table["seed"]), set(table["model"]), set(table["steps"])) == ({0, 1}, {"adm"}, {3})


def test_arrays_are_unpacked_all_or_chosen(folder, terms):
    cell = folder.cell(terms=terms(1.0))
    np.savez(cell / "moments.npz", a=np.arange(3), i=np.arange(4))
    record = load_results(folder.root).cells[0]
    np.testing.assert_array_equal(record.array("kernel.npy"), terms(1.0))
    assert record.arrays("samples.npz")["arr_0"].shape == (20, 8, 8, 3)
    assert record.arrays("features.npz") is None
    assert list(record.arrays("moments.npz", lambda name: name == "a")) == ["a"]
    assert list(record.moments) == ["i"]
    assert record.array_names("moments.npz") == ["a", "i"]


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04 half", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize(("name", "read"), [("kernel.npy", "array"), ("samples.npz", "arrays")])
def test_damaged_arrays_are_named(folder, name, read, content):
    cell = folder.cell()
    (cell / name).write_bytes(content)
    with pytest.raises(ResultsError, match=f"{name} is damaged"):
        getattr(load_results(folder.root).cells[0], read)(name)


def test_a_table_that_several_analyses_read_is_made_once(folder):
    folder.cell()
    results, calls = load_results(folder.root), []

    def make(given):
        calls.append(given)
        return "table"

    assert [results.once(make), results.once(make)] == ["table", "table"]
    assert calls == [results]


@pytest.mark.parametrize("change", [{"steps": 0}, {"samples": 0}, {"seed": -1}, {"samples": 10**30}, {"model": "a\nb"}])
def test_a_cell_that_no_run_makes_is_left_out(folder, change):
    folder.cell()
    bad = folder.cell("bad", probes=False)
    with edited(bad / "metrics.json") as facts:
        cell = facts["cell"] | change
        facts |= {"cell": cell, "key": short_hash(cell), "nfe": cell["steps"]}
    bad.rename(bad.with_name("{model}-{sampler}-{steps}-seed{seed}".format(**cell)))
    assert f"({next(iter(change))} is " in left_out(folder)


def test_a_score_cannot_rename_its_cell(folder):
    cell = folder.cell("adm")
    with edited(cell / "metrics.json") as facts:
        facts["scores"][0] |= {"model": "other", "seed": "x", "nfe": 0}
    table = load_results(folder.root).metrics
    assert (set(table["model"]), set(table["seed"]), set(table["nfe"])) == ({"adm"}, {0}, {10})


def test_a_cell_of_heun_has_two_calls_a_step_but_for_the_last(folder):
    sound = folder.cell("edm", 10, sampler="heun")
    assert load_results(folder.root).metrics["nfe"].unique().tolist() == [19]
    with edited(sound / "metrics.json") as facts:
        facts |= {"nfe": 10}
    folder.cell("edm-es", 10, sampler="heun")
    results = load_results(folder.root)
    assert [record.cell["model"] for record in results.cells] == ["edm-es"]
    assert "nfe is 10 at 10 steps of heun" in results.problems[0]


def test_rows_of_a_correcting_call_are_left_out(folder):
    path = folder.cell("edm", 10, sampler="heun") / "steps.csv"
    table = pd.read_csv(path)
    again = table[table["quantity"] == "eps_norm"].assign(stage=1, value=9e9)
    pd.concat([table, again]).to_csv(path, index=False)
    loaded = load_results(folder.root).cells[0].steps()
    assert len(loaded) == len(table)
    assert loaded["value"].max() < 9e9


STEP_DAMAGE = {
    **dict.fromkeys(["", "a,b\n1,2\n", "arm,i,t,value\nfree,x,1,2\n", '"open quote', STEPS.replace("0.1", "wide")]),
    **dict.fromkeys([STEPS.splitlines()[0] + "\n", STEPS + "1," * 20 + "\n"]),
    "n a word": ("n", "many"), "n infinite": ("n", "inf"), "std infinite": ("std", "-inf"), "no arm": ("arm", ""),
    "half a step": ("i", "1.5"), "stage a word": ("stage", "x"), "too large": ("value", "1e300"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "entry"), STEP_DAMAGE.items())
def test_a_damaged_step_table_is_named_and_its_cell_left_out(folder, text, entry):
    folder.cell()
    bad = folder.cell("bad")
    if entry:
        table = pd.read_csv(bad / "steps.csv", dtype=str, keep_default_na=False)
        table.loc[3, entry[0]] = entry[1]
        text = table.to_csv(index=False)
    (bad / "steps.csv").write_text(text)
    results = load_results(folder.root)
    assert set(results.steps["model"]) == {"adm"}
    (problem,) = results.problems
    assert f"{bad}/steps.csv is damaged (" in problem
    assert problem.endswith("delete the cell and run again")
    assert problem.isprintable()


KINDS = [("", ""), ("", "_inception"), ("clean_", ""), ("clean_", "_inception"), ("", "_digits"), ("", "_cifar10")]


@pytest.mark.parametrize(("prefix", "suffix"), KINDS)
def test_every_name_of_the_suite_is_known(prefix, suffix):
    names = _metric_names(prefix, suffix)
    derived = [f"{names['frechet']}{ending}" for ending in ("_inf", "_exact", "_exact_sd")]
    present = ["nn_ratio", *derived, names["spatial"], *names.values()]
    assert frechet_name(present) == names["frechet"]
    assert ("fid" in names["frechet"]) == (not suffix)  # only published weights make one
    assert score_name(present, "precision") == names["precision"]
    assert score_name(present, "recall") == names["recall"]
    assert score_name(present, "is") == names["inception_score"]


def test_nothing_is_made_of_other_scores():
    others = ["nn_ratio", "sfid", "kid", "fid_inf", "sfd_digits", "clean_sfid"]
    assert frechet_name(others) is None
    assert score_name(others, "recall") is None
    assert score_name(others, "is") is None


@pytest.mark.parametrize("kind", ["edited", "renamed"])
def test_an_edited_score_and_a_name_that_no_run_gives_are_left_out(folder, kind):
    folder.cell("adm")
    path = folder.cell("other" if kind == "edited" else "<b>x<b>") / "metrics.json"
    write_record(path, json.loads(path.read_text()))
    if kind == "edited":
        path.write_text(path.read_text().replace('"value": 1.0', '"value": 0.001'))
    results = load_results(folder.root)
    assert [record.cell["model"] for record in results.cells] == ["adm"]
    assert ("its numbers were edited" if kind == "edited" else "which is no name") in results.problems[0]
