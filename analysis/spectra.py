"""Power spectra along sampling, free running against teacher forced and against the closed form, from ``moments.npz``.

The radially averaged power of x_t is ``alpha^2 S_data + sigma^2`` for real noised data. The state a free-running
sampler reaches is compared with that; its x0_hat, which is rightly smoother than the data, only with the x0_hat of
teacher-forced steps at the same level. All ratios are natural logarithms: below 0 power is missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.load import CellRecord, Results
from analysis.output import Output
from analysis.select import first_sampler, models_of
from analysis.style import noisy_left, panels, save

__all__ = ["analyse", "draw_spectra", "spectrum_table"]

_SECTION = "Spectra"


def _cell_rows(record: CellRecord) -> list[dict[str, object]]:
    names = ("i", "t", "alpha_next", "sigma_next", "data/spectrum", "free/spectrum_state/mean", "free/spectrum_x0/mean")
    arrays = {name: record.array("moments.npz", name) for name in names}
    if any(array is None for array in arrays.values()):
        return []
    i, t, alpha, sigma, data, state, x0 = (np.asarray(array) for array in arrays.values())
    forced = record.array("moments.npz", "forced-train/spectrum_x0/mean")
    closed = alpha[:, None] ** 2 * data + sigma[:, None] ** 2
    rows: list[dict[str, object]] = []
    for row in range(len(i)):
        for frequency in range(len(data)):
            values = {
                "frequency": frequency,
                "state": state[row, frequency],
                "state_true": closed[row, frequency],
                "x0_hat": x0[row, frequency],
                "x0_hat_forced": float("nan") if forced is None else forced[row, frequency],
            }
            rows.append({**record.key(), "i": int(i[row]), "t": float(t[row]), **values})
    return rows


def spectrum_table(results: Results) -> pd.DataFrame:
    """Return one row a cell, level and radial frequency; state quantities are those the step at (i, t) reached."""
    table = pd.DataFrame([row for rows in results.each(_cell_rows) for row in rows])
    if len(table):
        table["state_log_ratio"] = np.log(table["state"] / table["state_true"])
        table["x0_hat_log_ratio"] = np.log(table["x0_hat"] / table["x0_hat_forced"])
    return table


def draw_spectra(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Heat maps (level x frequency) of the log ratio of power: states over closed form, x0_hat free over forced."""
    table, _ = first_sampler(table)
    steps = int(table["steps"].max())
    table = table[table["steps"] == steps]
    models = models_of(table)[:4]
    quantities = {"state_log_ratio": "state / closed form", "x0_hat_log_ratio": r"$\hat{x}_0$ free / forced"}
    with panels(2, len(models), sharex=True, sharey=True) as (figure, axes):
        for row, (quantity, label) in enumerate(quantities.items()):
            for column, model in enumerate(models):
                grid = table[table["model"] == model].pivot_table(index="frequency", columns="t", values=quantity)
                image = axes[row, column].pcolormesh(
                    grid.columns, grid.index, grid.to_numpy(), cmap="RdBu_r", vmin=-0.3, vmax=0.3, shading="nearest"
                )
                axes[row, column].grid(False)
                axes[0, column].set_title(model)
                axes[1, column].set_xlabel(f"t (levels of {steps} steps)")
            axes[row, 0].set_ylabel(f"radial frequency\n({label})")
            figure.colorbar(image, ax=axes[row, :], label="log ratio of power", extend="both")
        noisy_left(axes[0, 0])
        return save(figure, folder, "spectrum_ratio")


def analyse(results: Results, out: Output) -> None:
    """Write and draw the spectra."""
    table = spectrum_table(results)
    if len(table):
        caption = (
            "Natural logarithm of the radially averaged power over its reference, by t and radial frequency. Top: the"
            " sampled state over alpha^2 S_data + sigma^2. Bottom: x0_hat free running over teacher forced at the same"
            " t. Blue: power is missing. " + results.account() + "."
        )
        out.table(_SECTION, "spectra", table, "Power spectra", caption)
        out.figure(_SECTION, draw_spectra(table, out.figures), "Where power is lost", caption)
