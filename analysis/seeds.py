"""Do two models differ over seeds? The paired t-test of their Frechet distances, precision and recall, seed by seed.

A Frechet distance has no honest standard error from one set of samples (a bootstrap adds a second 1/N bias), but seeds
are disjoint sets of equal N. Both models see the same noise under one seed, so the differences d_k are paired: with
their mean m and standard deviation s over n seeds, t = m / (s / sqrt(n)) has Student's distribution with n - 1 degrees
of freedom where the models are equal.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.metric_names import coverage_name
from analysis.output.entries import Output
from analysis.quality.fid_vs_steps import main_metric
from analysis.records.load import Results

__all__ = ["FEWEST_SEEDS", "analyse", "paired_t", "seeds_table"]

FEWEST_SEEDS = 5
_COVERAGE = ("precision", "recall")
_SECTION = "Comparison"
_COLUMNS = ["difference", "low", "high", "t", "p", "seeds", "reason"]


def paired_t(first: NDArray[np.float64], second: NDArray[np.float64]) -> dict[str, object]:
    """Return the mean difference, its 95 % interval, t, p and n of values paired by seed, or the reason against it."""
    found: dict[str, object] = dict.fromkeys(_COLUMNS, float("nan")) | {"seeds": len(first), "reason": ""}
    if len(first) < FEWEST_SEEDS:
        return found | {"reason": f"{FEWEST_SEEDS} shared seeds are needed, not {len(first)}"}
    differences = first - second
    if np.ptp(differences) == 0:
        return found | {"difference": float(differences[0]), "reason": "the difference is the same under every seed"}
    test = stats.ttest_rel(first, second)
    low, high = test.confidence_interval(0.95)
    values = {"difference": differences.mean(), "low": low, "high": high, "t": test.statistic, "p": test.pvalue}
    return found | {name: float(value) for name, value in values.items()}


def seeds_table(results: Results) -> pd.DataFrame:
    """Return one row a metric and pair of models at each sampler and step count, with a reason where it is refused."""
    metrics = results.metrics()
    scored = [str(name) for name in metrics["metric"].unique()]
    names = [coverage_name(scored, kind) for kind in _COVERAGE]
    chosen = metrics["metric"].isin([main_metric(metrics), *names]) & metrics["value"].notna()
    scores = metrics[chosen].astype({"value": float})
    rows: list[dict[str, object]] = []
    for (metric, sampler, steps), here in scores.groupby(["metric", "sampler", "steps"], sort=True):
        values = here.pivot(index="seed", columns="model", values="value")
        for model, other in combinations(dict.fromkeys(here["model"]), 2):
            shared = values[[model, other]].dropna()
            tested = paired_t(shared[model].to_numpy(), shared[other].to_numpy())
            place = {"metric": metric, "sampler": sampler, "steps": int(str(steps)), "model": model, "other": other}
            rows.append(place | tested)
    return pd.DataFrame(rows, columns=["metric", "sampler", "steps", "model", "other", *_COLUMNS])


def analyse(results: Results, out: Output) -> None:
    """Write the tests, where at least one pair of models shares enough seeds."""
    table = seeds_table(results)
    tested = int(table["p"].notna().sum())
    if not tested:
        return
    names = ", ".join(table["metric"].unique())
    caption = (
        f"Paired t-test over seeds of {names}: difference is the mean over shared seeds of model minus other (of a"
        " distance, below 0: model is better; of precision and recall, above 0), low and high its 95 % confidence"
        f" interval, t with seeds - 1 degrees of freedom, p two-sided. The {tested} p values are not corrected:"
        f" {0.05 * tested:.3g} of them are expected below .05 where no model differs. {results.account()}."
    )
    out.table(_SECTION, "seeds", table, "Differences over seeds", caption)
