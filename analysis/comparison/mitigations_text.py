"""The comparison of remedies for readers: a table of few columns, one of ranks, and their captions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

BIAS: Mapping[str, str] = {
    "variance_end_gap": "Var(x) / true variance of the finished samples - that of an exact denoiser of Gaussian data"
    " on the same levels, without remedies",
    "variance_network": "mean over levels of |variance ratio - that of that exact denoiser|",
    "eps_gap_heldout_signed": "mean over levels of ln(||eps|| free / teacher forced on held-out images)",
    "eps_gap_signed": "mean over levels of ln(||eps|| free / teacher forced on training images)",
}


def bias_names(table: pd.DataFrame) -> list[str]:
    """Return the measures of exposure bias that a table holds."""
    return [name for name in BIAS if f"{name}_after" in table]


def condensed(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the table with a column a question: which remedy, how good, told apart, at which cost, biased how much."""
    rows = []
    for row in table.to_dict("records"):
        rows.append(
            {
                "sampler": row["sampler"],
                "steps": row["steps"],
                "model": row["model"],
                "kind": row["kind"],
                "baseline": row["baseline"] or "-",
                metric: _spread(row["value"], row["sd"]),
                "baseline's": _spread(row["baseline_value"], row["baseline_sd"]),
                "ratio": _interval(row["ratio"], row["ratio_low"], row["ratio_high"]),
                "z": _number(row["z"], ".2f"),
                "verdict": (row["verdict"] or "-") + ("*" if row["holm"] == "yes" else ""),
                "rank": _rank(row),
                "calls": _number(row["calls_ratio"], ".3g"),
                "time": _number(row["time_ratio"], ".3g"),
                **{name: _change(row, name) for name in bias_names(table)},
            }
        )
    return pd.DataFrame(rows)


def ranking_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the intervals of ranks, a row a sampler and model, a column a step count; best middles first."""
    known = table[table["rank_low"].notna()]
    counts = sorted(int(steps) for steps in known["steps"].unique())
    places = list(dict.fromkeys(known["sampler"]))
    rows: list[tuple[int, float, dict[str, Any]]] = []
    for (sampler, model), own in known.groupby(["sampler", "model"], sort=False):
        by_steps = {int(row["steps"]): row for row in own.to_dict("records")}
        texts = {f"{n} steps": _rank(by_steps[n]) if n in by_steps else "-" for n in counts}
        middle = float((own["rank_low"] + own["rank_high"]).mean())
        named = {"sampler": sampler, "model": model, "baseline": own["baseline"].iloc[0] or "-"}
        rows.append((places.index(sampler), middle, named | texts))
    return pd.DataFrame([row for *_, row in sorted(rows, key=lambda entry: entry[:2])])


def main_caption(table: pd.DataFrame, metric: str, account: str) -> str:
    """Return what every column is, how many comparisons there are, and what the times are not."""
    tested = int(table["z"].notna().sum())
    decided = table["verdict"].value_counts()
    holding = int((table["holm"] == "yes").sum())
    measures = "; ".join(f"{name}: {BIAS[name]}" for name in bias_names(table))
    return (
        f"Every remedy against its baseline, on the seeds both were run with. {metric} and the baseline's: mean ± std"
        " over seeds, lower is better; ratio: of these means, with a 95 % interval over seeds (three at least). z:"
        " paired difference of squared kernel distances in standard errors, win below -1.96, loss above 1.96. Of"
        f" {tested} comparisons {decided.get('win', 0)} are won and {decided.get('loss', 0)} lost, where about"
        f" {0.05 * tested:.2g} would be if no remedy changed anything; *: it stands after Holm's correction for all"
        f" {tested} ({holding} do). rank: what the tests of all pairs at that sampler and step count leave open,"
        " jointly at .95 (Holm). calls, time: network calls an image and sampling time over the baseline's, time as"
        " the median over seeds of cells as they were run, instruments included: good for comparing cells of one run"
        " on one machine, no benchmark. kind: sampling needs no training, training has other weights."
        f" Exposure bias, before / after: {measures}. {account}."
    )


def drawn_caption(table: pd.DataFrame, metric: str, account: str) -> str:
    """Return how to read the figure."""
    tested = int(table["z"].notna().sum())
    return (
        f"{metric} of each remedy over its baseline's, means over the seeds both were run with, on a logarithmic axis:"
        " left of 1 the remedy is closer to the data. Bars: 95 % interval over seeds (three at least), cut at the"
        " panel's edge; an arrow there stands, with its ratio, for a point far off the others. Colour: what the paired"
        " kernel test on the same seeds finds (|z| > 1.96), which can tell apart what few seeds cannot; filled: it"
        f" stands after Holm's correction for all {tested} comparisons of the table. Circle: training-free; square:"
        f" other weights. {account}."
    )


def ranking_caption(account: str) -> str:
    """Return how to read the intervals of ranks."""
    return (
        "Ranks of remedies and baselines, 1 the closest to the data, as far as the paired kernel tests of all pairs at"
        " one sampler and step count tell them apart: from one more than the models surely closer to all but those"
        " surely farther. Holm's correction over the pairs of a column, so that its intervals hold jointly at .95. -:"
        f" not run or not compared. {account}."
    )


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _spread(mean: float, sd: float) -> str:
    return _number(mean, ".3f") + ("" if math.isnan(sd) else f" ± {sd:.3f}")


def _interval(value: float, low: float, high: float) -> str:
    return _number(value, ".3f") + ("" if math.isnan(low) else f" ({low:.3f} to {high:.3f})")


def _rank(row: Mapping[Hashable, Any]) -> str:
    low, high = row["rank_low"], row["rank_high"]
    if pd.isna(low):
        return "-"
    return f"{low}" if low == high else f"{low} to {high}"


def _change(row: Mapping[Hashable, Any], name: str) -> str:
    return f"{_number(row[f'{name}_before'], '.3f')} / {_number(row[f'{name}_after'], '.3f')}"
