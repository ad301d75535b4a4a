"""Exposure bias in units of timesteps: which level a sampler's own states look like to the network.

At a fixed conditioning s the norm ||eps_theta(x_t, s)|| rises with the noise level t of real states (Yu et al. 2026,
figure 1). Inverting that curve at the norm which sampling shows at s gives the effective timestep t_eff(s); t_eff > s
says that the sampled state looks noisier than the network is told. t and s are training indices, from 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.output.entries import Output
from analysis.output.selection import first_sampler, models_of, over_seeds, shown, step_counts
from analysis.output.style import (
    band,
    colours,
    key,
    label_levels,
    line_key,
    line_panels,
    noisy_left,
    panels,
    reference,
    save,
)
from analysis.records.experiments import read_records
from analysis.records.load import Results

_SECTION = "Effective timestep"
_SHOWN = 6

Floats = NDArray[np.float64]


def invert(t: Floats, norm: Floats, value: float) -> tuple[float, float]:
    """Return (where a sampled curve takes a value, its slope there), by linear interpolation.

    Of several crossings, which noise in a flat part of the curve can make, the one nearest to ``t`` = 0 counts, where
    callers put the conditioning level. (nan, nan) where the curve never gets there.

    Args:
        t: ascending, distance from the conditioning level.
        norm: the curve.
        value: where to invert it.
    """
    below = norm[:-1] - value
    above = norm[1:] - value
    crossing = np.flatnonzero((below * above <= 0) & (norm[1:] != norm[:-1]))
    if not len(crossing):
        return float("nan"), float("nan")
    slope = (norm[1:] - norm[:-1])[crossing] / (t[1:] - t[:-1])[crossing]
    places = t[crossing] - below[crossing] / slope
    nearest = int(np.argmin(np.abs(places)))
    return float(places[nearest]), float(slope[nearest])


def effective_table(response: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Return the effective timestep at every conditioning level that was asked, ``shift`` = t_eff - s.

    ``error`` is that of the shift: the standard error of the difference of the two mean norms (sampled, and real at s)
    over the slope of the curve. The curve's own points share their images, so their common error is that at s.
    """
    free = dict(iter(over_seeds(steps, "eps_norm", ["free"]).groupby(["model", "steps", "t"])))
    rows = []
    for (model, count, s), curve in response.groupby(["model", "steps", "s"], sort=False):
        curve = curve.sort_values("t")
        t, norm = curve["t"].to_numpy(float) - s, curve["norm"].to_numpy(float)
        if not (t == 0).any():
            continue
        at = curve[curve["t"] == s].iloc[0]
        measured = free.get((model, count, s))
        if measured is None:
            continue
        real_error = at["norm_std"] / np.sqrt(at["n"])
        for sampler, value, error, images in measured[["sampler", "value", "error", "n"]].itertuples(
            index=False, name=None
        ):
            shift, slope = invert(t, norm, value)
            row = {"sampler": sampler, "model": model, "steps": count, "t": s, "n": images, "shift": shift}
            rows.append(row | {"error": abs(np.hypot(error, real_error) / slope), "slope": slope})
    return pd.DataFrame(rows)


def draw_response(response: pd.DataFrame, folder: Path) -> list[Path]:
    """The norm against the level of the state, a curve a conditioning level, for the first model at the most steps."""
    model, count = models_of(response)[0], int(response["steps"].max())
    curves = response[(response["model"] == model) & (response["steps"] == count)]
    levels = shown(sorted(int(s) for s in curves["s"].unique()), _SHOWN)
    paint = colours([f"s = {s}" for s in levels])
    with panels(1, 1) as (figure, axes):
        axis = axes[0, 0]
        for s, colour in zip(levels, paint.values(), strict=True):
            curve = curves[curves["s"] == s].sort_values("t")
            band(axis, curve.assign(value=curve["norm"], error=curve["norm_std"] / np.sqrt(curve["n"])), colour, "-")
            at = curve[curve["t"] == s]
            axis.plot(at["t"], at["norm"], "o", color=colour, markersize=4)
        axis.set_xlabel("t of the state")
        axis.set_ylabel(r"$\|\epsilon_\theta(x_t, s)\|_2$")
        axis.set_yscale("log")
        noisy_left(axis)
        key(figure, paint, {})
        return save(figure, folder, "response")


def draw_effective(table: pd.DataFrame, folder: Path) -> list[Path]:
    """The shift t_eff - t along sampling, a panel a step count."""
    table, sampler = first_sampler(table.assign(value=table["shift"]).sort_values("t", kind="stable"))
    counts = step_counts(table)
    with line_panels(models_of(table), len(counts)) as (figure, rows):
        for row in rows:
            for axis, count in zip(row.axes, counts, strict=True):
                row.bands(axis, (table[table["steps"] == count], "-"))
                reference(axis, 0)
            row.axes[0].set_ylabel(f"effective t - t ({sampler})")
        label_levels(rows, counts)
        low, high = (np.nanpercentile(table["shift"], q) for q in (1, 99))
        rows[0].axes[0].set_ylim(min(low, -1) * 1.4, max(high, 1) * 1.4)
        line_key(figure, rows, {})
        return save(figure, folder, "effective_timestep")


def analyse(results: Results, out: Output) -> None:
    """Write and draw the response and the effective timestep, where they were measured."""
    response, steps = read_records(results.folder("response"), "response", results.problem), results.steps
    if not len(response):
        return
    n, part = int(response["n"].max()), ", ".join(sorted(response["part"].unique()))
    caption = (
        "Mean over images of ||eps_theta(x_t, s)|| for real noised states x_t of every level t, the network being"
        f" told s (dot: t = s). Bands: two standard errors over {n} images ({part} part)."
    )
    out.figure(_SECTION, draw_response(response, out.figures), "Response to mismatched noise", caption)
    table = effective_table(response, steps) if len(steps) else pd.DataFrame()
    if len(table) and table["shift"].notna().any():
        caption = (
            "Effective timestep minus the one the network is told: where the response curve takes the norm that"
            " sampling shows. Above 0 the sampled state looks noisier than it should. Bands: two standard errors of"
            " the norms over the slope of the curve; where the curve is flat the level cannot be told and the band"
            " is wide. "
            + results.account() + "."
        )  # fmt: skip
        out.table(_SECTION, "effective_timestep", table, "Effective timestep", caption)
        out.figure(_SECTION, draw_effective(table, out.figures), "Exposure bias in timesteps", caption)
