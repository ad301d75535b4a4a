"""The marginal variance of the state along sampling: what few steps alone cause, and what the network adds.

An exact denoiser of Gaussian data with the data's mean and covariance, walked along the same levels with the same
variance mode, does not keep the true variance either (arm ``gaussian``, a closed form). Every measured ratio
Var(x_t) / (alpha^2 Var(x_0) + sigma^2), both averaged over pixels first, splits into that part and the rest.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.output.entries import Output
from analysis.output.selection import EXACT, exact_values, first_sampler, models_of, over_seeds, step_counts, thinned
from analysis.output.style import (
    EXACT_KEY,
    RECORDED,
    RECORDED_KEY,
    exact_band,
    is_edm,
    label_levels,
    line_key,
    line_panels,
    reference,
    save,
)
from analysis.output.text import other_causes, recorded_words
from analysis.records.arrays import recorded_ratios
from analysis.records.load import Results

_SECTION = "Variance"
_KEYS = ["sampler", "model", "steps"]
_ARMS = ["free", *EXACT]


def variance_table(steps: pd.DataFrame, recorded: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the split at every level: measured ratio, its standard error, and the two parts.

    ``few_steps`` is the exact denoiser's ratio minus 1, ``network`` the measured ratio minus the exact denoiser's,
    ``z`` that part in standard errors over images. Where no exact answer was computed both are empty. ``exact_...``:
    the ratio of exact denoisers of the stand-ins for the data that were walked. ``recorded``: that of Gaussian data
    with the network's own variance, of :func:`analysis.records.arrays.recorded_ratios`.
    """
    table = over_seeds(steps, "variance_ratio", _ARMS)
    free = table[table["arm"] == "free"].rename(columns={"value": "ratio"})
    exact = exact_values(table, [*_KEYS, "i"])
    joined = free.merge(exact, on=[*_KEYS, "i"], how="left")
    floor = joined["exact_gaussian"] if "exact_gaussian" in joined else float("nan")
    joined["few_steps"] = floor - 1
    joined["network"] = joined["ratio"] - floor
    joined["z"] = joined["network"] / joined["error"]
    columns = [*_KEYS, "i", "t", "n", "ratio", "error", "few_steps", "network", "z", *exact.columns[len(_KEYS) + 1 :]]
    if recorded is None or not len(recorded):
        return joined[columns]
    own = recorded.assign(i=recorded["i"] - 1, recorded=recorded["variance_ratio"])  # a state stands one level on
    return joined.merge(own[[*_KEYS, "i", "recorded"]], on=[*_KEYS, "i"], how="left")[[*columns, "recorded"]]


def final_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the split at the finished samples, the table's least noisy level."""
    final = table.loc[table.groupby(_KEYS, sort=False)["i"].idxmin()].drop(columns=["i", "t"])
    return final.sort_values(["sampler", "steps"], kind="stable", ignore_index=True)


def draw_variance_gap(steps: pd.DataFrame, folder: Path, recorded: pd.DataFrame | None = None) -> list[Path]:
    """Marginal variance over the truth and (of few models) the published pred_std over its floor, along t."""
    steps, sampler = first_sampler(steps)
    counts = step_counts(steps)
    tables = {"ratio": over_seeds(steps, "variance_ratio", _ARMS), "excess": _excess(steps, sampler)}
    own = variance_table(steps, recorded)
    with line_panels(models_of(steps), len(counts), list(tables), main="ratio") as (figure, rows):
        for row in rows:
            for axis, count in zip(row.axes, counts, strict=True):
                table = tables[row.quantity][tables[row.quantity]["steps"] == count]
                exact_band(axis, exact_values(table, ["t"]))
                for model in row.paint:
                    row.band(axis, model, table[(table["model"] == model) & (table["arm"] == "free")])
                    if row.quantity == "ratio" and "recorded" in own:
                        line = own[(own["model"] == model) & (own["steps"] == count)]
                        axis.plot(line["t"], line["recorded"], color=row.paint[model], **RECORDED)
                reference(axis, 1 if row.quantity == "ratio" else 0)
        label_levels(rows, counts, sampler)
        excess = "(pred_std - floor)\n/ floor" if is_edm(sampler) else "excess std over\nexact-sampler floor"
        for row in rows:
            row.axes[0].set_ylabel("marginal variance,\nsampled / true" if row.quantity == "ratio" else excess)
        styles = EXACT_KEY if steps["arm"].isin(EXACT).any() else {}
        line_key(figure, rows, styles | (RECORDED_KEY if "recorded" in own else {}))
        return save(figure, folder, "variance_gap")


def _excess(steps: pd.DataFrame, sampler: str) -> pd.DataFrame:
    """Return pred_std minus its floor; on EDM levels over the floor, for both grow with sigma there."""
    table = over_seeds(steps, "excess_std", _ARMS)
    if is_edm(sampler):
        keys = [*_KEYS, "arm", "i"]
        floor = over_seeds(steps, "floor_std", _ARMS)[[*keys, "value"]].rename(columns={"value": "floor"})
        table = table.merge(floor, on=keys)
        table["value"] /= table["floor"]
    return table


def draw_variance_parts(table: pd.DataFrame, folder: Path) -> list[Path]:
    """The part of the variance gap that few steps cause (top) and the rest (bottom, alone of many models), along t."""
    table, sampler = first_sampler(table)
    counts = step_counts(table)
    with line_panels(models_of(table), len(counts), ["few steps", "rest"]) as (figure, rows):
        for row in rows:
            for axis, count in zip(row.axes, counts, strict=True):
                lines = table[table["steps"] == count]
                reference(axis, 0)
                if row.quantity == "few steps":
                    exact_band(axis, lines, less=1)
                    continue
                exact_band(axis, lines, less=lines["exact_gaussian"])
                row.bands(axis, (lines.rename(columns={"network": "value"}), "-"))
        label_levels(rows, counts, sampler)
        for row in rows:
            few = row.quantity == "few steps"
            row.axes[0].set_ylabel("few steps alone\n(exact - 1)" if few else "rest (sampled -\nexact, Gaussian)")
        line_key(figure, rows, EXACT_KEY)
        return save(figure, folder, "variance_parts")


def _exact_words(steps: pd.DataFrame, results: Results) -> str:
    """Say what the dashed curve is and what leaving it means, or why there is none."""
    if not (steps["arm"] == "gaussian").any():
        return (
            "An exact denoiser was not computed for images of this size, so what few steps alone cause and what the"
            " network adds are not told apart."
        )
    return (
        "Dashed black: an exact denoiser of Gaussian data with the data's mean and covariance on the same levels;"
        " grey: the range over it and the exact denoisers of a mixture and of the training images themselves, where"
        f" they were walked. A curve off all of them is the doing of {other_causes(results)}."
    )


def analyse(results: Results, out: Output) -> None:
    """Write the split of the variance gap and draw it."""
    steps = results.steps
    if not len(steps):
        return
    recorded = results.once(recorded_ratios)
    table, account = variance_table(steps, recorded), results.account()
    share = ", over that floor" if is_edm(first_sampler(steps)[1]) else ""
    if not len(table):
        return
    out.figure(
        _SECTION, draw_variance_gap(steps, out.figures, recorded), "Variance along sampling",
        "Top: mean over pixels of Var(x_t) over its true value, mean of alpha^2 Var(x_0) + sigma^2. Bottom (where"
        f" models are few): pred_std, the published measure, minus the floor that a perfect sampler shows{share}."
        f" Bands: two standard errors over images. {_exact_words(steps, results)}{recorded_words(recorded)} {account}.",
    )  # fmt: skip
    caption = (
        "ratio: mean over pixels of Var(x) over its true value; few_steps: what an exact denoiser on the same levels"
        f" and variance mode shows, minus 1; network: the rest, the doing of {other_causes(results)}; z: the rest in"
        f" standard errors over images. {account}."
    )
    out.table(_SECTION, "variance", thinned(table), "The variance gap along sampling", caption)
    out.table(_SECTION, "variance_final", final_table(table), "The variance of the finished samples", caption)
    if table["network"].notna().any():
        out.figure(
            _SECTION, draw_variance_parts(table, out.figures), "What few steps cause, and what the network adds",
            "The gap of the marginal variance, measured minus 1, split in two. Top (where models are few): an exact"
            " denoiser of Gaussian data on the same levels and variance mode (closed form, no error). Bottom: the"
            f" rest, sampled minus exact, band of two standard errors: the doing of {other_causes(results)}. Grey:"
            " the range over the exact denoisers of all stand-ins for the data; within it the sign of the rest"
            f" depends on the stand-in. {account}.",
        )  # fmt: skip
