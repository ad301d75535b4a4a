"""The comparison of remedies as a forest plot: a row a remedy, its distance over its baseline's, and its interval."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.comparison.ties import DECIDED, UNTESTABLE
from analysis.output.selection import shown
from analysis.output.style import colours, panels, save

_PANELS = 7  # step counts drawn side by side
_ROW = 0.17  # inches a remedy
_HEAD = 0.75  # inches a panel's title and axis take
_NARROW = 4.5  # inches, of a single column
_PAINT = {**colours(["win", "loss"]), "tie": "0.5", UNTESTABLE: "0.75", "": "black"}
_MARKS = {"sampling": "o", "training": "s"}
_TICKS = (  # farthest from 1 first
    (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97),
    (100.0, 30.0, 10.0, 5.0, 3.0, 2.0, 1.4, 1.25, 1.1, 1.05, 1.03),
)
_TOUCH = 0.25  # of the logarithmic axis from 1 to its end
_CLEAR = 0.85  # of the logarithmic axis from 1 to its end: no tick is farther out
_APART = 0.3  # nor nearer to 1, whose label it would meet
_FAR = 3.0  # times what most points are off 1: an axis reaches no farther
_LEAST = 0.05  # that it reaches, natural logarithm


def draw_mitigations(table: pd.DataFrame, metric: str, folder: Path) -> list[Path]:
    """Frechet distance over the baseline's, a row of panels a sampler, a column a step count; bars: 95 % interval.

    Colour says what the paired test of that distance finds after Holm's correction, a filled mark that it is a win or a
    loss, and the shape whether the remedy needs training. Nothing is drawn where no ratio is known.
    """
    table = table[table["ratio"].notna() & (table["ratio"] > 0)]
    if not len(table):
        return []
    labels, walks = _labels(table), dict(iter(table.groupby("sampler", sort=False)))
    counts = [shown(sorted(int(steps) for steps in walk["steps"].unique()), _PANELS) for walk in walks.values()]
    names = [{m: label for m, label in labels.items() if (walk["model"] == m).any()} for walk in walks.values()]
    heights = [_HEAD + _ROW * len(models) for models in names]
    columns = max(map(len, counts))
    with panels(len(walks), columns, gridspec_kw={"height_ratios": heights}) as (figure, axes):
        figure.set_size_inches(7.0 if columns > 1 else _NARROW, 0.4 + sum(heights))
        for row, (sampler, walk), models, several in zip(axes, walks.items(), names, counts, strict=True):
            chosen = walk[walk["steps"].isin(several)]
            low, high = _limits(chosen)
            for axis, steps in zip(row, several, strict=False):
                _scale(axis, low, high, columns > 3)
                _draw(axis, chosen[chosen["steps"] == steps], models)
                axis.set_title(f"{steps} steps")
                if axis is not row[0]:
                    axis.tick_params(labelleft=False)
            row[0].set_ylabel(sampler)
            for axis in row[len(several) :]:
                axis.set_visible(False)
        figure.supxlabel(f"{metric} over the baseline's (left of 1 is better)", fontsize=8)
        _key(figure, table)
        return save(figure, folder, "mitigations")


def _labels(table: pd.DataFrame) -> dict[str, str]:
    """Return model and label from top to bottom: by baseline and kind, those that are best on average first."""
    several = table["baseline"].nunique() > 1
    means = table.assign(log=np.log(table["ratio"])).groupby(["baseline", "kind", "model"])["log"].mean()
    keys = means.reset_index().sort_values(["baseline", "kind", "log"])[["model", "baseline"]]
    rows = keys.itertuples(index=False, name=None)
    return {model: f"{model} / {baseline}" if several else model for model, baseline in rows}


def _limits(table: pd.DataFrame) -> tuple[float, float]:
    """Return limits about 1 that hold all points but those far off the others, and intervals not much wider."""
    points = np.abs(np.log(table["ratio"].to_numpy(dtype=float)))
    ends = np.abs(np.log(table[["ratio_low", "ratio_high"]].to_numpy(dtype=float)))
    reach = min(float(points.max()), _FAR * float(np.quantile(points, 0.8)))
    wide = float(np.nanquantile(ends, 0.95)) if np.isfinite(ends).any() else 0.0
    half = max(1.08 * reach, 1.05 * min(wide, _FAR * reach), _LEAST)
    return math.exp(-half), math.exp(half)


def _draw(axis: Axes, table: pd.DataFrame, names: dict[str, str]) -> None:
    places = {model: position for position, model in enumerate(names)}
    for row in table.to_dict("records"):
        y, colour = places[row["model"]], _PAINT[row["verdict"]]
        style: dict[str, Any] = {"color": colour, "markersize": 4.5, "zorder": 3, "clip_on": False}
        style["markerfacecolor"] = colour if row["verdict"] in DECIDED else "white"
        low, high = axis.get_xlim()
        if not low <= row["ratio"] <= high:
            _point_away(axis, row["ratio"], y, style)
            continue
        if not math.isnan(row["ratio_low"]):
            axis.plot([row["ratio_low"], row["ratio_high"]], [y, y], color=colour, linewidth=1.1)
        axis.plot(row["ratio"], y, marker=_MARKS[row["kind"]], **style)
    axis.axvline(1, color="black", linewidth=0.8, zorder=0)
    axis.set_yticks(range(len(names)), list(names.values()))
    axis.set_ylim(len(names) - 0.5, -0.5)


def _point_away(axis: Axes, ratio: float, y: int, style: dict[str, Any]) -> None:
    """Draw an arrow at the edge, with the ratio, for a point far off the others."""
    right = ratio > 1
    edge = axis.get_xlim()[int(right)]
    axis.plot(edge, y, marker=">" if right else "<", **style)
    axis.annotate(
        f"{ratio:.2g}", (edge, y), (-5 if right else 5, 0), textcoords="offset points", fontsize=6,
        color=style["color"], ha="right" if right else "left", va="center",
    )  # fmt: skip


def _scale(axis: Axes, low: float, high: float, narrow: bool) -> None:
    """Make a logarithmic axis with few ticks, which are ratios and clear of the panel's ends."""
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    below = [tick for tick in _TICKS[0] if low**_CLEAR <= tick <= low**_APART]
    above = [tick for tick in _TICKS[1] if high**_APART <= tick <= high**_CLEAR]
    chosen = [1.0]
    for side in (below, above):
        ticks = [side[place] for place in shown(range(len(side)), 1 if narrow else 2)]
        # Labels of two that are near each other would touch: the outer one stays.
        touch = len(ticks) == 2 and abs(math.log(ticks[1] / ticks[0])) < _TOUCH * math.log(high)
        chosen += [max(ticks, key=lambda tick: abs(math.log(tick)))] if touch else ticks
    axis.xaxis.set_major_locator(FixedLocator(chosen))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_locator(NullLocator())


def _key(figure: Figure, table: pd.DataFrame) -> None:
    """Explain colours, shapes and filling, of those that occur."""
    table = table[table["kind"] != "baseline"]
    handles = [
        Line2D([], [], color=colour, marker="s", linestyle="", markersize=4, label=verdict or "not tested")
        for verdict, colour in _PAINT.items()
        if (table["verdict"] == verdict).any()
    ]
    style: dict[str, Any] = {"color": "black", "markerfacecolor": "white", "linestyle": "", "markersize": 4.5}
    words = {"sampling": "training-free", "training": "other weights"}
    handles += [
        Line2D([], [], marker=mark, label=words[kind], **style)
        for kind, mark in _MARKS.items()
        if (table["kind"] == kind).any()
    ]
    columns = len(handles) if figure.get_figwidth() > _NARROW else 3
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, frameon=False, columnspacing=1.0, handletextpad=0.3
    )
