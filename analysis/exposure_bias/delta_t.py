"""The published variance measure delta_t beside what a perfect sampler must show, and the papers' formula for it.

delta_t = (pred_std - sigma_t)^2 with pred_std the mean over pixels of the standard deviation of x_t - alpha_t x_0 (Ning
et al. 2024). A chain from noise forgets x_0, so a perfect sampler's pred_std is not sigma_t but the mean of
sqrt(sigma_t^2 + 2 alpha_t^2 Var(x_0)): the floor, which is nearly all of the published curve.

For one step from real noised data the papers predict Var(x_next | x_0) = sigma_next^2 + (c1 e_t)^2, with c1 the weight
of x0_hat in the posterior mean and e_t^2 the mean squared error of x0_hat, from an error that is unbiased and
independent of x_t. The error of an exact denoiser is neither, and the formula fails for it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.output.entries import Output
from analysis.output.selection import first_sampler, models_of, over_seeds, step_counts, thinned
from analysis.output.style import is_edm, label_levels, line_key, line_panels, reference, save
from analysis.records.load import Results

_SECTION = "Variance"
_ROWS = {
    "conditional": "measured\n" + r"Var$(x_t|x_0)/\sigma_t^2-1$",
    "formula": "the papers' formula\n" + r"$(c_1 e)^2/\sigma_t^2$",
}
_CHANCE = (
    " Where sigma is large so is chance: pred_std of N samples is known to about sigma / sqrt(2 N pixels), and the"
    " distance there is that of an initial noise which all models share."
)
_SINGLE = ["forced-train", "forced-heldout", "gaussian-forced"]


def draw_delta(steps: pd.DataFrame, folder: Path) -> list[Path]:
    """Published multi-step delta_t of every model over the floor of a perfect sampler, on one logarithmic axis."""
    steps, sampler = first_sampler(steps)
    counts = step_counts(steps)
    measured, floor = (over_seeds(steps, quantity, ["free"]) for quantity in ("delta_t", "delta_t_floor"))
    with line_panels(models_of(steps), len(counts)) as (figure, rows):
        for row in rows:
            for axis, count in zip(row.axes, counts, strict=True):
                exact = floor[floor["steps"] == count].drop_duplicates("t")
                for model in row.paint:
                    line = measured[(measured["steps"] == count) & (measured["model"] == model)]
                    row.line(axis, model, line["t"], line["value"])
                axis.plot(exact["t"], exact["value"], color="black", linestyle="--")
            row.axes[0].set_ylabel(r"published $\delta_t$")
        label_levels(rows, counts, sampler)
        rows[0].axes[0].set_yscale("log")  # which all panels share
        for row in rows:
            for axis in row.axes:
                axis.minorticks_off()
        drawn = np.append(floor["value"], measured["value"])
        low = np.quantile(drawn[drawn > 0], 0.02) if (drawn > 0).any() else 1.0  # without zeros that curves cross
        rows[0].axes[0].set_ylim(bottom=max(1e-7, 0.3 * low))
        line_key(figure, rows, {f"perfect sampler ({sampler})": ("--", "black")})
        return save(figure, folder, "delta_t")


def single_step_table(steps: pd.DataFrame, eta: float = 0.0) -> pd.DataFrame:
    """Return measured and predicted conditional variance after one step from real noised data.

    ``conditional``: Var(x_next | x_0), mean over pixels; ``formula``: sigma_next^2 + (c1 e)^2; both relative to
    sigma_next^2, minus 1. ``t`` is that of the state reached. The step to the clean level is left out (0 / 0). A Heun
    step has two errors, of two calls, and no formula.

    Args:
        steps: the per-step tables.
        eta: DDIM's.
    """
    keys = ["sampler", "model", "steps", "arm"]
    reached = over_seeds(steps, "var_conditional", _SINGLE).rename(columns={"value": "conditional"})
    error = over_seeds(steps, "x0_rmse", _SINGLE)[[*keys, "i", "alpha", "sigma", "value"]]
    error = error.assign(i=error["i"] - 1).rename(columns={"alpha": "alpha_seen", "sigma": "sigma_seen", "value": "e"})
    joined = reached[reached["sigma"] > 0].merge(error, on=[*keys, "i"])
    joined["formula"] = (_weight(joined, eta) * joined["e"] / joined["sigma"]) ** 2
    joined["error"] = joined["error"] / joined["sigma"] ** 2
    joined["conditional"] = joined["conditional"] / joined["sigma"] ** 2 - 1
    return joined[[*keys, "i", "t", "n", "conditional", "error", "formula"]]


def _weight(joined: pd.DataFrame, eta: float) -> pd.Series:
    """Return c1, the weight of x0_hat in x_next: of the posterior mean, or of a step along eps (DDIM, Euler)."""
    alpha, sigma = joined["alpha"], joined["sigma"]  # of the state that is reached
    explained = (joined["alpha_seen"] / alpha * sigma / joined["sigma_seen"]) ** 2  # of the variance of x, by x_next
    along_eps = 1 - joined["sampler"].map({"ddim": eta}).fillna(0.0) ** 2 * (1 - explained)
    weight = alpha - joined["alpha_seen"] * sigma / joined["sigma_seen"] * along_eps**0.5
    weight = weight.mask(joined["sampler"] == "ddpm", alpha * (1 - explained))
    return weight.mask(joined["sampler"].str.startswith("heun"))


def draw_single_step(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Conditional variance after one step and the papers' formula for it, for the models and an exact denoiser."""
    table, sampler = first_sampler(table)
    counts = step_counts(table)
    quantities = [quantity for quantity in _ROWS if table[quantity].notna().any()]
    with line_panels(models_of(table), len(counts), quantities, main="conditional", sharey=True) as (figure, rows):
        for row in rows:
            for axis, count in zip(row.axes, counts, strict=True):
                lines = table[table["steps"] == count]
                exact = lines[lines["arm"] == "gaussian-forced"].drop_duplicates("t")
                for model in row.paint:
                    line = lines[(lines["model"] == model) & (lines["arm"] == "forced-train")]
                    sure = row.quantity != "conditional" or model != list(row.paint)[-1]  # models share their noise
                    error = float("nan") if sure else line["error"]
                    row.band(axis, model, line.assign(value=line[row.quantity], error=error))
                axis.plot(exact["t"], exact[row.quantity], color="black", linestyle="--")
                reference(axis, 0)
            row.axes[0].set_ylabel(_ROWS[row.quantity])
        label_levels(rows, counts, sampler)
        # Linear around 0 and logarithmic beyond, because the gap spans decades towards the clean level.
        rows[0].axes[0].set_yscale("symlog", linthresh=0.01)
        rows[0].axes[0].set_ylim(bottom=min(-0.01, float(table["conditional"].min()) * 1.2))
        exact_key = {f"exact denoiser, Gaussian data ({sampler})": ("--", "black")}
        line_key(figure, rows, exact_key if _has_exact(table) else {})
        return save(figure, folder, "single_step_variance")


def analyse(results: Results, out: Output) -> None:
    """Draw delta_t over its floor, and the papers' formula against what one step does."""
    steps = results.steps
    if not len(steps):
        return
    account = results.account()
    if (steps["quantity"] == "delta_t_floor").any():
        chance = _CHANCE if is_edm(first_sampler(steps)[1]) else ""
        out.figure(
            _SECTION, draw_delta(steps, out.figures), "The published delta_t and its floor",
            "delta_t = (pred_std - sigma_t)^2 as published (Ning et al. 2024, multi-step), and what it is for a"
            " perfect sampler that forgot x_0 (dashed): (mean over pixels of sqrt(sigma_t^2 + 2 alpha_t^2 Var(x_0))"
            " - sigma_t)^2. Only the distance from the dashed curve is evidence of exposure bias; it is drawn signed"
            f" under Variance along sampling.{chance} {account}.",
        )  # fmt: skip
    table = single_step_table(steps, max(float(record.cell.get("eta", 0.0)) for record in results.cells))
    if len(table):
        caption = f"{_explanation(first_sampler(table)[0])} n images are counted in the table. {account}."
        out.table(_SECTION, "single_step_variance", thinned(table), "One step from real data", caption)
        out.figure(_SECTION, draw_single_step(table, out.figures), "The variance after one step", caption)


def _has_exact(table: pd.DataFrame) -> bool:
    """Tell whether an exact denoiser was computed, which large images have none of."""
    return bool((table["arm"] == "gaussian-forced").any())


def _explanation(table: pd.DataFrame) -> str:
    """Return what the figure of one step shows."""
    measured = "Relative excess of Var(x_t | x_0) over sigma_t^2 after one step from real noised training images"
    dashed = "; dashed: an exact denoiser" if _has_exact(table) else ""
    if table["formula"].isna().all():
        return (
            f"{measured}{dashed}. The papers' formula is for steps of one network call and says nothing of a corrected"
            " one."
        )
    held = ", for which the formula would have to hold too" if dashed else ""
    return (
        f"{measured} (top), and as the papers' formula predicts it from the error e of x0_hat (bottom){dashed}{held}."
        " The difference between the rows is the formula's failure."
    )
