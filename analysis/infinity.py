"""The Frechet distance extrapolated to infinitely many samples, beside the plain one: does its bias decide an order?"""

from __future__ import annotations

import pandas as pd

from analysis.output.entries import Output
from analysis.quality.fid_vs_steps import main_metric
from analysis.records.load import Results

__all__ = ["analyse", "infinity_table"]

_SECTION = "Quality"
_KEYS = ["sampler", "steps", "model"]


def infinity_table(results: Results) -> pd.DataFrame:
    """Return mean and std over seeds of both distances, and the rank of each model by either at its step count.

    Empty where the extrapolation was refused (fewer than four samples a feature) or not computed.
    """
    metrics = results.metrics()
    metric = main_metric(metrics)
    columns = [*_KEYS, "fd", "fd_sd", "fd_inf", "fd_inf_sd", "seeds", "rank", "rank_inf"]
    scores = metrics[metrics["metric"].isin([metric, f"{metric}_inf"])].astype({"value": float})
    values = scores.pivot_table(index=[*_KEYS, "seed"], columns="metric", values="value", sort=False)
    if f"{metric}_inf" not in values:
        return pd.DataFrame(columns=columns)
    values = values.rename(columns={metric: "fd", f"{metric}_inf": "fd_inf"}).dropna()
    grouped = values.groupby(_KEYS, sort=False)
    table = grouped.mean().join(grouped.std().add_suffix("_sd")).assign(seeds=grouped.size())
    for name, distance in {"rank": "fd", "rank_inf": "fd_inf"}.items():
        table[name] = table.groupby(["sampler", "steps"])[distance].rank(method="min").astype(int)
    return table.reset_index().sort_values(["sampler", "steps"], kind="stable")[columns]


def analyse(results: Results, out: Output) -> None:
    """Write the extrapolated distances, where there are any."""
    caption = (
        f"fd is {main_metric(results.metrics())} at the N below, too large by about c / N with c a property of the"
        " model; fd_inf the intercept of its regression on 1/n over five subset sizes from max(2 d, N / 4) to N,"
        " four subsets a size (Chong & Forsyth 2020), computed only from N >= 4 d for d features. The reference is"
        " not extrapolated. sd is over seeds; an order of models that the two ranks do not share is the bias's doing"
        f" or chance. {results.account()}."
    )
    out.table(_SECTION, "fd_infinity", infinity_table(results), "Frechet distance at infinite N", caption)
