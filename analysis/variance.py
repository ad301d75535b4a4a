"""Variance gaps along sampling, each beside what an exact denoiser shows on the same levels."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.load import Results
from analysis.output import Output
from analysis.select import first_sampler, models_of, over_seeds, step_counts
from analysis.style import band, colours, key, noisy_left, panels, save

__all__ = ["analyse", "draw_variance_gap"]

_SECTION = "Variance"


def draw_variance_gap(steps: pd.DataFrame, folder: Path) -> list[Path]:
    """Marginal variance over the truth (top) and the published pred_std over its floor (bottom), along t."""
    steps, sampler = first_sampler(steps)
    models = models_of(steps)
    paint, counts = colours(models), step_counts(steps)
    with panels(2, len(counts), sharex=True, sharey="row") as (figure, axes):
        for row, quantity in enumerate(("variance_ratio", "excess_std")):
            table = over_seeds(steps, quantity, ["free", "gaussian"])
            for column, count in enumerate(counts):
                axis, here = axes[row, column], table[table["steps"] == count]
                for model in models:
                    own = here[(here["model"] == model) & (here["arm"] == "free")]
                    band(axis, own, paint[model], "-")
                exact = here[here["arm"] == "gaussian"].drop_duplicates("t")
                band(axis, exact, "black", "--")
                axis.axhline(1 - row, color="black", linewidth=0.8)
                noisy_left(axes[0, column])
        for column, count in enumerate(counts):
            axes[0, column].set_title(f"{count} steps")
            axes[1, column].set_xlabel("t")
        axes[0, 0].set_ylabel("marginal variance,\nsampled / true")
        axes[1, 0].set_ylabel("excess std over\nexact-sampler floor")
        styles = {f"sampled ({sampler})": ("-", "black"), "exact denoiser, Gaussian data": ("--", "black")}
        key(figure, paint, styles)
        return save(figure, folder, "variance_gap")


def analyse(results: Results, out: Output) -> None:
    """Draw the variance gaps."""
    steps = results.steps()
    if len(steps):
        out.figure(
            _SECTION, draw_variance_gap(steps, out.figures), "Variance along sampling",
            "Top: mean over pixels of Var(x_t) over its true value alpha^2 Var(x_0) + sigma^2; band: two standard"
            " errors. Bottom: published pred_std minus the floor that a perfect sampler shows. Dashed black: an exact"
            " denoiser of Gaussian data with the data's mean and covariance on the same levels, that is, what few steps"
            " alone cause. " + results.account() + ".",
        )  # fmt: skip
