"""The table of every score, precision and recall, and the error of x0_hat."""

import numpy as np
import pandas as pd
import pytest
from records import edited
from synthetic_results import score

from analysis.exposure_bias.x0_error import error_table
from analysis.output.entries import Output
from analysis.quality import main_table as quality
from analysis.quality.excess import excess_table
from analysis.quality.main_table import draw_quality, quality_table
from analysis.quality.scores import analyse, score_table
from analysis.records.load import load_results


def add_scores(cell, *scores):
    with edited(cell / "metrics.json") as facts:
        facts["scores"] += scores


@pytest.fixture
def scored(folder):
    """Two models, two step counts, two seeds, with precision and recall."""
    for model, level in (("adm", 0.8), ("adm-ip", 0.6)):
        for steps in (10, 20):
            for seed in (0, 1):
                cell = folder.cell(model, steps, seed, value=1.0 + seed)
                add_scores(
                    cell, score("precision_toy", level + 0.1 * seed, 20), score("recall_toy", level, 20),
                    score("fd_toy_exact", 0.75, 20), score("fd_toy_exact_sd", 0.125, 20),
                )  # fmt: skip
    return folder


def test_scores_are_averaged_over_seeds(scored):
    table = score_table(load_results(scored.root).metrics).set_index(["metric", "model", "steps"])
    row = table.loc[("precision_toy", "adm", 10)]
    assert (row["mean"], row["seeds"], row["n"]) == (pytest.approx(0.85), 2, 20)
    assert row["sd"] == pytest.approx(0.1 / np.sqrt(2))
    assert table.loc[("recall_toy", "adm-ip", 20), "sd"] == pytest.approx(0, abs=1e-12)


def test_without_precision_and_recall_there_is_the_table_alone(folder):
    folder.cell()
    out = Output(folder.root)
    analyse(load_results(folder.root), out)
    assert [entry.name for entry in out.entries] == ["scores"]


def test_scores_that_could_not_be_computed_give_no_figure(folder):
    cell = folder.cell(value=None, probes=False)
    add_scores(cell, score("clean_precision", None, 2, "too few"), score("clean_recall", None, 2, "too few"))
    results, out = load_results(folder.root), Output(folder.root)
    analyse(results, out)
    quality.analyse(results, out)
    assert [entry.name for entry in out.entries] == ["scores", "fid_vs_steps"]
    assert not list((folder.root / "figures").iterdir())


@pytest.mark.parametrize("names", [("precision", "recall"), ("clean_precision", "clean_recall")])
def test_coverage_by_any_features_is_drawn_and_the_inception_score_explained(folder, names):
    cell = folder.cell(probes=False)
    add_scores(cell, *(score(name, 0.5, 20) for name in names), score(names[0].replace("precision", "is"), 9.7, 20))
    out = Output(folder.root)
    analyse(load_results(folder.root), out)
    assert [entry.name for entry in out.entries] == ["scores", "precision_recall"]
    assert (folder.root / "figures" / "precision_recall.png").stat().st_size > 1000
    assert f"and {names[0].replace('precision', 'is')}: higher is better" in out.entries[0].caption


def test_the_distance_of_exact_samples_is_told_and_is_no_metric_of_its_own(scored, tmp_path):
    quality = quality_table(load_results(scored.root))
    assert (quality.metric, set(quality.exact.values())) == ("fd_toy", {(0.75, 0.125)})
    assert "Exact sampler: as many images drawn at random from the data, mean ± std over draws." in quality.caption
    assert quality.feet()[0][:3] == ["exact sampler", "", "0.750 ± 0.125"]
    excess = excess_table(quality)
    assert np.allclose(excess["excess"], excess["distance"] - 0.75)
    assert np.allclose(excess["ratio"], excess["distance"] / 0.75)
    assert len(excess) == quality.table[[f"{steps}" for steps in quality.steps]].notna().to_numpy().sum()
    assert len(draw_quality(quality, tmp_path)) == 1


def test_step_counts_with_fewer_seeds_are_named(folder):
    for steps, seeds in ((10, 3), (50, 1)):
        for seed in range(seeds):
            folder.cell("adm", steps, seed)
    assert "mean ± std over 3 seeds (1 at 50 steps)" in quality_table(load_results(folder.root)).caption


def test_errors_of_x0_hat_stand_in_one_row(exact_steps):
    steps = exact_steps("exact")
    table = error_table(steps)
    assert (set(table["arm"]), len(table)) == ({"forced-train", "forced-heldout"}, 40)
    # An exact denoiser's error at a single step is the closed form's: sqrt(mean of 16 posterior variances). The mean of
    # 4000 squared errors has a relative standard error of at most sqrt(2 / 4000) = .022, half of that for the root.
    exact = steps[(steps["arm"] == "gaussian-forced") & (steps["quantity"] == "x0_rmse")].set_index("i")["value"]
    train = table[table["arm"] == "forced-train"].set_index("i")["rmse"]
    assert np.allclose(train, exact.reindex(train.index), rtol=5 * 0.011)
    assert pd.notna(table["bias"]).all()
