import numpy as np
import pandas as pd
import pytest
from made import drawn_texts, make_cell

from analysis.comparison import pairs
from analysis.comparison.pairs import analyse, counts_table, draw_pairs, pairs_table
from analysis.output.entries import Output
from analysis.records.load import load_results


def test_counts_over_step_counts():
    verdicts = {("a", "b"): ["win", "win", "tie"], ("b", "a"): ["loss", "loss", "tie"], ("a", "c"): ["tie", "loss"]}
    rows = [
        {"sampler": "ddpm", "steps": steps, "model": model, "other": other, "verdict": verdict}
        for (model, other), found in verdicts.items()
        for steps, verdict in enumerate(found)
    ]
    table = counts_table(pd.DataFrame(rows)).set_index("model")
    assert list(table.columns) == ["sampler", "a", "b", "all"]
    assert (table.loc["a", "b"], table.loc["b", "a"]) == ("2/1/0", "0/1/2")
    assert (table.loc["a", "all"], table.loc["b", "all"]) == ("2/2/1", "0/1/2")
    assert pd.isna(table.loc["a", "a"])


def test_counts_of_a_folder(folder, terms):
    for steps, level in ((10, 0.2), (20, 1.0), (50, 3.0)):
        folder.cell("a", steps, terms=terms(1.0, seed=1), probes=False)
        folder.cell("b", steps, terms=terms(level, seed=2), probes=False)
        folder.cell("b", steps, terms=terms(level, seed=2), sampler="ddim", probes=False)
    folder.cell("a", 10, terms=terms(9.0, seed=3), sampler="ddim", probes=False)
    table = counts_table(pairs_table(load_results(folder.root))).set_index(["sampler", "model"])
    assert table.loc[("ddpm", "a"), "b"] == "1/1/1"
    assert table.loc[("ddim", "b"), "a"] == "1/0/0"


@pytest.mark.parametrize("name", ["win_tie_loss_counts", "pairs"])
def test_both_tables_are_written(folder, terms, name):
    for model in ("a", "b"):
        folder.cell(model, terms=terms(1.0, seed=len(model)), probes=False)
    out = Output(folder.root)
    analyse(load_results(folder.root), out)
    assert name in {entry.name for entry in out.entries}
    assert (folder.root / "tables" / f"{name}.tex").exists()


def test_pairs_are_antisymmetric_and_find_the_closer_model(tmp_path):
    rng = np.random.default_rng(0)
    for model, shift in (("adm", 0.0), ("adm-ip", 0.5)):
        make_cell(tmp_path, model, kernel=np.stack([np.ones(300), 1 + shift + 0.1 * rng.standard_normal(300)], axis=1))
    table = pairs_table(load_results(tmp_path)).set_index(["model", "other"])
    assert table.loc[("adm-ip", "adm"), "verdict"] == "win"  # larger cross terms: closer to the reference
    assert table.loc[("adm", "adm-ip"), "verdict"] == "loss"
    assert table.loc[("adm", "adm-ip"), "z"] == -table.loc[("adm-ip", "adm"), "z"]


@pytest.mark.parametrize("counts", [{"ddim": 4, "ddpm": 8}, {"ddim": 8, "ddpm": 4}])
def test_the_figure_takes_the_ancestral_sampler(tmp_path, monkeypatch, counts):
    rng = np.random.default_rng(0)
    for model in ("adm", "adm-ip"):
        for sampler, steps in (*counts.items(), ("ddpm", 2)):
            make_cell(tmp_path, model, 0, sampler, steps, kernel=1 + rng.random((50, 2)))
    drawn = drawn_texts(monkeypatch, pairs)
    draw_pairs(pairs_table(load_results(tmp_path)), tmp_path)
    assert {"2 steps", f"{counts['ddpm']} steps"} <= set(drawn[0])
    assert f"{counts['ddim']} steps" not in drawn[0]
    assert any("Paired kernel test, ddpm" in text for text in drawn[0])


def test_a_folder_without_kernel_terms_has_no_pairs(tmp_path):
    make_cell(tmp_path, "adm")
    assert pairs_table(load_results(tmp_path)).empty
