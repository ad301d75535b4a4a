"""The error of x0_hat at single steps from real noised images: size, bias and the share of clipped values along t."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.level_axis import level_symbol, noisy_left
from analysis.output.entries import Output
from analysis.output.selection import first_sampler, models_of, over_seeds, thinned
from analysis.output.style import band, colours, key, panels, save
from analysis.records.load import Results
from analysis.wording import clips

__all__ = ["analyse", "draw_x0_error", "error_table"]

_SECTION = "Prediction error"
_KEYS = ["sampler", "model", "steps", "arm"]
_FORCED = ["forced-train", "forced-heldout"]
# Quantity, axis label, arms drawn solid and dashed.
_PANELS = (
    ("x0_rmse", r"RMSE of $\hat{x}_0$", _FORCED),
    ("x0_bias", r"mean error of $\hat{x}_0$", _FORCED),
    ("clipped", r"share of $\hat{x}_0$ beyond $\pm 1$", ["forced-train", "free"]),
)


def error_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Return RMSE, bias and clipped share of x0_hat by arm and level, averaged over seeds, with N images."""
    columns = [*_KEYS, "i", "t", "n"]
    rmse = over_seeds(steps, "x0_rmse", _FORCED).rename(columns={"value": "rmse", "error": "rmse_error"})
    table = rmse[[*columns, "rmse", "rmse_error"]]
    for quantity, name in (("x0_bias", "bias"), ("clipped", "clipped")):
        other = over_seeds(steps, quantity, _FORCED).rename(columns={"value": name})
        table = table.merge(other[[*_KEYS, "i", name]], on=[*_KEYS, "i"], how="left")
    return table


def draw_x0_error(steps: pd.DataFrame, folder: Path) -> list[Path]:
    """RMSE and bias of x0_hat on training and held-out images, and its clipped share, along t, at the most steps."""
    steps, sampler = first_sampler(steps)
    models, count = models_of(steps), int(steps["steps"].max())
    paint, here = colours(models), steps[steps["steps"] == count]
    with panels(1, len(_PANELS), sharex=True) as (figure, axes):
        figure.set_figheight(2.7)
        for axis, (quantity, label, arms) in zip(axes[0], _PANELS, strict=True):
            table = over_seeds(here, quantity, arms)
            for model in models:
                for arm, style in zip(arms, ("-", "--"), strict=True):
                    own = table[(table["model"] == model) & (table["arm"] == arm)]
                    error = own["error"] if quantity != "x0_bias" else float("nan")  # its std is that over pixels
                    band(axis, own.assign(error=error), paint[model], style)
            axis.set(xlabel=f"{level_symbol(sampler)} (levels of {count} steps)", ylabel=label)
        axes[0, 0].set_ylim(bottom=0)
        axes[0, 1].axhline(0, color="black", linewidth=0.8)
        noisy_left(axes[0, 0], sampler)
        styles = {"training images": ("-", "black"), "held out; right: free running": ("--", "black")}
        key(figure, paint, styles)
        return save(figure, folder, "x0_error")


def analyse(results: Results, out: Output) -> None:
    """Write and draw the error of x0_hat."""
    steps = results.steps()
    if not len(steps) or not (steps["quantity"] == "x0_rmse").any():
        return
    clipped = "clipped" if clips(results) else "not clipped"
    caption = (
        "x0_hat at single steps from real noised images, [-1, 1] scale. Left: root mean squared error; the distance"
        " of held-out images (dashed) from training images (solid) is what the network remembers of the latter."
        " Middle: mean error over pixels and images. Right: share of x0_hat's values at or beyond -1 and 1, which are"
        f" {clipped}, teacher forced (solid) and free running (dashed). Bands: two standard errors over images."
        f" {results.account()}."
    )
    out.table(_SECTION, "x0_error", thinned(error_table(steps)), "Error of the predicted image", caption)
    out.figure(_SECTION, draw_x0_error(steps, out.figures), "Error of the predicted image", caption)
