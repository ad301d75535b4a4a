"""What predicts quality? The rank correlation of each measure of exposure bias with the Frechet distance of its cell.

A cell is one model, sampler, step count and seed. Its measures are averages over the levels of its per-step table; the
correlation is Spearman's. Few steps make every measure and the distance worse, so that a correlation over all cells can
be the step count's alone: beside it stands the mean of the correlations within each step count. The Frechet distance of
a few hundred samples varies more by seed than by model, so the mean within each step count and seed stands there too:
its cells share their noise, and only the model differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.output.entries import Output
from analysis.output.selection import models_of
from analysis.output.style import is_edm, markers, panels, save
from analysis.records.load import Results, main_metric

_SECTION = "What predicts quality"
_CELL = ["sampler", "model", "steps", "seed"]
_FEWEST = 4  # points of a correlation
_PANELS = 6
DEFINITIONS: Mapping[str, str] = {
    "eps_gap": "mean over levels of |ln(||eps|| free / teacher forced on training images)|",
    "eps_gap_signed": "eps_gap without the modulus",
    "eps_gap_heldout": "mean over levels of |ln(||eps|| free / teacher forced on held-out images)|",
    "eps_gap_heldout_signed": "eps_gap_heldout without the modulus",
    "variance_end": "|Var(x) / true variance - 1| of the finished samples",
    "variance_along": "mean over levels of |Var(x) / true variance - 1|",
    "variance_network": "mean over levels of |variance ratio - that of an exact denoiser on the same levels|",
    "excess_std": "mean over levels of |pred_std - floor|, on EDM levels over the floor",
    "excess_std_signed": "excess_std without the modulus",
    "delta_t": "published delta_t at the least noisy level before the clean one",
    "x0_rmse_heldout": "mean over levels of the RMSE of x0_hat on held-out images",
    "x0_rmse_ratio": "mean over levels of the RMSE of x0_hat on held-out over training images",
    "clipped": "mean over levels of the clipped share of x0_hat",
    "nn_ratio": "distance to the nearest training image over that to the nearest held-out one",
}


def _measures(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the measures of every cell by sampler, model, steps and seed, NaN where one was not recorded."""
    columns = [*_CELL, "i", "arm", "quantity"]
    wide = steps.groupby(columns, sort=True, observed=True)["value"].mean().unstack(["arm", "quantity"])

    def of(arm: str, quantity: str) -> pd.Series:
        return wide[arm, quantity] if (arm, quantity) in wide else pd.Series(np.nan, wide.index)

    def mean(values: pd.Series) -> pd.Series:
        return values.groupby(level=_CELL).mean()

    i, samplers = (wide.index.get_level_values(name) for name in ("i", "sampler"))
    eps, ratio, excess = of("free", "eps_norm"), of("free", "variance_ratio"), of("free", "excess_std")
    edm = samplers.map(lambda name: is_edm(str(name))).to_numpy(dtype=bool)
    excess = excess.where(~edm, excess / of("free", "floor_std"))
    over = (eps / of(f"forced-{part}", "eps_norm") for part in ("train", "heldout"))
    train, heldout = (ratio.where(ratio > 0).map(math.log) for ratio in over)
    error = of("forced-heldout", "x0_rmse")
    measures = {
        "eps_gap": mean(train.abs()),
        "eps_gap_signed": mean(train),
        "eps_gap_heldout": mean(heldout.abs()),
        "eps_gap_heldout_signed": mean(heldout),
        "variance_end": mean((ratio[i < 0] - 1).abs()),
        "variance_along": mean((ratio - 1).abs()),
        "variance_network": mean((ratio - of("gaussian", "variance_ratio")).abs()),
        "excess_std": mean(excess.abs()),
        "excess_std_signed": mean(excess),
        "delta_t": of("free", "delta_t")[i >= 0].groupby(level=_CELL).nth(0).droplevel("i"),
        "x0_rmse_heldout": mean(error),
        "x0_rmse_ratio": mean(error / of("forced-train", "x0_rmse")),
        "clipped": mean(of("free", "clipped")),
    }
    return pd.DataFrame(measures)


def diagnostics_table(results: Results) -> pd.DataFrame:
    """Return one row a cell: its measures (see :data:`DEFINITIONS`) and its Frechet distance ``fd``."""
    steps, metrics = results.steps, results.metrics.astype({"value": float})
    metric = main_metric(metrics)
    if not len(steps) or metric is None:
        return pd.DataFrame()
    scores = metrics.pivot_table(index=_CELL, columns="metric", values="value").reindex(columns=["nn_ratio", metric])
    cells = steps[_CELL].drop_duplicates().merge(_measures(steps), on=_CELL)
    return cells.merge(scores.rename(columns={metric: "fd"}), on=_CELL)


def _spearman(x: pd.Series, y: pd.Series) -> float:
    """Return the rank correlation, NaN where there are too few points or one side does not vary."""
    if len(x) < _FEWEST or x.nunique() < 2 or y.nunique() < 2:
        return float("nan")
    return float(np.corrcoef(x.rank(), y.rank())[0, 1])


def _within(cells: pd.DataFrame, name: str, keys: list[str]) -> float:
    """Return the mean over groups of a measure's correlation with ``fd`` in each, NaN where no group has enough."""
    correlations = pd.Series([_spearman(group[name], group["fd"]) for _, group in cells.groupby(keys)], dtype=float)
    return float(correlations.mean())


def correlation_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return each measure's correlation with ``fd``, the strongest first.

    ``rho`` is over cells; ``rho_settings`` over models x samplers x step counts, each averaged over seeds;
    ``rho_within`` is the mean of the correlations over cells within each step count,
    ``rho_models`` that within each step count and seed.
    """
    rows = []
    for name, definition in DEFINITIONS.items():
        cells = table[[*_CELL, name, "fd"]].dropna()
        settings = cells.groupby(_CELL[:3])[[name, "fd"]].mean()
        correlations = {
            "rho": _spearman(cells[name], cells["fd"]),
            "cells": len(cells),
            "rho_settings": _spearman(settings[name], settings["fd"]),
            "settings": len(settings),
            "rho_within": _within(cells, name, ["sampler", "steps"]),
            "rho_models": _within(cells, name, ["sampler", "steps", "seed"]),
        }
        rows.append({"measure": name, **correlations, "definition": definition})
    table_of_measures = pd.DataFrame(rows).dropna(subset="rho")
    return table_of_measures.sort_values("rho", key=lambda rho: -rho.abs(), ignore_index=True)


def draw_diagnostics(table: pd.DataFrame, correlations: pd.DataFrame, metric: str, folder: Path) -> list[Path]:
    """Frechet distance against the strongest measures, a point a cell: colour is the step count, shape the model."""
    families = correlations["measure"].str.removesuffix("_signed").str.removesuffix("_heldout")
    chosen = correlations[~families.duplicated()].head(_PANELS)  # one of each kind, not a measure and its modulus
    columns = min(3, len(chosen))
    marks = markers(models_of(table))
    counts = sorted(int(count) for count in table["steps"].unique())
    shades = dict(zip(counts, matplotlib.colormaps["viridis"](np.linspace(0.9, 0, len(counts))), strict=True))
    with panels(-(-len(chosen) // columns), columns, sharey=True) as (figure, axes):
        for axis, (_, row) in zip(axes.flat, chosen.iterrows(), strict=False):
            for (model, steps), points in table.groupby(["model", "steps"], sort=False):
                x, shade, mark = points[row["measure"]], shades[int(str(steps))], marks[str(model)]
                size = 14 if len(mark) == 1 else 30  # numbers are finer than shapes
                axis.scatter(x, points["fd"], s=size, color=shade, marker=mark, linewidths=0, alpha=0.8)
            axis.set_xlabel(row["measure"])
            rho = ("-" if pd.isna(value) else f"{value:.2f}" for value in row[["rho", "rho_within", "rho_models"]])
            axis.set_title("rho {} ({}, {})".format(*rho))
        for axis in axes.flat[len(chosen) :]:
            axis.set_visible(False)
        for axis in axes[:, 0]:
            axis.set_ylabel(metric)
        _legend(figure, marks, shades)
        return save(figure, folder, "diagnostics")


def _legend(figure: Figure, marks: Mapping[str, str], shades: Mapping[int, Any]) -> None:
    entries = [("black", mark, model) for model, mark in marks.items()]
    entries += [(shade, "s", f"{steps} steps") for steps, shade in shades.items()]
    style: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0}
    handles = [
        Line2D([], [], color=colour, marker=mark, label=label, markersize=4 if len(mark) == 1 else 8, **style)
        for colour, mark, label in entries
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5), frameon=False)


def analyse(results: Results, out: Output) -> None:
    """Write every cell's measures, their correlations with the Frechet distance, and draw the strongest."""
    table = diagnostics_table(results)
    if len(table) < _FEWEST:
        return
    correlations, metric = correlation_table(table), str(main_metric(results.metrics))
    account = results.account()
    out.table(
        _SECTION, "diagnostics", table, "Measures of exposure bias by cell",
        f"fd is {metric}. Measures: " + "; ".join(f"{name}: {text}" for name, text in DEFINITIONS.items())
        + f". {account}.",
    )  # fmt: skip
    if not len(correlations):
        return
    caption = (
        f"Spearman's rank correlation of each measure with {metric} (lower is better, so a positive rho says that the"
        " measure grows as quality falls): over cells; over settings (model x sampler x step count, averaged over"
        " seeds); and within step counts, averaged (rho_within), which is free of the step count driving both;"
        " within step counts and seeds, averaged (rho_models), where only the model differs. Cells of one model or"
        f" one step count are not independent, so that no p value is given. {account}."
    )
    out.table(_SECTION, "quality_predictors", correlations, "What predicts quality", caption)
    out.figure(
        _SECTION, draw_diagnostics(table, correlations, metric, out.figures), "What predicts quality",
        f"{metric} of every cell against the {min(_PANELS, len(correlations))} measures that correlate most with it."
        " Colour: step count; shape or number: model. A cloud that rises within one colour predicts quality beyond the"
        " step count. rho (within step counts, of models) as in the table, definitions there. " + account + ".",
    )  # fmt: skip
