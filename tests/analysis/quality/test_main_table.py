import math
import re

import numpy as np
import pandas as pd
import pytest
from records import edited

from analysis.comparison.baselines import find_remedies
from analysis.comparison.pairs import pairs_table
from analysis.output.entries import Output
from analysis.quality.main_table import errors_of, quality_table
from analysis.records.load import Results, load_results, main_metric
from analysis.report.html import build_report
from analysis.report.verdict import quality, quality_sentence


def table_of(folder):
    return quality_table(load_results(folder.root))


def bold(quality, steps):
    """Return which models are bold at a step count."""
    return {row["model"] for _, row in quality.table.iterrows() if row[f"{steps}_best"]}


def test_values_by_model_and_steps(folder):
    folder.cell("adm", 10, value=None)
    folder.cell("adm", 20, value=1.25)
    folder.cell("ip", 10, value=0.5)
    quality = table_of(folder)
    assert (quality.metric, list(quality.steps)) == ("fd_toy", [10, 20])
    assert dict(quality.nfe) == {("ddpm", 10): "10", ("ddpm", 20): "20"}
    table = quality.table.set_index("model")
    assert (table.loc["adm", "20"], table.loc["ip", "10"]) == (1.25, 0.5)
    assert table.loc[["adm", "ip"], ["10", "20"]].isna().to_numpy().tolist() == [[True, False], [False, True]]
    assert math.isnan(table.loc["adm", "20_sd"])
    # Scores that are empty are dashes.
    assert "| adm | ddpm | - | 1.250 |" in quality.markdown()
    assert "| ip | ddpm | 0.500 | - |" in quality.markdown()


# By model: distance, level of its terms or None without any, and seed.
TESTED = [
    ({"adm": (2.0, 1.0, 0)}, set()),  # a model alone is not called the best
    ({"a": (1.0, None, 0), "b": (1.0001, None, 0)}, set()),
    (
        {"best": (1.0, 1.0, 0), "close": (1.1, 1.001, 0), "worse": (1.2, 2.0, 0), "untested": (1, None, 0)},
        {"best", "close"},
    ),
    ({"far": (1.0, 1.0, 0), "near": (0.9, 0.1, 0), "as-near": (0.9, 0.1, 0)}, {"near", "as-near"}),
    ({"a": (1.0, 1.0, 0), "b": (1.1, 1.0, 1)}, set()),  # other seeds cannot be compared
]


@pytest.mark.parametrize(("models", "names"), TESTED)
def test_what_was_tested_and_is_not_beaten_is_bold(folder, terms, models, names):
    for position, (model, (value, level, seed)) in enumerate(models.items()):
        own = None if level is None else terms(level, seed=position)
        folder.cell(model, value=value, seed=seed, terms=own)
    quality = table_of(folder)
    assert bold(quality, 10) == names
    assert ("**" in quality.markdown()) == bool(names)


def test_each_column_has_its_own_best(folder, terms):
    for model, levels in {"a": (0.1, 1.0), "b": (1.0, 0.1)}.items():
        for steps, level in zip((10, 20), levels, strict=True):
            folder.cell(model, steps, value=level, terms=terms(level, seed=len(model) + steps + (model == "a")))
    quality = table_of(folder)
    assert (bold(quality, 10), bold(quality, 20)) == ({"a"}, {"b"})


def test_the_standard_error_stands_behind_a_distance(folder, terms):
    cell = folder.cell("adm", 10, value=2.0, terms=terms(1.0))
    halves = np.random.default_rng(0).normal(size=(20, 2))
    np.savez(cell / "influence.npz", frechet=halves)
    quality = table_of(folder)
    wanted = (halves.mean(1).var(ddof=1) + max(np.cov(halves.T)[0, 1], 0)) / 40
    assert quality.table["10_error"].item() == pytest.approx(wanted**0.5)
    assert quality.entry(quality.table.iloc[0], 10) == f"2.000 ± {wanted**0.5:.3f}"
    assert "mean ± standard error, 1 seed" in quality.caption
    results = load_results(folder.root)
    errors = errors_of(results)[results.metrics["metric"] == quality.metric]
    assert errors.tolist() == [pytest.approx(wanted**0.5)]


def test_several_seeds_give_mean_and_spread(folder):
    for seed, value in enumerate((1.0, 2.0, 4.0)):
        folder.cell("adm", 10, seed, value)
    quality = table_of(folder)
    row = quality.table.iloc[0]
    assert (row["10"], row["10_sd"]) == (pytest.approx(7 / 3), pytest.approx(pd.Series([1.0, 2.0, 4.0]).std()))
    assert quality.entry(row, 10) == "2.333 ± 1.528"
    assert "mean ± std over 3 seeds" in quality.caption
    assert "2.333 $\\pm$ 1.528" in quality.latex()


@pytest.mark.parametrize(
    ("names", "metric"),
    [
        (["nn_ratio", "fd_digits_inf", "fd_digits", "sfd_digits"], "fd_digits"),
        (["nn_ratio", "fid", "fid_inf", "sfid"], "fid"),
        (["sfid"], None),
    ],
)
def test_main_metric(names, metric):
    assert main_metric(pd.DataFrame({"metric": names, "value": 1.0})) == metric


def test_the_kernel_distance_stands_in_for_a_frechet_distance_that_no_cell_has(folder):
    """As of 1000 samples with Inception: a table of dashes would be all that a run gives."""
    for model, value in (("a", 0.0123), ("b", 0.02)):
        with edited(folder.cell(model, value=None) / "metrics.json") as facts:
            row = facts["scores"][0]
            facts["scores"] += [
                row | {"metric": f"kid_toy{end}", "value": v} for end, v in (("", value), ("_error", 0.001))
            ]
    quality = table_of(folder)
    assert quality.metric == "kid_toy"
    assert "| a | ddpm | 0.01230 ± 0.00100 |" in quality.markdown()
    assert quality.caption.endswith(" It stands in for fd_toy: too few images.")
    folder.cell("c", value=1.0)
    assert table_of(folder).metric == "fd_toy"


def test_caption_says_what_was_measured(folder):
    folder.cell("a", value=1.0)
    alone = table_of(folder).caption
    folder.cell("b", value=2.0)
    both = table_of(folder).caption
    for text in (alone, both):
        assert "fd_toy against toy-train (30)" in text
        assert "N = 20 samples a seed, 1 seed" in text
    assert "paired" in both
    assert "paired" not in alone


def test_samplers_are_rows_of_their_own_and_network_calls_are_told_by_sampler_where_they_differ(folder):
    for sampler in ("heun", "euler"):
        for steps in (7, 11):
            folder.cell("edm", steps, sampler=sampler)
    quality = table_of(folder)
    assert quality.table[["model", "sampler"]].to_numpy().tolist() == [["edm", "euler"], ["edm", "heun"]]
    assert sorted(quality.feet()) == [["NFE", "euler", "7", "11"], ["NFE", "heun", "13", "21"]]
    assert quality.markdown().splitlines()[-2:] == ["| NFE | euler | 7 | 11 |", "| NFE | heun | 13 | 21 |"]


@pytest.fixture
def grid(folder, terms):
    for model in ("adm", "a_b-c.d_e"):
        for steps in (10, 100):
            folder.cell(model, steps, value=0.1 * len(model), terms=terms(float(len(model))))
    return table_of(folder)


def test_markdown_is_well_formed(grid):
    lines = grid.markdown().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert lines[:2] == [grid.caption, ""]
    assert {row.count("|") for row in rows} == {2 + len(grid.steps) + 1}
    assert (rows[0], set(rows[1])) == ("| model | sampler | 10 steps | 100 steps |", set("|- "))
    assert rows[-1] == "| NFE |  | 10 | 100 |"
    assert "| adm | ddpm | **0.300** | **0.300** |" in rows
    assert "| a_b-c.d_e | ddpm | 0.900 | 0.900 |" in rows


def test_latex_is_well_formed(grid):
    text = grid.latex()
    assert text.startswith("% " + grid.caption + "\n")
    assert text.count("{") == text.count("}")
    for environment in re.findall(r"\\begin\{(\w+)\}", text):
        assert f"\\end{{{environment}}}" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + 2 + 1  # header, two models, network calls
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {1 + len(grid.steps)}
    assert r"adm & ddpm & \textbf{0.300} & \textbf{0.300} \\" in text
    assert r"a\_b-c.d\_e & ddpm & 0.900" in text


def test_a_model_whose_description_does_not_fit_is_marked_and_never_best(folder, terms, monkeypatch):
    """It would win alone: the other is not beaten by it, and no pair, verdict or remedy has it."""
    for model, level in (("adm", 1.0), ("adm-wrong", 0.1), ("adm-es", 1.0)):
        folder.cell(model, value=level, terms=terms(level, seed=len(model)))
    folder.order("adm-wrong", "adm", "adm-es")
    monkeypatch.setattr(Results, "misfits", {"adm-wrong": "at sigma 1 the slope is 0.50 ± 0.01, not 1"})
    results = load_results(folder.root)
    table = quality_table(results)
    assert bold(table, 10) == {"adm", "adm-es"}
    assert "| adm-wrong (!) | ddpm | 0.100 |" in table.markdown()
    assert "(!): the description does not fit" in table.caption
    assert [(pair["model"], pair["other"]) for _, pair in pairs_table(results).iterrows()] == [("adm-es", "adm")]
    assert [remedy.model for remedy in find_remedies(results)] == ["adm-es"]
    finding = quality(results)
    assert (finding.baseline, finding.models, finding.lowest[:6]) == ("adm", 2, "1.000,")
    assert "Left out, since the description does not fit: adm-wrong." in quality_sentence(finding, "")
    page = build_report(results, Output(folder.root))
    assert page.index("What does not fit its description") < page.index("Main table")
    assert "adm-wrong (!)" in page
