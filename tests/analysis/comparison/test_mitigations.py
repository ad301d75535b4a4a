import math

import numpy as np
import pandas as pd
import pytest
from records import edited
from scipy import stats
from synthetic_results import assert_figures

from analysis.comparison import mitigations
from analysis.comparison.mitigations import mitigations_table
from analysis.comparison.paired_tests import compare
from analysis.exposure_bias.quality_correlation import diagnostics_table
from analysis.output.entries import Output
from analysis.records.arrays import cell_terms
from analysis.records.load import load_results
from analysis.regenerate import regenerate
from bench.suite.settings import short_hash

ES = {"eps_scale": 1.02, "eps_slope": 0.0}
COLUMNS = ["arm", "i", "stage", "t", "alpha", "sigma", "n", "quantity", "value", "std"]


@pytest.fixture
def cell(folder, terms):
    """Return a function that adds a cell with weights, corrections, costs and kernel terms of a level."""

    def make(model, level=1.0, value=1.0, steps=10, seed=0, sampler="ddpm", weights="w", cost=(100, 1.0), **more):
        own = None if level is None else terms(level, seed=100 * len(model) + seed)
        made = folder.cell(model, steps, seed, value, sampler, own, probes=False)
        with edited(made / "metrics.json") as facts:
            facts["cell"] |= {"weights": weights, "eps_scale": 1.0, "eps_slope": 0.0} | more
            facts |= {"key": short_hash(facts["cell"]), "network_calls": cost[0], "seconds": cost[1]}
        return made

    return make


def rows(folder):
    return mitigations_table(load_results(folder.root)).set_index(["sampler", "steps", "model"])


def test_a_row_by_hand(folder, cell):
    base, own = [1.0, 2.0, 1.5], [0.9, 1.6, 1.4]
    for seed in range(3):
        cell("adm", 1.0, base[seed], seed=seed, cost=(100, 1.0))
        cell("adm-es", 0.3, own[seed], seed=seed, cost=(100, 1.0 + seed), **ES)
    cell("adm", 5.0, 9.0, seed=7)  # not shared
    row = rows(folder).loc["ddpm", 10, "adm-es"]
    assert (row["kind"], row["baseline"], row["corrections"]) == ("sampling", "adm", "epsilon-scaling(b=1.02)")
    assert (row["metric"], row["seeds"]) == ("fd_toy", 3)
    assert (row["value"], row["baseline_value"]) == (pytest.approx(1.3), pytest.approx(1.5))
    assert (row["sd"], row["baseline_sd"]) == (pytest.approx(np.std(own, ddof=1)), pytest.approx(np.std(base, ddof=1)))
    ratio = 1.3 / 1.5
    error = np.std(np.array(own) - ratio * np.array(base), ddof=1) / math.sqrt(3) / 1.3
    wide = stats.t.ppf(0.975, 2) * error
    assert row[["ratio", "ratio_low", "ratio_high"]].tolist() == pytest.approx(
        [ratio, ratio * math.exp(-wide), ratio * math.exp(wide)]
    )
    found = cell_terms(load_results(folder.root))[10]
    del found["adm", "ddpm"][7]
    wanted = compare(found["adm-es", "ddpm"], found["adm", "ddpm"])
    assert (row["z"], row["delta"]) == (pytest.approx(wanted.z), pytest.approx(wanted.delta))
    assert (row["error"], row["verdict"], row["nfe"], row["calls_ratio"]) == (pytest.approx(wanted.error), "win", 10, 1)
    assert (row["call_time_ratio"], row["time_ratio"]) == (2, 2)  # the median over seeds


@pytest.mark.parametrize(
    ("levels", "verdict", "empty"),
    [
        ((1.0, 3.0), "loss", ["sd", "baseline_sd", "ratio_low", "ratio_high"]),  # kernels decide, not distances
        ((None, None), "", ["z", "p", "p_holm", "rank_low"]),  # without terms nothing is tested
    ],
)
def test_one_seed_has_a_test_but_no_spread(folder, cell, levels, verdict, empty):
    cell("adm", levels[0], 2.0)
    cell("adm-es", levels[1], 1.0, **ES)
    table = rows(folder).loc["ddpm", 10]
    row, base = table.loc["adm-es"], table.loc["adm"]
    assert (row["verdict"], row["ratio"]) == (verdict, 0.5)
    assert row[empty].isna().all()
    assert (base["kind"], base["baseline"], base["value"], base["verdict"]) == ("baseline", "", 2.0, "")
    assert base[["baseline_value", "ratio", "z", "calls_ratio", "time_ratio"]].isna().all()


def test_ties_stay_ties_and_equal_samples_are_one(folder, cell):
    for seed in range(2):
        made = cell("adm", 1.0, seed=seed), cell("adm-es", 1.0, seed=seed, **ES)
        (made[1] / "kernel.npy").write_bytes((made[0] / "kernel.npy").read_bytes())
    row = rows(folder).loc["ddpm", 10, "adm-es"]
    assert (row["verdict"], row["z"], row["p"], row["p_holm"]) == ("tie", 0, 1, 1)


def test_rows_are_sorted_and_ranked(folder, cell):
    for steps in (20, 10):
        for sampler in ("ddim", "ddpm"):
            cell("adm", 1.0, 2.0, steps, sampler=sampler)
            cell("adm-es", 0.2, 1.0, steps, sampler=sampler, **ES)
            cell("adm-ip", 1.9, 3.0, steps, sampler=sampler, weights="v")
    table = mitigations_table(load_results(folder.root))
    places = table[["sampler", "steps"]].drop_duplicates().to_numpy().tolist()
    assert places == [["ddpm", 10], ["ddpm", 20], ["ddim", 10], ["ddim", 20]]
    for _, own in table.groupby(["sampler", "steps"]):
        assert own["model"].tolist() == ["adm-es", "adm", "adm-ip"]
        assert own["rank_low"].tolist() == own["rank_high"].tolist() == [1, 2, 3]
    assert (table.loc[table["model"] == "adm-ip", ["kind", "verdict"]] == ["training", "loss"]).all(axis=None)


def test_holm_counts_every_comparison(folder, cell, monkeypatch):
    for steps in (10, 20, 50):
        cell("adm", 1.0, steps=steps)
        cell("adm-es", 1.0, steps=steps, **ES)
    numbers = iter([0.03, 0.5, 0.9])
    monkeypatch.setattr(mitigations, "p_value", lambda z: next(numbers))
    table = mitigations_table(load_results(folder.root)).dropna(subset="z")
    assert (table["p_holm"].tolist(), table["verdict"].tolist()) == (pytest.approx([0.09, 1, 1]), ["tie"] * 3)


@pytest.mark.parametrize("other", [{"variance": "fixed-small"}, {"eta": 1.0}, {"churn": 4.0}, {"classifier": "c"}])
def test_other_settings_are_not_compared(folder, cell, other):
    for seed in (0, 1):
        cell("adm", seed=seed)
        cell("adm-es", seed=seed, **ES, **(other if seed else {}))
    assert rows(folder).loc["ddpm", 10, "adm-es"]["seeds"] == 1


def test_without_distances_the_test_is_left(folder, cell):
    cell("adm", 1.0, None)
    cell("adm-es", 0.2, None, **ES)
    row = rows(folder).loc["ddpm", 10, "adm-es"]
    assert row["verdict"] == "win"
    assert row[["value", "sd", "baseline_value", "ratio"]].isna().all()
    regenerate(folder.root)
    assert not (folder.root / "figures" / "mitigations.png").exists()


@pytest.mark.parametrize("cost", [(None, None), (0, 1.0), (True, "x"), (100, float("inf"))])
def test_costs_that_are_no_numbers_stay_empty(folder, cell, cost):
    cell("adm", cost=cost)
    cell("adm-es", cost=(100, 1.0), **ES)
    row = rows(folder).loc["ddpm", 10, "adm-es"]
    assert math.isnan(row["call_time_ratio"])
    assert row["calls_ratio"] == 1


def steps_of(shift):
    """A walk of three steps whose norms and variances are off by ``shift``, a factor."""
    made = []
    for i, (ratio, exact) in enumerate([(0.8, 0.9), (1.3, 1.0), (1.1, 1.0)], start=-1):
        made += [
            [arm, i, 0, float(i + 1), 0.7, 0.7, 20, "variance_ratio", value, 0.1]
            for arm, value in (("free", ratio * shift), ("gaussian", exact))
        ]
    for i in range(2):
        norms = {"free": 2.0 * shift, "forced-train": 1.0, "forced-heldout": 2.0}
        made += [[arm, i, 0, float(i), 0.7, 0.7, 20, "eps_norm", value, 0.1] for arm, value in norms.items()]
    return pd.DataFrame(made, columns=COLUMNS)


def test_exposure_bias_before_and_after(folder, cell):
    for seed, shift in ((0, 1.0), (1, 1.1)):
        steps_of(shift).to_csv(cell("adm", seed=seed, steps=3) / "steps.csv", index=False)
        steps_of(2 * shift).to_csv(cell("adm-es", seed=seed, steps=3, **ES) / "steps.csv", index=False)
    row = rows(folder).loc["ddpm", 3, "adm-es"]
    assert row["variance_end_gap_before"] == pytest.approx(np.mean([0.8 - 0.9, 0.88 - 0.9]))
    assert row["variance_end_gap_before_error"] == pytest.approx(0.04)  # of two values half their difference
    assert row["variance_end_gap_after"] == pytest.approx(np.mean([1.6 - 0.9, 1.76 - 0.9]))
    assert row["eps_gap_heldout_signed_after"] == pytest.approx(math.log(2) + math.log(1.1) / 2)
    cells = diagnostics_table(load_results(folder.root)).groupby("model").mean(numeric_only=True)
    for name in ("variance_network", "eps_gap_heldout_signed"):  # what they mean there
        assert row[f"{name}_before"] == pytest.approx(cells.loc["adm", name])
        assert row[f"{name}_after"] == pytest.approx(cells.loc["adm-es", name])


def test_bias_without_held_out_images_where_training_images_serve_and_without_steps(folder, cell):
    cell("adm", steps=3)
    table = steps_of(1.0)
    table[table["arm"] != "forced-heldout"].to_csv(cell("adm-es", steps=3, **ES) / "steps.csv", index=False)
    row = rows(folder).loc["ddpm", 3, "adm-es"]
    assert math.isnan(row["variance_network_before"])
    assert row["variance_network_after"] == pytest.approx(0.5 / 3)
    assert row["eps_gap_signed_after"] == pytest.approx(math.log(2))


def test_everything_is_written(folder, cell):
    for steps in (10, 20):
        for seed in range(3):
            cell("adm", 1.0, 1.0 + 0.1 * seed, steps, seed)
            cell("adm-es", 0.3, 0.5 + 0.1 * seed, steps, seed, **ES)
            cell("adm-ip", 1.0, 1.0 + 0.2 * seed, steps, seed, weights="v")
    out = Output(folder.root)
    mitigations.analyse(load_results(folder.root), out)
    assert [entry.name for entry in out.entries] == ["mitigations", "mitigations"]
    captions = {entry.title: entry.caption for entry in out.entries}
    assert "all 4 comparisons of the table, 2 and 0 do" in captions["Every remedy against its baseline"]
    assert "Holm's correction for all 4 comparisons" in captions["Remedies against their baselines"]
    assert_figures([folder.root / "figures" / "mitigations.png"], "mitigations")
    tables = folder.root / "tables"
    assert "| 0.545 (" in (tables / "mitigations.md").read_text()
    assert "win" in (tables / "mitigations.tex").read_text()
    table = pd.read_csv(tables / "mitigations.csv", keep_default_na=False)
    assert (len(table), set(table["verdict"])) == (6, {"win", "tie", ""})


def test_nothing_is_written_without_a_remedy(folder, cell):
    cell("adm")
    cell("ddpm-y", weights="v")
    cell("adm-es", steps=20, **ES)  # where the baseline was not run
    out = Output(folder.root)
    mitigations.analyse(load_results(folder.root), out)
    assert out.entries == []
    assert list(out.tables.iterdir()) == list(out.figures.iterdir()) == []


def test_a_damaged_file_is_named_and_the_rest_is_compared(folder, cell):
    for seed in (0, 1):
        cell("adm", 1.0, seed=seed)
        made = cell("adm-es", 0.2, seed=seed, **ES)
    (made / "kernel.npy").write_bytes(b"nothing")
    results = load_results(folder.root)
    row = mitigations_table(results).set_index("model").loc["adm-es"]
    assert (row["verdict"], row["seeds"]) == ("win", 2)
    assert any("kernel.npy is damaged" in problem for problem in results.problems)
