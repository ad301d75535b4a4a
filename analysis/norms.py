"""Norms of the predicted noise along sampling: teacher forced, free running, their ratio, before and after scaling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from analysis.load import Results
from analysis.output import Output
from analysis.select import first_sampler, models_of, over_seeds, step_counts
from analysis.style import ARM_LINES, band, colours, key, noisy_left, panels, save

__all__ = ["analyse", "draw_eps_norm"]

_SECTION = "Norms"


def draw_eps_norm(steps: pd.DataFrame, folder: Path) -> list[Path]:
    """||eps|| free running and teacher forced (top), and their ratio (bottom), along t."""
    steps, sampler = first_sampler(steps)
    models = models_of(steps)
    paint, counts = colours(models), step_counts(steps)
    table = over_seeds(steps, "eps_norm", ["free", "forced-train", "forced-heldout"])
    with panels(2, len(counts), sharex=True, sharey="row") as (figure, axes):
        for column, count in enumerate(counts):
            for model in models:
                here = table[(table["steps"] == count) & (table["model"] == model)]
                arms = {arm: here[here["arm"] == arm] for arm in ("free", "forced-train", "forced-heldout")}
                for arm in ("free", "forced-train"):
                    band(axes[0, column], arms[arm], paint[model], ARM_LINES[arm])
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
        key(figure, paint, styles)
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


def analyse(results: Results, out: Output) -> None:
    """Draw the norms of the predicted noise."""
    steps = results.steps()
    if len(steps):
        out.figure(
            _SECTION, draw_eps_norm(steps, out.figures), "Norm of the predicted noise",
            "Top: mean over images of ||eps_theta||, free running (solid) and on real noised training images (dashed),"
            " with bands of two standard errors. Bottom: their ratio; 1 means that sampling looks to the network like"
            " training. Against held-out images (dotted) the ratio is free of memorisation. " + results.account() + ".",
        )  # fmt: skip
