"""How many steps a model needs for the baseline's best quality (the papers' table 4), with an interval.

The target is the baseline's lowest Frechet distance over its step counts. A model reaches it by its mean where its mean
over seeds is no larger. The interval is that of the difference between the two distances on shared seeds: a step count
may reach the target where the interval holds 0 or less, and surely does where all of it is 0 or less. Pairing step
counts is sound: both walks start from the same noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.comparison.paired_tests import CRITICAL, compare
from analysis.output.entries import Output
from analysis.records.arrays import Terms, cell_terms
from analysis.records.load import Results, main_metric

_SECTION = "Acceleration"
_BASELINE = "adm"
_SPEEDS = {"mean": "mean", "low": "certain", "high": "possible"}  # of a speed-up: of which steps


def acceleration_table(results: Results) -> pd.DataFrame:
    """Return one row a sampler and model: the baseline's best, and the fewest steps that reach it.

    ``steps_mean`` reach it by their mean; ``steps_possible`` may reach it, ``delta`` with its 95 % interval is the
    difference there; ``steps_certain`` surely do. A ``speed_up`` is the target's step count over the model's,
    ``speed_up_low`` of the certain and ``speed_up_high`` of the possible; what is never reached stays empty.
    """
    metrics = results.metrics
    scores = metrics[(metrics["metric"] == main_metric(metrics)) & metrics["value"].notna()].astype({"value": float})
    terms = results.once(cell_terms)
    rows = []
    for sampler, group in scores.groupby("sampler", sort=False):
        groups = group.groupby(["model", "steps"], sort=False)["value"].agg(["mean", "size"])
        # Where all seeds were run, for seeds differ more than step counts.
        means = groups.loc[groups["size"] == groups["size"].max(), "mean"]
        models = [str(model) for model in means.index.unique("model")]
        baseline = _BASELINE if _BASELINE in models else models[0]
        best = means[baseline]
        target, goal = float(best.min()), int(best.idxmin())
        for model in models:
            by_steps = means[model].sort_index()
            cells = {steps: terms.get(int(steps), {}).get((model, str(sampler)), {}) for steps in by_steps.index}
            reached = _by_mean(by_steps, target)
            reached |= _by_interval(cells, terms.get(goal, {}).get((baseline, str(sampler)), {}))
            row = {"sampler": sampler, "model": model, "baseline": baseline, "target": target, "target_steps": goal}
            speeds = {f"speed_up_{name}": goal / reached[f"steps_{of}"] for name, of in _SPEEDS.items()}
            rows.append(row | reached | speeds)
    whole = {f"steps_{of}": "Int64" for of in _SPEEDS.values()}
    return pd.DataFrame(rows).astype(whole) if rows else pd.DataFrame()


def _by_mean(by_steps: pd.Series, target: float) -> dict[str, float]:
    """Return the fewest steps whose mean is no larger than the target, and that mean."""
    for steps, mean in by_steps[by_steps <= target].items():
        return {"steps_mean": float(str(steps)), "fd_mean": float(mean)}
    return {"steps_mean": float("nan"), "fd_mean": float("nan")}


def _by_interval(cells: Mapping[int, Terms], best: Terms) -> dict[str, float]:
    """Return the fewest steps whose difference to the baseline's best may be 0 or less, and those that surely are."""
    reached = dict.fromkeys(("steps_possible", "delta", "delta_low", "delta_high", "steps_certain"), float("nan"))
    for steps, terms in cells.items():
        comparison = compare(terms, best)
        if comparison is None:
            continue
        half = CRITICAL * comparison.error
        low, high = comparison.delta - half, comparison.delta + half
        if low <= 0 and reached["steps_possible"] != reached["steps_possible"]:  # NaN: the first
            reached |= {"steps_possible": float(steps), "delta": comparison.delta, "delta_low": low, "delta_high": high}
        if high <= 0:
            return reached | {"steps_certain": float(steps)}
    return reached


def analyse(results: Results, out: Output) -> None:
    """Write the table, where the baseline was run with more than one step count."""
    table = acceleration_table(results)
    if not len(table) or results.metrics["steps"].nunique() < 2:
        return
    caption = (
        f"The target is the baseline's lowest {main_metric(results.metrics)} over its step counts with all seeds."
        " steps_mean: the fewest steps at which the model's mean over seeds is no larger; steps_possible: the fewest at"
        " which the 95 % interval of the paired difference to the baseline at the target's steps (delta) holds 0 or"
        " less; steps_certain: the fewest at which all of it is 0 or less. Speed-up: target steps over the model's, low"
        " and high by the interval; the baseline's own row shows how much of it needs no other model. Empty: not"
        f" reached. Training images are left out: the records hold no checkpoints of earlier training."
        f" {results.account()}."
    )
    out.table(_SECTION, "acceleration", table, "Steps to the baseline's best", caption)
