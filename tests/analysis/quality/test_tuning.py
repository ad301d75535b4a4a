import math

import numpy as np
import pandas as pd
import pytest
from cases import at_first
from synthetic_results import assert_figures, drawn_texts

from analysis.quality import tuning
from analysis.quality.tuning import draw_tuning, read_curves, tuning_table
from analysis.records.load import Results
from analysis.regenerate import regenerate

VALUES = {0.99: [3.0, 5.0], 1.0: [1.0, 2.0], 1.01: [1.5, 2.1]}  # distances of two seeds


def curve(root, distances=VALUES, model="adm-es", sampler="ddpm", steps=10, parameter="b", metric="fd_toy", **more):
    """Write a curve as ``--tune`` does, and return its path."""
    place = {"model": model, "sampler": sampler, "steps": steps, "parameter": parameter}
    made = [
        place | {"value": value, "seed": 10 + seed, "n": 64, "metric": metric, "distance": distance} | more
        for value, found in distances.items()
        for seed, distance in enumerate(found)
    ]
    (root / "tuning").mkdir(parents=True, exist_ok=True)
    path = root / "tuning" / f"{model}-{sampler}-{steps}-{parameter}.csv"
    pd.DataFrame(made).to_csv(path, index=False)
    return path


def choose(root, *rows):
    names = ["model", "sampler", "steps", "parameter", "value"]
    pd.DataFrame(rows or [("adm-es", "ddpm", 10, "b", 1.004)], columns=names).to_csv(
        root / "tuning" / "chosen.csv", index=False
    )


def read(root):
    results = Results(root, [])
    return tuning_table(*read_curves(results)), results.problems


def test_a_curve_by_hand(tmp_path):
    curve(tmp_path)
    choose(tmp_path)
    table, problems = read(tmp_path)
    assert (problems, table["value"].tolist()) == ([], [0.99, 1.0, 1.01])
    assert table["distance"].tolist() == pytest.approx([4.0, 1.5, 1.8])
    assert table["sd"].tolist() == pytest.approx([math.sqrt(2), math.sqrt(0.5), math.sqrt(0.18)])
    assert table["difference"].tolist() == pytest.approx([2.5, 0, 0.3])
    # Differences 2 and 3, and .5 and .1: the standard error of a mean of two is half their distance.
    assert table["difference_error"].tolist() == pytest.approx([0.5, 0, 0.2])
    assert table["best"].tolist() == ["no", "yes", "no"]
    assert (table["chosen"] == 1.004).all()
    assert (table[["seeds", "n"]] == [2, 64]).all(axis=None)


def test_differences_are_over_shared_seeds(tmp_path):
    curve(tmp_path, {1.0: [1.0, 1.0, 1.0], 1.1: [2.0, 4.0]})
    choose(tmp_path)
    row = read(tmp_path)[0].iloc[1]
    assert (row["difference"], row["difference_error"], row["seeds"]) == (2.0, 1.0, 2)


def test_distances_that_could_not_be_computed_are_left_out_and_one_seed_has_no_error(tmp_path):
    curve(tmp_path, {1.0: [1.0, math.nan], 1.1: [2.0, 4.0], 1.2: [math.nan, math.nan]})
    choose(tmp_path)
    table, problems = read(tmp_path)
    assert (table["value"].tolist(), table["seeds"].tolist(), problems) == ([1.0, 1.1], [1, 2], [])
    assert table["difference_error"].isna().all()
    assert_figures(draw_tuning(table, tmp_path / "figures"), "tuning")


def test_curves_are_sorted_by_steps_as_numbers(tmp_path):
    for steps in (100, 20):
        curve(tmp_path, steps=steps)
    choose(tmp_path, *(("adm-es", "ddpm", steps, "b", 1.0) for steps in (20, 100)))
    assert read(tmp_path)[0]["steps"].drop_duplicates().tolist() == [20, 100]


DAMAGE = [
    (lambda text: text.replace("distance", "far"), "no column 'distance'"),
    (lambda text: text.splitlines()[0], "no rows"),
    (lambda text: "", "No columns"),
    (lambda text: text.replace("0.99", "much"), "row 2 has no sound value"),
    (lambda text: text.replace("fd_toy,3.0", "fd_toy,inf"), "row 2 has no sound distance"),
    (lambda text: text.replace("fd_toy,5.0", "fd_toy,far"), "row 3 has no sound distance"),
    (lambda text: text.replace(",64,", ",1e30,"), "row 2 has no sound n"),
    (lambda text: text.replace(",64,", ",0,"), "row 2 has no sound n"),
    (lambda text: text.replace(",11,", ",10,"), "same row twice"),
    (lambda text: text.replace(",10,b", ",20,b"), "it is the record of adm-es-ddpm-20-b"),
    (lambda text: text.replace("10,b,1.01", "20,b,1.01"), "several curves"),
    (lambda text: text.replace("fd_toy", ""), "row 2 has no sound metric"),
    (lambda text: text.replace("fd_toy", "a\x1b[31m"), "row 2 has no sound metric"),
    (lambda text: '"' + text, "damaged"),
    (lambda text: "\0\xff" * 50, "damaged"),
]


@pytest.mark.parametrize(("change", "reason"), DAMAGE)
def test_damaged_curves_are_named_on_one_line(tmp_path, change, reason):
    path = curve(tmp_path)
    curve(tmp_path, steps=50)
    choose(tmp_path, ("adm-es", "ddpm", 50, "b", 1.0))
    path.write_text(change(path.read_text()))
    table, problems = read(tmp_path)
    assert (table["steps"].unique().tolist(), len(problems)) == ([50], 1)
    assert problems[0].startswith(f"{path} is damaged and left out (")
    assert reason in problems[0]
    assert "\n" not in problems[0]


def test_curves_without_any_distance_are_named(tmp_path):
    curve(tmp_path, {1.0: [math.nan]})
    choose(tmp_path)
    table, problems = read(tmp_path)
    assert len(table) == 0
    assert "it has no distances" in problems[0]
    assert "names adm-es-ddpm-10-b, of which there is no sound curve" in problems[1]


UNCHOSEN = [
    (None, "is missing"),
    ("model,sampler\nadm,ddpm\n", "no column 'steps'"),
    ("model,sampler,steps,parameter,value\nadm-es,ddpm,10,b,\n", "row 2 has no sound value"),
    ("model,sampler,steps,parameter,value\n" + 2 * "adm-es,ddpm,10,b,1.0\n", "same row twice"),
]


@pytest.mark.parametrize(("text", "reason"), UNCHOSEN)
def test_without_chosen_values_the_curve_is_drawn_and_that_is_said(tmp_path, text, reason):
    curve(tmp_path)
    if text is not None:
        (tmp_path / "tuning" / "chosen.csv").write_text(text)
    table, problems = read(tmp_path)
    assert table["chosen"].isna().all()
    assert len(problems) == 1
    assert reason in problems[0]
    assert_figures(draw_tuning(table, tmp_path / "figures"), "tuning")


@pytest.mark.parametrize("curves", at_first([4, 1, 2, 5], 2))
def test_figure(tmp_path, curves, monkeypatch):
    rng, counts = np.random.default_rng(0), [10 * (k + 1) for k in range(curves)]
    for steps in counts:
        curve(tmp_path, {0.99 + 0.005 * k: 1 + rng.random(3) for k in range(8)}, steps=steps)
    choose(tmp_path, *(("adm-es", "ddpm", steps, "b", 1.0042) for steps in counts))
    table, _ = read(tmp_path)
    assert_figures(draw_tuning(table, tmp_path / "figures"), "tuning")
    drawn = drawn_texts(monkeypatch, tuning)
    draw_tuning(table, tmp_path)
    assert {f"adm-es\nddpm, {steps} steps: b = 1.0042" for steps in counts} <= set(drawn[0])
    assert {"b", "fd_toy", "lowest", "the value taken"} <= set(drawn[0])


def test_everything_is_written(folder):
    folder.cell(probes=False)
    curve(folder.root)
    choose(folder.root)
    (folder.root / "tuning" / ".half.csv").write_text("written")
    assert regenerate(folder.root).problems == []
    made = {path.name for part in ("tables", "figures") for path in (folder.root / part).iterdir()}
    assert {"tuning.csv", "tuning.md", "tuning.tex", "tuning.png"} <= made
    text = (folder.root / "tables" / "tuning.md").read_text()
    assert "two standard errors of the difference" in text
    assert "N = 64 samples a seed, 2 seeds a value" in text
