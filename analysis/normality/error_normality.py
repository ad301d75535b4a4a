"""Is the prediction error Gaussian? The published Shapiro-Wilk procedure beside a corrected one, from ``errors.npz``.

e_t = x0 - x0_hat at single teacher-forced steps. Published (Ning et al. 2023, branch gaussian_error): at each t and for
each pixel a test over 100 images drawn without replacement at level .05, the share of pixels that reject, and its mean
over t. Corrected: all images that a seed stored, Benjamini-Hochberg over pixels, the excess kurtosis, and the test's
power at the n used, without which a low share means nothing. Pixels of zero range are left out of shares and counted.

Seeds are never pooled in a test. They share their images and differ in noise alone; errors of one image at two seeds
correlate by .15 to .6 on the digits, and samples of 100 images x 5 seeds that are normal but correlate by .3 / .45 /
.6 are rejected in 7 / 9 / 15 % instead of 5 % of cases. Each seed is a test of its own and the results are averaged;
the spread over seeds is that of the noise, not that of other images.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.normality.shapiro import LEVEL, MOST, RATES, level_statistics, power_table
from analysis.output.entries import Output
from analysis.output.selection import models_of, most_steps, thinned
from analysis.output.style import level_symbol, line_key, line_panels, noisy_left, save
from analysis.output.text import used_x0
from analysis.records.arrays import single_errors
from analysis.records.files import read_table
from analysis.records.load import CellRecord, Results, ResultsError

_SECTION = "Prediction error"
TESTS = "normality.csv"  # of a published cell
_COUNTS = ["n", "n_published", "pixels", "constant_pixels"]
_TESTED = ["i", "t", *_COUNTS, "rejected", "rejected_fdr", "mean_w", "excess_kurtosis"]
_WALK = ["model", "sampler", "steps"]


def tested_levels(record: CellRecord) -> pd.DataFrame | None:
    """Return the tests of a cell, one row a level; None where no errors were kept.

    A published cell has the errors of a few levels alone, and beside them the tests of all.

    Raises:
        ResultsError: the file with the errors, or that with the tests, is damaged.
    """
    path = record.folder / TESTS
    if path.exists():
        try:
            table = read_table(path)[_TESTED]
            return table.astype(float).astype(dict.fromkeys(("i", *_COUNTS), int))
        except (OSError, ValueError, KeyError) as error:
            raise ResultsError(f"{path} is damaged ({error}); delete the cell and run again") from None
    single = single_errors(record)
    if single is None:
        return None
    levels = zip(single.i, single.t, single.errors, strict=True)
    return pd.DataFrame([{"i": int(i), "t": float(t), **level_statistics(errors)} for i, t, errors in levels])


def per_cell(results: Results) -> pd.DataFrame:
    """Return the tests, one row a cell and level; empty where no errors were kept."""

    def read(record: CellRecord) -> pd.DataFrame | None:
        tests = tested_levels(record)
        return None if tests is None else tests.assign(**record.key())

    tables = results.each(read)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def normality_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the tests' means over seeds and, as ``_sd``, their spread, one row a model, sampler, steps and level."""
    groups = cells.groupby([*_WALK, "i", "t"], sort=False)
    first = groups[_COUNTS].mean()
    means = groups[["rejected", "rejected_fdr", "mean_w", "excess_kurtosis"]].mean()
    spreads = groups[["rejected", "rejected_fdr", "excess_kurtosis"]].std().add_suffix("_sd")
    return pd.concat([groups.size().rename("seeds"), first, means, spreads], axis=1).reset_index()


def summary_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the papers' single number, the mean over t of the rejected share, at the most steps of each walk.

    ``published`` and its corrected neighbour are means over seeds; ``_sd`` is the spread over seeds.
    """
    most = cells["steps"] == cells.groupby(["model", "sampler"])["steps"].transform("max")
    over_t = cells[most].groupby([*_WALK, "seed"], sort=False)
    seeds = (
        over_t[["rejected", "rejected_fdr", "excess_kurtosis"]].mean().assign(levels=over_t.size(), n=over_t.n.max())
    )
    groups = seeds.reset_index().groupby(_WALK, sort=False)
    table = groups[["levels", "n"]].max().assign(seeds=groups.size())
    names = {"rejected": "published", "rejected_fdr": "fdr_controlled", "excess_kurtosis": "excess_kurtosis"}
    for column, name in names.items():
        table[name], table[f"{name}_sd"] = groups[column].mean(), groups[column].std()
    return table.reset_index()


def draw_normality(table: pd.DataFrame, power: pd.DataFrame, folder: Path) -> list[Path]:
    """Rejected shares along t, published and corrected, excess kurtosis, and of few models the test's power."""
    table, sampler, steps = most_steps(table)
    quantities = {**RATES, "excess_kurtosis": "excess kurtosis, mean over pixels"}
    models = models_of(table)
    few = len(models) <= len(quantities) + 1  # one row, with room for the power
    with line_panels(models, len(quantities) + few, sharex=False, sharey=False) as (figure, rows):
        figure.set_figheight(max(2.6, figure.get_figheight()))
        for row in rows:
            for axis, quantity in zip(row.axes, quantities, strict=False):
                axis.axhline(LEVEL if quantity == "rejected" else 0, color="0.5", linewidth=0.8, linestyle="--")
                for model in row.paint:
                    line = table[table["model"] == model].sort_values("t")
                    row.line(axis, model, line["t"], line[quantity])
                axis.set_xlabel(f"{level_symbol(sampler)} ({steps} steps)" if row is rows[-1] else "")
                noisy_left(axis, sampler)
                if quantity in RATES:
                    axis.set_ylim(-0.03, 1.03)
            row.axes[0].set_ylabel("share of pixels")
        for axis, title in zip(rows[0].axes, quantities.values(), strict=False):
            axis.set_title("\n".join(wrap(title, 20)))
        if few:
            _power(rows[0].axes[-1], power)
        line_key(figure, rows, {"expected of normal errors": ("--", "0.5")})
        return save(figure, folder, "error_normality")


def _power(axis: Axes, power: pd.DataFrame) -> None:
    """Draw a bar a distribution and sample size."""
    sizes = sorted(power["n"].unique())
    names = list(dict.fromkeys(power["distribution"]))
    height = 0.8 / len(sizes)
    for position, n in enumerate(sizes):
        share = power[power["n"] == n].set_index("distribution")["rejected"].reindex(names)
        places = np.arange(len(names)) + (position - (len(sizes) - 1) / 2) * height
        bars = axis.barh(places, share, height, color=str(0.45 + 0.3 * position), label=f"n = {n}")
        axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=6)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(False)
    axis.set(xlim=(0, 1.15), xlabel="share rejected")
    axis.set_title("power" + (f"\nat n = {sizes[0]}" if len(sizes) == 1 else ""))
    if len(sizes) > 1:
        axis.legend()


def analyse(results: Results, out: Output) -> None:
    """Write and draw the tests of normality."""
    cells = per_cell(results)
    if not len(cells):
        return
    table, drawn, n = normality_table(cells), int(cells["n_published"].max()), int(cells["n"].max())
    power = power_table(drawn, min(n, MOST))
    account = (
        f"n = {n} training and held-out images a seed, the same at every seed and so never pooled, but averaged;"
        f" {results.account()}."
    )
    what = f"Shapiro-Wilk for each pixel on e_t = x0 - x0_hat of single teacher-forced steps, {used_x0(results)}. "
    _enter_tables(cells, table, power, (what, account), out)
    out.figure(
        _SECTION, draw_normality(table, power, out.figures), "Is the error Gaussian?",
        f"{what}From the left: share of pixels rejected at level .05 over {drawn} images, as published; normal errors"
        " give .05 (dashed); the share after Benjamini-Hochberg over pixels on all images (5000 at most); any at"
        " all is evidence; excess kurtosis (0: normal, 3: Laplace); what share of samples of"
        f" known shapes the test rejects at this n; a low share with low power is no evidence of normality. {account}",
    )  # fmt: skip


def _enter_tables(
    cells: pd.DataFrame, table: pd.DataFrame, power: pd.DataFrame, words: tuple[str, str], out: Output
) -> None:
    """Write the tables; ``words`` say what was tested, and on how many images."""
    what, account = words
    drawn = int(cells["n_published"].max())
    out.table(
        _SECTION, "normality_summary", summary_table(cells), "Rejected share, mean over t",
        f"{what}published: mean over t, at the most steps, of the share of pixels rejected at level .05 over {drawn}"
        " images, the papers' single number; fdr_controlled: after Benjamini-Hochberg over pixels on all images."
        f" Normal errors would give .05 and about 0, and excess kurtosis 0. _sd: spread over seeds. {account}",
    )  # fmt: skip
    out.table(
        _SECTION, "normality", thinned(table), "Normality of the error",
        f"{what}rejected: share of pixels at level .05 over n_published images; rejected_fdr: on all n images after"
        " Benjamini-Hochberg over pixels; excess_kurtosis: mean over pixels of the unbiased G2. Means over seeds; _sd:"
        f" spread over seeds. Pixels of zero range are left out and counted. {account}",
    )  # fmt: skip
    out.table(
        _SECTION, "normality_power", power, "Power of the test",
        "Share of simulated independent samples of size n that Shapiro-Wilk rejects at level .05 (standard error at"
        " most .011); clipped at 1.5 standard deviations, Student's t with 5 degrees of freedom. A share of rejected"
        " pixels can be read only beside these.",
    )  # fmt: skip
