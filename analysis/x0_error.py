"""The error of x0_hat at single steps from real noised images: size, bias and spread along t."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.load import Results
from analysis.output import Output
from analysis.select import first_sampler, models_of, over_seeds, step_counts
from analysis.style import band, colours, key, noisy_left, panels, save

__all__ = ["analyse", "draw_x0_error"]

_SECTION = "Prediction error"


def draw_x0_error(steps: pd.DataFrame, folder: Path) -> list[Path]:
    """Root mean squared error of x0_hat on training and held-out images, along t, at the most steps."""
    steps, _ = first_sampler(steps)
    models = models_of(steps)
    paint, count = colours(models), max(step_counts(steps))
    table = over_seeds(steps[steps["steps"] == count], "x0_rmse", ["forced-train", "forced-heldout"])
    with panels(1, 1) as (figure, axes):
        axis = axes[0, 0]
        for model in models:
            for arm, style in (("forced-train", "-"), ("forced-heldout", "--")):
                band(axis, table[(table["model"] == model) & (table["arm"] == arm)], paint[model], style)
        axis.set_xlabel(f"t (levels of {count} steps)")
        axis.set_ylabel(r"RMSE of $\hat{x}_0$")
        axis.set_ylim(bottom=0)
        noisy_left(axis)
        key(figure, paint, {"training images": ("-", "black"), "held-out images": ("--", "black")})
        return save(figure, folder, "x0_error")


def analyse(results: Results, out: Output) -> None:
    """Draw the error of x0_hat."""
    steps = results.steps()
    if len(steps):
        out.figure(
            _SECTION, draw_x0_error(steps, out.figures), "Error of the predicted image",
            "Root mean squared error of x0_hat at single steps from real noised images, [-1, 1] scale; solid: training"
            " images, dashed: held out. The distance between the two is memorisation. " + results.account() + ".",
        )  # fmt: skip
