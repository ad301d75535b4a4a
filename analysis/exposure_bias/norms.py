"""Norms of the predicted noise along sampling: teacher forced, free running, their ratio, before and after scaling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.output.entries import Output
from analysis.output.selection import first_sampler, models_of, over_seeds, step_counts, thinned
from analysis.output.style import ARM_LINES, band, colours, key, level_symbol, noisy_left, panels, save
from analysis.output.text import clips
from analysis.records.load import Results

_SECTION = "Norms"
_KEYS = ["sampler", "model", "steps", "i", "t"]
_FORCED = ("forced-train", "forced-heldout")
_RATIOS = {
    "train": ("eps_norm", "forced-train"),
    "heldout": ("eps_norm", "forced-heldout"),
    "after": ("eps_used_norm", "forced-train"),
}


def norm_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Return ||eps_theta|| free and teacher forced at every level, and their ratios with standard errors.

    ``ratio_train`` and ``ratio_heldout``: the raw norm free running over that on real noised images of either part;
    ``ratio_after``: the norm the update uses, after scaling and the clipping of x0_hat, over the raw one on training
    images. Errors by the delta method from the two means, which are independent.
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
    return table[table["forced_train"].notna() | table["forced_heldout"].notna()]  # not every step is teacher forced


def _arm(norms: pd.DataFrame, arm: str, name: str) -> pd.DataFrame:
    own = norms[norms["arm"] == arm][[*_KEYS, "n", "value", "error"]]
    return own.rename(columns={"value": name, "error": f"{name}_error", "n": f"{name}_n"})


def scaled_models(results: Results) -> list[str]:
    """Return the models whose cells scale eps, in the order of the run."""
    scaled = [
        r.cell["model"]
        for r in results.cells
        if (r.cell.get("eps_scale", 1.0), r.cell.get("eps_slope", 0.0)) != (1.0, 0.0)
    ]
    return list(dict.fromkeys(scaled))


def draw_eps_norm(steps: pd.DataFrame, folder: Path) -> list[Path]:
    """||eps|| free running and teacher forced (top), and their ratio (bottom), along t."""
    steps, sampler = first_sampler(steps)
    models, counts = models_of(steps), step_counts(steps)
    paint = colours(models)
    norms, ratios = over_seeds(steps, "eps_norm", ["free", "forced-train"]), norm_table(steps)
    if not len(ratios):
        return _draw_free(norms, sampler, folder)
    with panels(2, len(counts), sharex=True, sharey="row") as (figure, axes):
        for column, count in enumerate(counts):
            for model in models:
                here = norms[(norms["steps"] == count) & (norms["model"] == model)]
                for arm in ("free", "forced-train"):
                    band(axes[0, column], here[here["arm"] == arm], paint[model], ARM_LINES[arm])
                own = ratios[(ratios["steps"] == count) & (ratios["model"] == model)]
                for arm, name in zip(_FORCED, ("ratio_train", "ratio_heldout"), strict=True):
                    _ratio(axes[1, column], own, name, paint[model], ARM_LINES[arm])
        _finish(axes, counts, sampler, ratios, ("ratio_train", "ratio_heldout"))
        axes[0, 0].set_ylabel(r"$\|\epsilon_\theta\|_2$")
        axes[1, 0].set_ylabel("free / forced")
        styles = {
            f"free running ({sampler})": ("-", "black"),
            "teacher forced, training images": ("--", "black"),
            "teacher forced, held out": (":", "black"),
        }
        key(figure, paint, styles)
        return save(figure, folder, "eps_norm")


def _draw_free(norms: pd.DataFrame, sampler: str, folder: Path) -> list[Path]:
    """Draw ||eps|| free running alone, where no real images were at hand to be teacher forced."""
    models, counts = models_of(norms), step_counts(norms)
    paint = colours(models)
    with panels(1, len(counts), sharex=True, sharey=True) as (figure, axes):
        for axis, count in zip(axes[0], counts, strict=True):
            for model in models:
                here = norms[(norms["steps"] == count) & (norms["model"] == model)]
                band(axis, here, paint[model], ARM_LINES["free"])
            axis.set(title=f"{count} steps", xlabel=level_symbol(sampler))
        axes[0, 0].set_ylabel(r"$\|\epsilon_\theta\|_2$")
        noisy_left(axes[0, 0], sampler)
        key(figure, paint, {f"free running ({sampler})": ("-", "black")})
        return save(figure, folder, "eps_norm")


def _ratio(axis: Axes, own: pd.DataFrame, name: str, colour: str, style: str) -> None:
    band(axis, own.assign(value=own[name], error=own[f"{name}_error"]), colour, style)


def _finish(
    axes: list[list[Axes]], counts: list[int], sampler: str, ratios: pd.DataFrame, names: tuple[str, ...]
) -> None:
    """Title the panels, and scale the ratios to all but the least noisy level, which dwarfs them; say what it was."""
    rest = np.append(ratios.loc[ratios["i"] > 0, list(names)].to_numpy(), 1.0)
    low, high = float(np.nanmin(rest)), float(np.nanmax(rest))
    margin = 0.08 * max(high - low, 0.05)
    for column, count in enumerate(counts):
        top, bottom = axes[0][column], axes[-1][column]
        top.set_title(f"{count} steps")
        bottom.set_xlabel(level_symbol(sampler))
        bottom.axhline(1, color="black", linewidth=0.8)
        last = ratios.loc[(ratios["i"] == 0) & (ratios["steps"] == count), list(names)].to_numpy()
        if np.isfinite(last).any():
            text = f"up to {np.nanmax(last):.2f} at the last step"
            bottom.text(0.03, 0.95, text, transform=bottom.transAxes, va="top", fontsize=6)
    axes[-1][0].set_ylim(low - margin, high + 2 * margin)
    noisy_left(axes[0][0], sampler)


def draw_scaling(steps: pd.DataFrame, scaled: list[str], folder: Path) -> list[Path]:
    """The ratio of norms, free over forced, of scaling models: of the raw prediction and of the one used."""
    steps, sampler = first_sampler(steps)
    steps = steps[steps["model"].isin([*scaled, models_of(steps)[0]])]
    models, counts = models_of(steps), step_counts(steps)
    paint, ratios = colours(models), norm_table(steps)
    with panels(1, len(counts), sharex=True, sharey=True) as (figure, axes):
        figure.set_size_inches(7.0, 2.8)
        for axis, count in zip(axes[0], counts, strict=True):
            for model in models:
                own = ratios[(ratios["steps"] == count) & (ratios["model"] == model)]
                _ratio(axis, own, "ratio_train", paint[model], "-")
                if model in scaled:
                    _ratio(axis, own, "ratio_after", paint[model], "-.")
        _finish(axes, counts, sampler, ratios, ("ratio_train", "ratio_after"))
        axes[0, 0].set_ylabel("free / forced")
        key(figure, paint, {f"raw prediction ({sampler})": ("-", "black"), "as used, scaled": ("-.", "black")})
        return save(figure, folder, "eps_norm_scaling")


def analyse(results: Results, out: Output) -> None:
    """Write and draw the norms of the predicted noise."""
    steps = results.steps
    if not len(steps):
        return
    account = results.account()
    if not len(norm_table(steps)):
        out.figure(
            _SECTION, draw_eps_norm(steps, out.figures), "Norm of the predicted noise",
            "Mean over images of ||eps_theta|| free running; no real images were at hand to compare it with. Bands: two"
            f" standard errors. {account}.",
        )  # fmt: skip
        return
    caption = (
        "Mean over images of ||eps_theta||_2 free running and on real noised images, and their ratio; 1 means that"
        " sampling looks to the network like training. Held-out images are free of memorisation. " + account + "."
    )
    out.table(_SECTION, "eps_norm", thinned(norm_table(steps)), "Norms of the predicted noise", caption)
    out.figure(
        _SECTION, draw_eps_norm(steps, out.figures), "Norm of the predicted noise",
        "Top: mean over images of ||eps_theta||, free running (solid) and on real noised training images (dashed)."
        " Bottom: the norm free running over that on real noised training images (dashed) or held-out ones (dotted);"
        " above 1, the papers' sign of exposure bias. A gap between dashed and dotted is a network that treats"
        f" training images unlike others. Bands: two standard errors. {account}.",
    )  # fmt: skip
    scaled = scaled_models(results)
    if scaled:
        clipping = " and clipping of x0_hat" if clips(results) else ""
        out.figure(
            _SECTION, draw_scaling(steps, scaled, out.figures), "Norms before and after scaling",
            "The norm free running over the raw one on real noised training images: of the raw prediction (solid) and,"
            " for models that scale, of the one the update uses (dash-dotted), after division by eps_scale"
            f"{clipping}. Scaling closes the gap if its curve lies nearer to 1. Bands: two standard errors. {account}.",
        )  # fmt: skip
