"""Chains: real images noised to x_t and sampled back, and how far an exact sampler would end from where it began.

Three ways back (Ning et al. 2023, figure 5 and table 1): the posterior mean at every step, without noise, which
collapses to grey; DDIM; and ancestral sampling. The start counts from 1: length L starts at training index L - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from analysis.output.entries import Output
from analysis.output.selection import models_of
from analysis.output.style import label_panels, line_key, line_panels, panels, save
from analysis.records.experiments import read_pictures, read_records
from analysis.records.load import Results

_SECTION = "Chains"
_METHODS = {"mean": "posterior mean, no noise", "ddim": "DDIM", "ancestral": "ancestral"}
_EXACT = {  # with their line styles
    "mean": {"exact-gaussian-mean": "--"},
    "ddim": {"exact-gaussian-ddim": "--"},
    "ancestral": {"exact-gaussian": "--", "exact-empirical": ":"},
}
_PICTURES = 8


def chain_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return every quantity averaged over seeds, with its standard error over images (empty for distances).

    ``sd`` is the spread over seeds, ``seeds`` their number. Rows without a value, whose note says why, stay.
    """
    keys = ["model", "method", "start", "quantity", "reference", "note"]
    grouped = records.groupby(keys, sort=False, dropna=False)
    table = grouped.agg(
        value=("value", "mean"), sd=("value", "std"), std=("std", "mean"), n=("n", "sum"), seeds=("seed", "nunique")
    ).reset_index()
    table["error"] = table["std"] / np.sqrt(table["n"].where(table["n"] > 0))
    columns = ["model", "method", "start", "quantity", "value", "error", "sd", "n", "seeds", "reference", "note"]
    return table[columns].sort_values(["quantity", "method", "start"], kind="stable", ignore_index=True)


def draw_chains(table: pd.DataFrame, folder: Path) -> list[Path]:
    """L1 error (top) and Frechet distance (bottom) of the reconstructions against chain length, a column a way back."""
    chains = table[table["method"].isin(_METHODS)]
    metric = next((q for q in chains["quantity"].unique() if q not in ("l1", "rmse")), None)
    scored = metric is not None and chains.loc[chains["quantity"] == metric, "value"].notna().any()
    quantities = ["l1", str(metric)] if scored else ["l1"]
    table = table.assign(t=table["start"])
    with line_panels(models_of(chains), len(_METHODS), quantities, main="l1") as (figure, rows):
        for row in rows:
            measured = table[table["quantity"] == row.quantity].sort_values("t", kind="stable")
            for axis, method in zip(row.axes, _METHODS, strict=True):
                _baselines(axis, measured, method)
                row.bands(axis, (measured[measured["method"] == method], "-"))
            row.axes[0].set_ylabel(f"{'L1 error' if row.quantity == 'l1' else metric} of the\nreconstructions")
            if row.quantity != "l1":
                row.axes[0].set_yscale("log")  # chains without noise end far off
                row.axes[0].minorticks_off()
        label_panels(rows, _METHODS.values(), "chain length L")
        styles = {"exact, Gaussian data": ("--", "black"), "exact, training images": (":", "black")}
        line_key(figure, rows, styles | ({"as many real images": ("-.", "0.5")} if len(quantities) > 1 else {}))
        return save(figure, folder, "chain_error")


def _baselines(axis: Axes, table: pd.DataFrame, method: str) -> None:
    """Draw what exact samplers do, and real images where the quantity is a distance between sets."""
    for name, style in _EXACT[method].items():
        line = table[table["method"] == name]
        axis.plot(line["start"], line["value"], color="black", linestyle=style)
    real = table.loc[table["method"] == "real", "value"]
    if real.notna().any():
        axis.axhline(real.mean(), color="0.5", linestyle="-.", linewidth=0.8)  # the same images for every model


def draw_pictures(results: Results, records: pd.DataFrame, folder: Path) -> list[Path]:
    """The first model's reconstructions: originals, then a row a way back and chain length."""
    chains = records[records["method"].isin(_METHODS)]
    model, seed = models_of(chains)[0], int(chains["seed"].min())
    starts = sorted(int(start) for start in chains["start"].dropna().unique())
    rows: dict[str, NDArray[np.uint8]] = {}
    places = results.folder("chains")
    for method in _METHODS:
        for start in starts:
            pictures = read_pictures(places, f"{model}-{method}-{start}-seed{seed}", results.problem)
            if pictures is not None:
                rows.setdefault("original", pictures["original"][:_PICTURES])
                rows[f"{method}, L = {start}"] = pictures["reconstruction"][:_PICTURES]
    if not rows:
        return []
    with panels(1, 1) as (figure, [[axis]]):
        figure.set_size_inches(3.9, 0.3 + 0.37 * len(rows))
        axis.imshow(_grid(list(rows.values())), interpolation="nearest")
        height = next(iter(rows.values())).shape[1] + 1
        axis.set_yticks([height * k + height / 2 - 1 for k in range(len(rows))], list(rows))
        axis.set(xticks=[], title=f"{model}, seed {seed}")
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        return save(figure, folder, "chain_pictures")


def _grid(rows: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Lay rows of images [K, H, W, C] out with white lines between; grey ones become three equal channels."""
    grid = np.stack(rows)
    grid = np.repeat(grid, 4 - grid.shape[4], axis=4)[..., :3]
    grid = np.pad(grid, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
    return np.block([[[image] for image in row] for row in grid])


def analyse(results: Results, out: Output) -> None:
    """Write and draw the chains, where they were measured."""
    records = read_records(results.folder("chains"), "chain", results.problem)
    if not len(records) or not records["method"].isin(_METHODS).any():
        return
    table = chain_table(records)
    seeds = int(table["seeds"].max())
    images = records.loc[records["method"].isin(_METHODS), "n"].max()
    caption = (
        "Training images x_0 noised to x_t and sampled back from chain length L (starting at training index L - 1,"
        " one network call a step). Top: mean |x_0' - x_0| in the [-1, 1] scale. A perfect sampler does not return"
        " to x_0: it draws x_0' ~ q(x_0 | x_t), and the black curves are its mean |x_0' - x_0|, for the training"
        " images as a finite set (dotted) and for Gaussian data of the same mean and covariance (dashed; in the"
        " first two columns an exact denoiser's own chain). Bottom: Frechet distance of the reconstructions to the"
        f" training images; dash-dotted: as many real images. N = {int(images)} images a seed, seeds: {seeds}; bands:"
        " two standard errors over images."
    )
    out.table(_SECTION, "chains", table, "Chain errors", caption)
    out.figure(_SECTION, draw_chains(table, out.figures), "From x_t back to x_0", caption)
    out.figure(
        _SECTION, draw_pictures(results, records, out.figures), "Reconstructions",
        "The first images, noised and sampled back by the three ways, by chain length L; N and seed as above. The"
        " posterior-mean chain (the papers' figure 5) leaves the noise out, so that what it shows at large L is not"
        " what sampling does.",
    )  # fmt: skip
