"""Radial power spectra along sampling and of the finished samples, each over its reference, from ``moments.npz``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.output.entries import Output
from analysis.output.selection import first_sampler, models_of, most_steps, shown, thinned
from analysis.output.style import (
    LineRow,
    is_edm,
    label_panels,
    level_name,
    level_symbol,
    line_key,
    line_panels,
    noisy_left,
    panels,
    save,
)
from analysis.records.load import Results
from analysis.spectra.band_power import (
    BAND_NOTE,
    CSV_LEVELS,
    LABELS,
    band_table,
    exact_key,
    measured,
    ratio_lines,
    ratio_panels,
)

_SECTION = "Spectra"
_LEAST_LIMIT = 0.1  # of the colour scale
_UNSURE = "0.85"  # grey
_RINGS = (
    "Radial frequency r is the ring of integer frequencies with floor(sqrt(u^2 + v^2) + 1/2) = r of the orthonormal"
    " Fourier transform (r = 0: mean grey; above half the image side: corners only). "
)


def spectrum_table(results: Results) -> pd.DataFrame:
    """Return one row a model, sampler, step count, level and radial frequency, pooled over seeds."""
    return band_table(results, "spectrum").rename(columns={"band": "frequency"})


def draw_heat(table: pd.DataFrame, quantity: str, folder: Path, name: str) -> list[Path]:
    """Heat maps (t x radial frequency) of the log ratio of power, a panel a model, at the most steps.

    Args:
        table: of ``spectrum_table``.
        quantity: ``state`` or ``x0_hat``.
        folder: where the figure goes.
        name: its file name.
    """
    table, sampler, steps = most_steps(table)
    models = models_of(table)
    columns, limit = min(4, len(models)), _limit(table[f"{quantity}_log_ratio"])
    with panels(-(-len(models) // columns), columns, sharex=True, sharey=True) as (figure, axes):
        for axis, model in zip(axes.flat, models, strict=False):
            cells = table[table["model"] == model]
            sure = cells[f"{quantity}_log_ratio"].abs() > 2 * cells[f"{quantity}_log_ratio_se"]
            significant = cells.assign(value=cells[f"{quantity}_log_ratio"].where(sure))
            grid = significant.pivot_table(index="frequency", columns="t", values="value", dropna=False)
            image = axis.pcolormesh(
                grid.columns, grid.index, grid.to_numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, shading="nearest"
            )
            axis.set_title(model)
        for axis in axes.flat:
            axis.grid(False)
            axis.set_facecolor(_UNSURE)
            if not is_edm(sampler):
                axis.xaxis.set_major_locator(MaxNLocator(3, prune="upper"))  # end labels of neighbours would touch
        for axis in axes.flat[len(models) :]:
            axis.set_axis_off()
        figure.supxlabel(f"{level_symbol(sampler)} (levels of {steps} steps)", fontsize=8)
        figure.supylabel("radial frequency", fontsize=8)
        figure.colorbar(image, ax=axes, label=LABELS[quantity], extend="both", aspect=20 * len(axes))
        noisy_left(axes[0, 0], sampler)
        return save(figure, folder, name)


def _limit(values: pd.Series) -> float:
    """Return the end of a symmetric colour scale that holds nearly all values."""
    return max(_LEAST_LIMIT, float(np.nanquantile(values.abs(), 0.98)) if values.notna().any() else 0.0)


def draw_samples(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Spectrum of the finished samples: power beside the data's (left), log ratio at up to three step counts."""
    table, _ = first_sampler(table)
    done = table[table["i"] == 0]
    counts = shown(sorted(done["steps"].unique()), 3)
    with line_panels(models_of(done), 1 + len(counts), sharey=False) as (figure, rows):
        for row in rows:
            _powers(row, row.axes[0], done[done["steps"] == counts[-1]])
            for axis, count in zip(row.axes[1:], counts, strict=True):
                ratio_lines(row, axis, done[done["steps"] == count], "state", "frequency")
                if axis is not rows[0].axes[1]:
                    axis.sharey(rows[0].axes[1])
                    axis.tick_params(labelleft=axis is row.axes[1])
            row.axes[1].set_ylabel("log(samples / data)")
        label_panels(rows, [f"{count} steps" for count in (counts[-1], *counts)])
        rows[0].axes[1].autoscale(axis="y")  # over all that share it now
        figure.supxlabel("radial frequency", fontsize=8)
        line_key(figure, rows, {"data": (":", "black"), **exact_key(table)})
        return save(figure, folder, "sample_spectrum")


def _powers(row: LineRow, axis: Axes, done: pd.DataFrame) -> None:
    """Draw mean power of samples and data along frequency."""
    for model in row.paint:
        line = done[done["model"] == model].sort_values("frequency")
        row.line(axis, model, line["frequency"], line["state"])
    data = line["state"] / np.exp(line["state_log_ratio"])
    axis.plot(line["frequency"], data, color="black", linestyle=":")
    axis.set_yscale("log")
    axis.minorticks_off()
    axis.set_ylabel("power")


def draw_curves(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Log ratio of power along frequency at four t: states over closed form, x0_hat free running over forced."""
    table, sampler, steps = most_steps(table)
    times = shown(sorted(table["t"].unique()))[::-1]
    titles = [f"step at {level_name(t, sampler)}" + (", the last" if t == times[-1] else "") for t in times]
    chosen = {title: table["t"] == t for title, t in zip(titles, times, strict=True)}
    with ratio_panels(table, chosen, "frequency") as (figure, _):
        figure.supxlabel(f"radial frequency ({steps} steps)", fontsize=8)
        return save(figure, folder, "spectrum_curves")


def analyse(results: Results, out: Output) -> None:
    """Write and draw the spectra."""
    table = spectrum_table(results)
    if not len(table):
        return
    _, sampler, steps = most_steps(table)
    account = f"Sampler {sampler}; {results.account(sampler)}"
    forced = f"{table['n_forced'].max()} training images or fewer, the same at every seed"
    both = "x0_hat" in measured(table)
    below = f"Bottom: log of x0_hat's power free running over teacher forced at the same t ({forced}). " if both else ""
    out.table(
        _SECTION, "spectra", thinned(table, CSV_LEVELS), "Power spectra",
        "Radially averaged power. " + _RINGS + "state: mean power of x after the step at t, over n samples of all"
        " seeds; its log ratio is to alpha^2 S_data + sigma^2 at the level reached. x0_hat: as the sampler used it,"
        f" free running; its log ratio is to teacher-forced steps at the same t ({forced}). se: standard error over"
        f" images. At most {CSV_LEVELS} levels a walk. {results.account()}.",
    )  # fmt: skip
    out.figure(
        _SECTION, draw_samples(table, out.figures), "Spectrum of the finished samples",
        f"Left: power of finished (unquantised) samples and of the training images at {steps} steps. Right: natural"
        " logarithm of their ratio by step count, 0 is the data, below 0 power is missing, -0.1 is 10 % less."
        f" {BAND_NOTE}{_RINGS}{account}.",
    )  # fmt: skip
    out.figure(
        _SECTION, draw_curves(table, out.figures), "Spectra along sampling",
        f"{'Top: log' if both else 'Log'} of the sampled state's power over alpha^2 S_data + sigma^2, what real noised"
        f" images have, after the step at t. {below}Where the band holds 0 nothing is missing that these images could"
        f" show. {BAND_NOTE}{_RINGS}{account}.",
    )  # fmt: skip
    heat = (
        " Blue: power is missing, red: too much. Grey: within two standard"
        f" errors of 0; where nothing is amiss 5 % are coloured all the same. {_RINGS}{account}."
    )
    out.figure(
        _SECTION, draw_heat(table, "state", out.figures, "spectrum_ratio"), "Where the state loses power",
        "Natural logarithm of the state's power over alpha^2 S_data + sigma^2, by level and radial frequency." + heat,
    )  # fmt: skip
    if not both:
        return
    out.figure(
        _SECTION, draw_heat(table, "x0_hat", out.figures, "x0_spectrum_ratio"), "Where the predicted image loses power",
        "Natural logarithm of x0_hat's power free running over teacher forced at the same t, by level and radial"
        f" frequency ({forced})." + heat,
    )  # fmt: skip
