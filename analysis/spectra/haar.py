"""Energies of the four Haar sub-bands along sampling, each over its reference, from ``moments.npz``.

One orthonormal Haar step splits an image into LL (a half-size copy), LH (detail along columns), HL (detail along rows)
and HH; first letter vertically. In these bands W++ and DCW state their claims on exposure bias.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.output.entries import Output
from analysis.output.selection import most_steps, thinned
from analysis.output.style import level_symbol, noisy_left, save
from analysis.records.load import Results
from analysis.spectra.band_power import BAND_NOTE, CSV_LEVELS, band_table, measured, ratio_panels

_SECTION = "Spectra"
_BANDS = ("LL", "LH", "HL", "HH")


def haar_table(results: Results) -> pd.DataFrame:
    """Return one row a model, sampler, step count, level and sub-band, pooled over seeds."""
    table = band_table(results, "haar")
    return table.assign(band=table["band"].map(dict(enumerate(_BANDS)))) if len(table) else table


def draw_haar(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Log ratio of energy along t, a panel a sub-band: states over closed form, x0_hat free running over forced."""
    table, sampler, steps = most_steps(table)
    with ratio_panels(table, {name: table["band"] == name for name in _BANDS}, "t") as (figure, rows):
        noisy_left(rows[0].axes[0], sampler)
        figure.supxlabel(f"{level_symbol(sampler)} (levels of {steps} steps)", fontsize=8)
        return save(figure, folder, "haar_ratio")


def analyse(results: Results, out: Output) -> None:
    """Write and draw the Haar energies."""
    table = haar_table(results)
    if not len(table):
        return
    _, sampler, _ = most_steps(table)
    forced = f"{table['n_forced'].max()} training images or fewer, the same at every seed"
    both = "x0_hat" in measured(table)
    below = (
        f"Bottom: log of x0_hat's energy free running over teacher forced at the same t ({forced}). " if both else ""
    )
    bands = (
        "Mean squared coefficient of one orthonormal Haar step, LL smooth to HH finest (first letter: vertically);"
        " white unit noise gives 1 in each. "
    )
    out.table(
        _SECTION, "haar", thinned(table, CSV_LEVELS), "Haar sub-band energies",
        f"{bands}state: of x after the step at t, over n samples of all seeds; its log ratio is to alpha^2 E_data +"
        " sigma^2 at the level reached. x0_hat: as the sampler used it, free running; its log ratio is to"
        f" teacher-forced steps at the same t ({forced}). se: standard error over images. At most {CSV_LEVELS} levels a"
        f" walk. {results.account()}.",
    )  # fmt: skip
    out.figure(
        _SECTION, draw_haar(table, out.figures), "Energy by sub-band along sampling",
        f"{bands}{'Top: log' if both else 'Log'} of the sampled state's energy over alpha^2 E_data + sigma^2, after the"
        f" step at t. {below}Below 0 energy is missing."
        f" {BAND_NOTE}Sampler {sampler}; {results.account(sampler)}.",
    )  # fmt: skip
