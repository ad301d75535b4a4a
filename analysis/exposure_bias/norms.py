"""Norms of the predicted noise along sampling: teacher forced, free running, their ratio, before and after scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.output.entries import Output
from analysis.output.selection import EXACT, exact_values, first_sampler, models_of, over_seeds, step_counts, thinned
from analysis.output.style import (
    ARM_LINES,
    EXACT_KEY,
    RECORDED,
    RECORDED_KEY,
    LineRow,
    exact_band,
    label_levels,
    line_key,
    line_panels,
    reference,
    save,
)
from analysis.output.text import clips, recorded_words
from analysis.records.arrays import recorded_ratios
from analysis.records.load import Results

_SECTION = "Norms"
_KEYS = ["sampler", "model", "steps", "i", "t"]
_FORCED = ("forced-train", "forced-heldout")
_RATIOS = {
    "train": ("eps_norm", "forced-train"),
    "heldout": ("eps_norm", "forced-heldout"),
    "after": ("eps_used_norm", "forced-train"),
}


def norm_table(steps: pd.DataFrame, recorded: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return ||eps_theta|| free and teacher forced at every level, and their ratios with standard errors.

    ``ratio_train`` and ``ratio_heldout``: the raw norm free running over that on real noised images of either part;
    ``ratio_after``: the norm the update uses, after scaling and the clipping of x0_hat, over the raw one on training
    images. Errors by the delta method from the two means, which are independent. ``exact_...``: the ratio that exact
    denoisers of stand-ins for the data show on the same levels. ``recorded``: that of Gaussian data with the network's
    own variance, of :func:`analysis.records.arrays.recorded_ratios`.
    """
    norms = {name: over_seeds(steps, name, ["free", *_FORCED]) for name in ("eps_norm", "eps_used_norm")}
    table = _arm(norms["eps_norm"], "free", "free")
    for arm in _FORCED:
        table = table.merge(_arm(norms["eps_norm"], arm, arm.replace("-", "_")), on=_KEYS, how="left")
    table = table.merge(_arm(norms["eps_used_norm"], "free", "used"), on=_KEYS, how="left")
    for name, (quantity, forced) in _RATIOS.items():
        over, under = ("used" if quantity == "eps_used_norm" else "free"), forced.replace("-", "_")
        ratio = table[over] / table[under]
        relative = np.hypot(table[f"{over}_error"] / table[over], table[f"{under}_error"] / table[under])
        table[f"ratio_{name}"], table[f"ratio_{name}_error"] = ratio, ratio * relative
    table = table.merge(_exact_ratios(steps), on=_KEYS[:-1], how="left")
    if recorded is not None and len(recorded):
        own = recorded[[*_KEYS[:-1], "eps_ratio"]].rename(columns={"eps_ratio": "recorded"})
        table = table.merge(own, on=_KEYS[:-1], how="left")
    return table[table["forced_train"].notna() | table["forced_heldout"].notna()]  # not every step is teacher forced


def _exact_ratios(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the ratio of norms that exact denoisers show on the same levels, a column ``exact_...`` a stand-in."""
    free, forced = (
        exact_values(over_seeds(steps, "eps_rms", [f"{law}{end}" for law in EXACT]), _KEYS[:-1]).set_index(_KEYS[:-1])
        for end in ("", "-forced")
    )
    laws = [f"exact_{law}" for law in EXACT if f"exact_{law}" in forced]
    return (free / forced)[laws].reset_index()


def _arm(norms: pd.DataFrame, arm: str, name: str) -> pd.DataFrame:
    rows = norms[norms["arm"] == arm][[*_KEYS, "n", "value", "error"]]
    return rows.rename(columns={"value": name, "error": f"{name}_error", "n": f"{name}_n"})


def scaled_models(results: Results) -> list[str]:
    """Return the models whose cells scale eps, in the order of the run."""
    cells = [record.cell for record in results.cells]
    scaled = [c["model"] for c in cells if (c.get("eps_scale", 1.0), c.get("eps_slope", 0.0)) != (1.0, 0.0)]
    return list(dict.fromkeys(scaled))


def draw_eps_norm(steps: pd.DataFrame, ratios: pd.DataFrame, folder: Path) -> list[Path]:
    """||eps|| free running and teacher forced (top), and their ratio (bottom, alone of many models), along t."""
    steps, sampler = first_sampler(steps)
    ratios, counts = ratios[ratios["sampler"] == sampler], step_counts(steps)
    norms = over_seeds(steps, "eps_norm", ["free", "forced-train"])
    has_forced = len(ratios) > 0
    quantities = ["norm", "ratio"] if has_forced else ["norm"]
    with line_panels(models_of(steps), len(counts), quantities) as (figure, rows):
        for row in rows:
            for axis, count in zip(row.axes, counts, strict=True):
                if row.quantity == "norm":
                    lines = norms[norms["steps"] == count]
                    row.bands(axis, *((lines[lines["arm"] == arm], ARM_LINES[arm]) for arm in ("free", "forced-train")))
                else:
                    _ratios(row, axis, ratios[ratios["steps"] == count], {"ratio_train": "-", "ratio_heldout": ":"})
        _finish(rows, counts, sampler, ratios, ("ratio_train", "ratio_heldout"))
        colour = list(rows[0].paint.values())[-1]  # of the baseline: black is for exact denoisers
        styles = {f"free running ({sampler})": ("-", colour)}
        if has_forced:
            norms_too = rows[0].quantity == "norm"
            styles = {"free running" if norms_too else "over training images": ("-", colour)}
            styles |= {"teacher forced": ("--", colour)} if norms_too else {}
            styles |= {"ratio to held-out images" if norms_too else "over held-out images": (":", colour)}
        exact = EXACT_KEY if any(str(name).startswith("exact_") for name in ratios) else {}
        line_key(figure, rows, styles | exact | (RECORDED_KEY if "recorded" in ratios else {}))
        return save(figure, folder, "eps_norm")


def _ratios(row: LineRow, axis: Axes, ratios: pd.DataFrame, styles: Mapping[str, str]) -> None:
    """Draw ratios of norms, each with its line style."""
    for model in row.paint:
        lines = ratios[ratios["model"] == model]
        for name, style in styles.items():
            row.band(axis, model, lines.assign(value=lines[name], error=lines[f"{name}_error"]), style)
        if "recorded" in lines:
            axis.plot(lines["t"], lines["recorded"], color=row.paint[model], **RECORDED)
    exact_band(axis, ratios)
    reference(axis, 1)


def _finish(
    rows: Sequence[LineRow], counts: Sequence[int], sampler: str, ratios: pd.DataFrame, names: Sequence[str]
) -> None:
    """Title the panels, and scale the ratios to all but the least noisy level, which dwarfs them; say what it was."""
    label_levels(rows, counts, sampler)
    for row in rows:
        row.axes[0].set_ylabel("free / forced" if row.quantity == "ratio" else r"$\|\epsilon_\theta\|_2$")
    if not len(ratios):
        return
    rest = np.append(ratios.loc[ratios["i"] > 0, list(names)].to_numpy(), 1.0)
    low, high = float(np.nanmin(rest)), float(np.nanmax(rest))
    margin = 0.08 * max(high - low, 0.05)
    for row in (row for row in rows if row.quantity == "ratio"):
        row.axes[0].set_ylim(low - margin, high + 2 * margin)
        for axis, count in zip(row.axes, counts, strict=True):
            chosen = (ratios["i"] == 0) & (ratios["steps"] == count) & ratios["model"].isin(row.paint)
            last = ratios.loc[chosen, list(names)].to_numpy()
            if np.isfinite(last).any():
                text = f"up to {np.nanmax(last):.2f} at the last step"
                axis.text(0.03, 0.95, text, transform=axis.transAxes, va="top", fontsize=6)


def draw_scaling(ratios: pd.DataFrame, scaled: Sequence[str], folder: Path) -> list[Path]:
    """The ratio of norms, free over forced, of scaling models: of the raw prediction and of the one used."""
    ratios, sampler = first_sampler(ratios)
    models = models_of(ratios)
    models = [models[0], *(model for model in models[1:] if model in scaled)]
    counts = step_counts(ratios)
    with line_panels(models, len(counts), ["ratio"]) as (figure, rows):
        for row in rows:
            for axis, count in zip(row.axes, counts, strict=True):
                lines = ratios[ratios["steps"] == count]
                _ratios(row, axis, lines, {"ratio_train": "-"})
                _ratios(row, axis, lines[lines["model"].isin(scaled)], {"ratio_after": "-."})
        _finish(rows, counts, sampler, ratios[ratios["model"].isin(models)], ("ratio_train", "ratio_after"))
        line_key(figure, rows, {f"raw prediction ({sampler})": ("-", "black"), "as used, scaled": ("-.", "black")})
        return save(figure, folder, "eps_norm_scaling")


def analyse(results: Results, out: Output) -> None:
    """Write and draw the norms of the predicted noise."""
    steps = results.steps
    if not len(steps):
        return
    recorded = results.once(recorded_ratios)
    account, ratios = results.account(), norm_table(steps, recorded)
    if not len(ratios):
        out.figure(
            _SECTION, draw_eps_norm(steps, ratios, out.figures), "Norm of the predicted noise",
            "Mean over images of ||eps_theta|| free running; no real images were at hand to compare it with. Bands: two"
            f" standard errors. {account}.",
        )  # fmt: skip
        return
    caption = (
        "Mean over images of ||eps_theta||_2 free running and on real noised images, and their ratio. exact_...:"
        " the ratio that exact denoisers show on the same levels, which is not 1 either; what lies above them is the"
        " network's. Held-out images are free of memorisation. " + account + "."
    )
    out.table(_SECTION, "eps_norm", thinned(ratios), "Norms of the predicted noise", caption)
    out.figure(
        _SECTION, draw_eps_norm(steps, ratios, out.figures), "Norm of the predicted noise",
        "Top: mean over images of ||eps_theta||, free running (solid) and on real noised training images (dashed)."
        " Bottom (alone where models are many): the norm free running over that on real noised training images (solid)"
        " or held-out ones (dotted); above 1, the papers' sign of exposure bias, which exact denoisers (grey) show too."
        " A gap between solid and dotted is a network that treats training images unlike others."
        f" Bands: two standard errors.{recorded_words(recorded)} {account}.",
    )  # fmt: skip
    scaled = scaled_models(results)
    if scaled:
        clipping = " and clipping of x0_hat" if clips(results) else ""
        out.figure(
            _SECTION, draw_scaling(ratios, scaled, out.figures), "Norms before and after scaling",
            "The norm free running over the raw one on real noised training images: of the raw prediction (solid) and,"
            " for models that scale, of the one the update uses (dash-dotted), after division by eps_scale"
            f"{clipping}. Scaling closes the gap if its curve lies nearer to 1. Bands: two standard errors. {account}.",
        )  # fmt: skip
