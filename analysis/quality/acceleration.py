"""How many steps a model needs for the baseline's best quality (the papers' table 4), with the test's say beside it.

The target is the baseline's lowest Frechet distance over its step counts. A model reaches it by its mean where its mean
over seeds is no larger; it is not told from it where the paired kernel test on shared seeds, against the baseline's
samples at the target's step count, is no loss. Pairing step counts is sound: both walks start from the same noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.comparison.significance import Comparison, compare
from analysis.output.entries import Output
from analysis.records.arrays import Row, Terms, cell_terms
from analysis.records.load import Results, main_metric

_SECTION = "Acceleration"
_BASELINE = "adm"


def baseline_of(models: list[str]) -> str:
    """Return the model that others are held against: ``adm`` where it was run, else the first."""
    return _BASELINE if _BASELINE in models else models[0]


def acceleration_table(results: Results) -> pd.DataFrame:
    """Return one row a sampler and model: the baseline's best, and the fewest steps that reach it by mean and by test.

    A ``speed_up`` is the target's step count over the model's; what is never reached stays empty.
    """
    metrics = results.metrics
    scores = metrics[(metrics["metric"] == main_metric(metrics)) & metrics["value"].notna()].astype({"value": float})
    terms = cell_terms(results)
    rows = []
    for sampler, group in scores.groupby("sampler", sort=False):
        means = _complete(group)
        models = [str(model) for model in means.index.unique("model")]
        baseline = baseline_of(models)
        best = means[baseline]
        target, goal = float(best.min()), int(best.idxmin())
        for model in models:
            by_steps = means[model].sort_index()
            rows_compared = (model, str(sampler)), (baseline, str(sampler))
            reached = _by_mean(by_steps, target) | _by_test(by_steps, terms, *rows_compared, goal)
            speeds = {name: goal / reached[f"steps_{name}"] for name in ("mean", "test")}
            row = {"sampler": sampler, "model": model, "baseline": baseline, "target": target, "target_steps": goal}
            rows.append(row | reached | {f"speed_up_{name}": value for name, value in speeds.items()})
    whole = {"steps_mean": "Int64", "steps_test": "Int64"}
    return pd.DataFrame(rows).astype(whole) if rows else pd.DataFrame()


def _complete(scores: pd.DataFrame) -> pd.Series:
    """Return the mean over seeds by model and steps, where all seeds were run; seeds differ more than step counts."""
    groups = scores.groupby(["model", "steps"], sort=False)["value"].agg(["mean", "size"])
    return groups.loc[groups["size"] == groups["size"].max(), "mean"]


def _by_mean(by_steps: pd.Series, target: float) -> dict[str, float]:
    """Return the fewest steps whose mean is no larger than the target, and that mean."""
    reaching = by_steps[by_steps <= target]
    return {
        "steps_mean": float(reaching.index[0]) if len(reaching) else float("nan"),
        "fd_mean": float(reaching.iloc[0]) if len(reaching) else float("nan"),
    }


def _by_test(
    by_steps: pd.Series, terms: Mapping[int, Mapping[Row, Terms]], model: Row, baseline: Row, goal: int
) -> dict[str, float]:
    """Return the fewest steps whose samples the paired test does not call worse than the baseline's best, FD and z."""
    for steps, value in by_steps.items():
        first, second = terms.get(int(str(steps)), {}).get(model), terms.get(goal, {}).get(baseline)
        comparison: Comparison | None = compare(first, second) if first and second else None
        if comparison is not None and comparison.verdict != "loss":
            return {"steps_test": float(str(steps)), "fd_test": float(value), "z_test": comparison.z}
    return {"steps_test": float("nan"), "fd_test": float("nan"), "z_test": float("nan")}


def analyse(results: Results, out: Output) -> None:
    """Write the table, where the baseline was run with more than one step count."""
    table = acceleration_table(results)
    if not len(table) or results.metrics["steps"].nunique() < 2:
        return
    caption = (
        f"The target is the baseline's lowest {main_metric(results.metrics)} over its step counts with all seeds."
        " steps_mean: the fewest steps at which the model's mean over seeds is no larger; steps_test: the fewest at"
        " which the paired kernel test on shared seeds does not find it farther from the data than the baseline at"
        " the target's steps (z < 1.96), which few samples make easier. Speed-up: target steps over the model's; the"
        " baseline's own row shows how much of it needs no other model. Empty: not reached. Training images are left"
        f" out: the records hold no checkpoints of earlier training. {results.account()}."
    )
    out.table(_SECTION, "acceleration", table, "Steps to the baseline's best", caption)
