"""The figures of a run: one function a figure, each from a table to files.

Time runs along the horizontal axes as the training index t (from 0, the least noisy), noisy on the left, as sampling
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis.load import Results
from analysis.style import ARM_LINES, colours, noisy_left, panels, save, step_axis
from analysis.tables import QualityTable, first_sampler

__all__ = ["draw_eps_norm", "draw_quality", "draw_samples", "draw_variance_gap", "draw_x0_error"]

_PANELS = 4  # step counts drawn side by side
_MARKERS = "osD^vPX*"


def draw_quality(quality: QualityTable, folder: Path) -> list[Path]:
    """Frechet distance against steps, a line a model; bars are the std over seeds."""
    table = quality.table
    paint = colours(list(dict.fromkeys(table["model"])))
    lines = {"ddpm": "-", "ddim": "--"}
    several = table["sampler"].nunique() > 1
    with panels(1, 1) as (figure, axes):
        axis = axes[0, 0]
        for position, (_, row) in enumerate(table.iterrows()):
            values = [row[f"{count}"] for count in quality.steps]
            spreads = [0.0 if pd.isna(row[f"{count}_sd"]) else row[f"{count}_sd"] for count in quality.steps]
            label = f"{row['model']}, {row['sampler']}" if several else row["model"]
            style = lines.get(row["sampler"], ":")
            axis.errorbar(
                quality.steps, values, yerr=spreads, label=label, color=paint[row["model"]], linestyle=style,
                marker=_MARKERS[position % len(_MARKERS)], markersize=4, capsize=2,
            )  # fmt: skip
        step_axis(axis, quality.steps)
        axis.set_ylabel(f"{quality.metric} (lower is better)")
        axis.set_ylim(bottom=0)
        figure.legend(loc="outside upper center", ncols=3, frameon=False, columnspacing=1.0)
        return save(figure, folder, "fid_vs_steps")


def _select(steps: pd.DataFrame, quantity: str, arms: Sequence[str]) -> pd.DataFrame:
    """Return mean over seeds of a quantity, its standard error and N, by sampler, model, steps, arm and level."""
    chosen = steps[(steps["quantity"] == quantity) & steps["arm"].isin(arms)]
    keys = ["sampler", "model", "steps", "arm", "i", "t"]
    grouped = chosen.groupby(keys, sort=False, observed=True)
    result = grouped.agg(value=("value", "mean"), std=("std", "mean"), n=("n", "sum")).reset_index()
    result["error"] = result["std"] / np.sqrt(result["n"])
    return result.sort_values("t")


def _step_counts(steps: pd.DataFrame) -> list[int]:
    """Return the step counts to draw: all, or four spread from fewest to most."""
    counts = sorted(int(count) for count in steps["steps"].unique())
    if len(counts) <= _PANELS:
        return counts
    return [counts[round(position)] for position in np.linspace(0, len(counts) - 1, _PANELS)]


def _curve(axis: Axes, table: pd.DataFrame, colour: str, style: str, width: float = 1.2) -> None:
    """Draw a value along t with a band of two standard errors."""
    axis.plot(table["t"], table["value"], color=colour, linestyle=style, linewidth=width)
    low, high = table["value"] - 2 * table["error"], table["value"] + 2 * table["error"]
    if np.isfinite(low).any():
        axis.fill_between(table["t"], low, high, color=colour, alpha=0.18, linewidth=0)


def _legend(figure: Figure, paint: dict[str, str], styles: dict[str, tuple[Any, str]]) -> None:
    """Explain colours (models) and line styles (label to style and colour) above the panels."""
    handles = [Line2D([], [], color=colour, label=name) for name, colour in paint.items()]
    handles += [Line2D([], [], color=colour, linestyle=style, label=name) for name, (style, colour) in styles.items()]
    columns = 5 if figure.get_figwidth() > 4 else 2
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), columns), frameon=False)


def draw_eps_norm(steps: pd.DataFrame, folder: Path) -> list[Path]:
    """||eps|| free running and teacher forced (top), and their ratio (bottom), along t."""
    steps, sampler = first_sampler(steps)
    models = list(dict.fromkeys(steps["model"]))
    paint, counts = colours(models), _step_counts(steps)
    table = _select(steps, "eps_norm", ["free", "forced-train", "forced-heldout"])
    with panels(2, len(counts), sharex=True, sharey="row") as (figure, axes):
        for column, count in enumerate(counts):
            for model in models:
                here = table[(table["steps"] == count) & (table["model"] == model)]
                arms = {arm: here[here["arm"] == arm] for arm in ("free", "forced-train", "forced-heldout")}
                for arm in ("free", "forced-train"):
                    _curve(axes[0, column], arms[arm], paint[model], ARM_LINES[arm])
                for arm in ("forced-train", "forced-heldout"):
                    axes[1, column].plot(*_ratio(arms["free"], arms[arm]), color=paint[model], linestyle=ARM_LINES[arm])
            axes[1, column].axhline(1, color="black", linewidth=0.8)
            axes[0, column].set_title(f"{count} steps")
            axes[1, column].set_xlabel("t")
            noisy_left(axes[0, column])
        axes[0, 0].set_ylabel(r"$\|\epsilon_\theta\|_2$")
        axes[1, 0].set_ylabel("free / forced")
        _leave_out_last(list(axes[1]))
        styles = {
            f"free running ({sampler})": ("-", "black"),
            "teacher forced, training images": ("--", "black"),
            "teacher forced, held out": (":", "black"),
        }
        _legend(figure, paint, styles)
        return save(figure, folder, "eps_norm")


def _leave_out_last(row: Sequence[Axes]) -> None:
    """Scale a row of panels to all but the least noisy level, whose ratio dwarfs the others, and say what it was."""
    rest = [1.0]
    for axis in row:
        curves = [np.asarray(line.get_ydata(), dtype=float) for line in axis.get_lines()]
        curves = [curve for curve in curves if len(curve) > 2]  # a reference line has two points
        if curves:
            rest += np.concatenate([curve[1:] for curve in curves]).tolist()  # ascending t: the first is left out
            last = max(curve[0] for curve in curves)
            axis.text(0.03, 0.95, f"up to {last:.2f} at the last step", transform=axis.transAxes, va="top", fontsize=6)
    margin = 0.08 * max(max(rest) - min(rest), 0.05)
    row[0].set_ylim(min(rest) - margin, max(rest) + 2 * margin)  # panels of a row share their scale


def _ratio(free: pd.DataFrame, forced: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    joined = free.merge(forced, on=["i", "t"], suffixes=("", "_forced")).sort_values("t")
    return joined["t"].to_numpy(), (joined["value"] / joined["value_forced"]).to_numpy()


def draw_variance_gap(steps: pd.DataFrame, folder: Path) -> list[Path]:
    """Marginal variance over the truth (top) and the published pred_std over its floor (bottom), along t."""
    steps, sampler = first_sampler(steps)
    models = list(dict.fromkeys(steps["model"]))
    paint, counts = colours(models), _step_counts(steps)
    with panels(2, len(counts), sharex=True, sharey="row") as (figure, axes):
        for row, quantity in enumerate(("variance_ratio", "excess_std")):
            table = _select(steps, quantity, ["free", "gaussian"])
            for column, count in enumerate(counts):
                axis, here = axes[row, column], table[table["steps"] == count]
                for model in models:
                    own = here[(here["model"] == model) & (here["arm"] == "free")]
                    _curve(axis, own, paint[model], "-")
                exact = here[here["arm"] == "gaussian"].drop_duplicates("t")
                _curve(axis, exact, "black", "--")
                axis.axhline(1 - row, color="black", linewidth=0.8)
                noisy_left(axes[0, column])
        for column, count in enumerate(counts):
            axes[0, column].set_title(f"{count} steps")
            axes[1, column].set_xlabel("t")
        axes[0, 0].set_ylabel("marginal variance,\nsampled / true")
        axes[1, 0].set_ylabel("excess std over\nexact-sampler floor")
        styles = {f"sampled ({sampler})": ("-", "black"), "exact denoiser, Gaussian data": ("--", "black")}
        _legend(figure, paint, styles)
        return save(figure, folder, "variance_gap")


def draw_x0_error(steps: pd.DataFrame, folder: Path) -> list[Path]:
    """Root mean squared error of x0_hat on training and held-out images, along t, at the most steps."""
    steps, _ = first_sampler(steps)
    models = list(dict.fromkeys(steps["model"]))
    paint, count = colours(models), max(_step_counts(steps))
    table = _select(steps[steps["steps"] == count], "x0_rmse", ["forced-train", "forced-heldout"])
    with panels(1, 1) as (figure, axes):
        axis = axes[0, 0]
        for model in models:
            for arm, style in (("forced-train", "-"), ("forced-heldout", "--")):
                _curve(axis, table[(table["model"] == model) & (table["arm"] == arm)], paint[model], style)
        axis.set_xlabel(f"t (levels of {count} steps)")
        axis.set_ylabel(r"RMSE of $\hat{x}_0$")
        axis.set_ylim(bottom=0)
        noisy_left(axis)
        _legend(figure, paint, {"training images": ("-", "black"), "held-out images": ("--", "black")})
        return save(figure, folder, "x0_error")


def draw_samples(results: Results, folder: Path, count: int = 16) -> list[Path]:
    """The first samples of each model, first seed, most shared steps: a row a model, a column a starting noise."""
    samplers = {record.cell["sampler"] for record in results.cells}
    sampler = "ddpm" if "ddpm" in samplers else min(samplers)
    seed = min(record.cell["seed"] for record in results.cells if record.cell["sampler"] == sampler)
    by_model: dict[str, dict[int, Any]] = {}
    for record in results.cells:
        if record.cell["seed"] == seed and record.cell["sampler"] == sampler:
            by_model.setdefault(record.cell["model"], {})[record.cell["steps"]] = record
    shared = set.intersection(*(set(records) for records in by_model.values()))
    if not shared:
        return []
    steps = max(shared)
    rows = {model: records[steps].array("samples.npz", "arr_0") for model, records in by_model.items()}
    rows = {model: images for model, images in rows.items() if images is not None}
    if not rows:
        return []
    with panels(len(rows), 1) as (figure, axes):
        figure.set_size_inches(7.0, 0.4 + 0.5 * len(rows))
        for axis, (model, images) in zip(axes[:, 0], rows.items(), strict=True):
            axis.imshow(_strip(images[:count]), interpolation="nearest", aspect="equal")
            axis.set_ylabel(model, rotation=0, ha="right", va="center")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        figure.suptitle(f"{steps} steps, seed {seed}: each column starts from the same noise", fontsize=8)
        return save(figure, folder, "samples", formats=("png",))


def _strip(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay images [K, H, W, 3] side by side with a white line between."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)
