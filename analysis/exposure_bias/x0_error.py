"""The error of the predicted image at single steps from real noised images: its size along t, bias, and pixels.

nu_t is the mean over pixels of the standard deviation over images of e_t = x0 - x0_hat at single teacher-forced steps
(Ning et al. 2023). They model e_t as N(0, nu_t^2 I), one nu_t for all pixels, and choose the strength of input
perturbation as gamma = mean over t of nu_t, halved. nu_t is ``x0_nu`` of ``steps.csv``; its range over pixels and the
map come from the same images' moments in ``moments.npz``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.output.entries import Output
from analysis.output.selection import EXACT, exact_values, models_of, most_steps, over_seeds, shown, thinned
from analysis.output.style import (
    EXACT_KEY,
    exact_band,
    is_edm,
    label_walk,
    level_name,
    line_key,
    line_panels,
    panels,
    reference,
    save,
)
from analysis.output.text import clips, used_x0
from analysis.records.load import CellRecord, Results, ResultsError

_SECTION = "Prediction error"
_KEYS = ["sampler", "model", "steps", "arm"]
_FORCED = ["forced-train", "forced-heldout"]
# Quantity, axis label, arms drawn solid and dashed.
_PANELS = (
    ("x0_rmse", r"RMSE of $\hat{x}_0$", _FORCED),
    ("x0_bias", r"mean error of $\hat{x}_0$", _FORCED),
    ("clipped", r"share of $\hat{x}_0$ beyond $\pm 1$", ["forced-train", "free"]),
)
_PARTS = {"forced-train": "training images", "forced-heldout": "held-out images"}
_WALK = ["model", "sampler", "steps"]
_LEVEL = [*_WALK, "i", "t"]
_MOMENTS = tuple(f"forced-train/error/{name}" for name in ("count", "mean", "second"))

Floats = NDArray[np.float64]
Walk = tuple[str, str, int]  # model, sampler, steps


def error_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Return RMSE, bias and clipped share of x0_hat by arm and level, averaged over seeds, with N images.

    ``exact_<law>``: the RMSE of exact denoisers on data of their own law, at the same levels.
    """
    columns = [*_KEYS, "i", "t", "n"]
    rmse = over_seeds(steps, "x0_rmse", _FORCED).rename(columns={"value": "rmse", "error": "rmse_error"})
    table = rmse[[*columns, "rmse", "rmse_error"]]
    for quantity, name in (("x0_bias", "bias"), ("clipped", "clipped")):
        other = over_seeds(steps, quantity, _FORCED).rename(columns={"value": name})
        table = table.merge(other[[*_KEYS, "i", name]], on=[*_KEYS, "i"], how="left")
    exact = _exact(steps)
    return table if exact.empty else table.merge(exact.drop(columns="t"), on=[*_WALK, "i"], how="left")


def _exact(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the RMSE of exact denoisers at single steps, a column ``exact_<law>`` a law."""
    return exact_values(over_seeds(steps, "x0_rmse", [f"{law}-forced" for law in EXACT]), _LEVEL)


def draw_x0_error(steps: pd.DataFrame, folder: Path) -> list[Path]:
    """RMSE and bias of x0_hat on training and held-out images, and its clipped share, along t, at the most steps."""
    steps, sampler, count = most_steps(steps)
    exact = _exact(steps)
    with line_panels(models_of(steps), len(_PANELS), sharey="col") as (figure, rows):
        for column, (quantity, _, arms) in enumerate(_PANELS):
            table = over_seeds(steps, quantity, arms)
            if quantity == "x0_bias":
                table["error"] = float("nan")  # its std is that over pixels
            for row in rows:
                lines = [(table[table["arm"] == arm], style) for arm, style in zip(arms, ("-", "--"), strict=True)]
                row.bands(row.axes[column], *lines)
        for row in rows:
            exact_band(row.axes[0], exact)
            row.axes[0].set_ylim(bottom=0)
            reference(row.axes[1], 0)
        label_walk(rows, [label for _, label, _ in _PANELS], sampler, count)
        colour = list(rows[0].paint.values())[-1]  # of the baseline: black is for exact denoisers
        styles = {"training images": ("-", colour), "held out; right: free running": ("--", colour)}
        line_key(figure, rows, styles | (EXACT_KEY if len(exact) else {}))
        return save(figure, folder, "x0_error")


def _cell_variance(record: CellRecord) -> tuple[Walk, dict[float, Floats]] | None:
    """Return a cell's error variance over training images by t, [C, H, W]; None where nothing was measured.

    With mean m and second moment q over n images: (q - m^2) n / (n - 1).
    """
    arrays = record.moments
    t = arrays.get("t")
    if t is None or not t.size or not any(name.startswith("forced-train/") for name in arrays):
        return None
    count, mean, second = (np.asarray(arrays.get(name)) for name in _MOMENTS)
    sound = t.shape == count.shape == mean.shape[:1] and mean.ndim == 4 and mean.shape == second.shape
    if not sound or not all(a.dtype.kind in "iuf" and np.isfinite(a).all() for a in (t, count, mean, second)):
        raise ResultsError(
            f"{record.folder / 'moments.npz'} is damaged (forced-train/error is not count, mean and second of finite"
            " levels x C x H x W); delete the cell and run again"
        )
    n = np.maximum(count, 2)[:, None, None, None]
    variance = (second - mean**2).clip(min=0) * n / (n - 1)
    model, sampler, steps, _ = record.key().values()
    return (model, sampler, steps), dict(zip(t.astype(float).tolist(), variance, strict=True))


def pixel_spread(results: Results) -> dict[Walk, dict[float, Floats]]:
    """Return the error's standard deviation over training images by walk and t, [C, H, W]; variances pooled over seeds.

    Each seed's variance is unbiased, so their mean is, whether or not seeds share images.
    """
    by_walk: dict[Walk, dict[float, list[Floats]]] = {}
    for walk, levels in results.each(_cell_variance):
        for t, variance in levels.items():
            seeds = by_walk.setdefault(walk, {}).setdefault(t, [])
            if seeds and seeds[0].shape != variance.shape:
                named = "{} ({}, {} steps)".format(*walk)
                results.problem(
                    f"moments.npz of {named} hold errors of other shapes by seed; delete them and run again"
                )
                continue
            seeds.append(variance)
    return {
        walk: {t: np.sqrt(np.mean(seeds, axis=0)) for t, seeds in levels.items()} for walk, levels in by_walk.items()
    }


def nu_table(steps: pd.DataFrame, spread: dict[Walk, dict[float, Floats]]) -> pd.DataFrame:
    """Return nu_t, one row a model, sampler, steps, level and part of the data.

    Args:
        steps: the per-step tables.
        spread: of ``pixel_spread``; gives the least and greatest pixel, on training images.
    """
    chosen = steps[(steps["quantity"] == "x0_nu") & steps["arm"].isin(_PARTS)]
    groups = chosen.astype({"arm": str}).groupby([*_LEVEL, "arm"], sort=False)
    table = groups.agg(seeds=("value", "size"), n=("n", "max"), nu=("value", "mean"), nu_sd=("value", "std"))
    rows = [
        (*walk, t, "forced-train", std.min(), std.max()) for walk, levels in spread.items() for t, std in levels.items()
    ]
    kinds = {"steps": int, "t": float, "pixel_min": float, "pixel_max": float}  # also where there are no rows
    ranges = pd.DataFrame(rows, columns=[*_WALK, "t", "arm", "pixel_min", "pixel_max"]).astype(kinds)
    return table.reset_index().merge(ranges, on=[*_WALK, "t", "arm"], how="left")


def gamma_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Return mean over t of nu_t and gamma, half of it, at the most steps of each model, sampler and part of the data.

    ``_sd``: spread over seeds.
    """
    chosen = steps[(steps["quantity"] == "x0_nu") & steps["arm"].isin(_PARTS)].astype({"arm": str})
    chosen = chosen[chosen["steps"] == chosen.groupby(["model", "sampler"])["steps"].transform("max")]
    by_seed = chosen.groupby([*_WALK, "arm", "seed"], sort=False)["value"].mean().reset_index()
    groups = by_seed.groupby([*_WALK, "arm"], sort=False)["value"]
    table = pd.DataFrame({"seeds": groups.size(), "mean_nu": groups.mean(), "mean_nu_sd": groups.std()})
    return table.assign(gamma=table["mean_nu"] / 2, gamma_sd=table["mean_nu_sd"] / 2).reset_index()


def draw_nu(table: pd.DataFrame, folder: Path) -> list[Path]:
    """nu_t along t (shaded: range over pixels of the first model), and (alone of many models) over the first's."""
    table, sampler, steps = most_steps(table)
    models, arms = models_of(table), [arm for arm in _PARTS if (table["arm"] == arm).any()]
    with line_panels(models, len(arms), ["nu", "ratio"]) as (figure, rows):
        for row in rows:
            for axis, arm in zip(row.axes, arms, strict=True):
                lines = {model: table[(table["model"] == model) & (table["arm"] == arm)] for model in row.paint}
                lines = {model: line.set_index("t").sort_index() for model, line in lines.items()}
                baseline = lines[models[0]]
                for model, line in lines.items():
                    over = baseline["nu"].where(baseline["nu"] > 0) if row.quantity == "ratio" else 1
                    value = (line["nu"] / over).dropna()
                    row.line(axis, model, value.index, value)
                if row.quantity == "nu":
                    low, high = (baseline[name].to_numpy(dtype=float) for name in ("pixel_min", "pixel_max"))
                    axis.fill_between(baseline.index, low, high, color=row.paint[models[0]], alpha=0.18, linewidth=0)
            row.axes[0].set_ylabel(r"$\nu_t$" if row.quantity == "nu" else f"$\\nu_t$ / {models[0]}")
        if rows[0].quantity == "nu":
            rows[0].axes[0].set_ylim(0, None)
        label_walk(rows, [_PARTS[arm] for arm in arms], sampler, steps)
        line_key(figure, rows, {})
        return save(figure, folder, "error_nu")


def draw_map(spread: dict[float, Floats], sampler: str, folder: Path) -> list[Path]:
    """The error's standard deviation at each pixel over its mean, a panel a t.

    Args:
        spread: standard deviation by t, [C, H, W].
        sampler: whose levels they are.
        folder: where the figure goes.
    """
    levels = sorted(spread, reverse=True)
    times = [levels[position] for position in shown(range(len(levels)))]
    pictures = {t: np.sqrt((spread[t] ** 2).mean(0)) for t in times}  # over channels
    top = max(((picture / picture.mean()).max() for picture in pictures.values() if picture.any()), default=1.0)
    with panels(1, len(times), sharex=True, sharey=True) as (figure, (axes,)):
        for axis, (t, picture) in zip(axes, pictures.items(), strict=True):
            image = axis.imshow(picture / (picture.mean() or 1), cmap="viridis", vmin=0, vmax=top)
            axis.set_title(level_name(t, sampler) + "\n" + rf"$\nu_t$ = {spread[t].mean():.3g}")
            axis.set_axis_off()
        figure.set_figheight(1.9)
        figure.colorbar(image, ax=axes, label="std / mean over pixels", shrink=0.7)
        return save(figure, folder, "error_std_map")


def _analyse_error(results: Results, out: Output) -> None:
    """Write and draw RMSE, bias and clipped share."""
    steps = results.steps
    if not len(steps) or not (steps["quantity"] == "x0_rmse").any():
        return
    clipped = "clipped" if clips(results) else "not clipped"
    caption = (
        "x0_hat at single steps from real noised images, [-1, 1] scale. Left: root mean squared error; the distance"
        " of held-out images (dashed) from training images (solid) is what the network remembers of the latter;"
        " black and grey: exact denoisers, each on data of its own law (that of the training images knows them all)."
        " Middle: mean error over pixels and images. Right: share of x0_hat's values at or beyond -1 and 1, which are"
        f" {clipped}, teacher forced (solid) and free running (dashed). Bands: two standard errors over images."
        f" {results.account()}."
    )
    out.table(_SECTION, "x0_error", thinned(error_table(steps)), "Error of the predicted image", caption)
    out.figure(_SECTION, draw_x0_error(steps, out.figures), "Error of the predicted image", caption)


def _analyse_spread(results: Results, out: Output) -> None:
    """Write and draw the error's spread."""
    steps, spread = results.steps, pixel_spread(results)
    table = nu_table(steps, spread) if len(steps) else steps
    if not len(table):
        return
    gammas, trained = gamma_table(steps), table["arm"] == "forced-train"
    what = _what(results)
    _enter_tables(table, gammas, results, out)
    most, sampler, count = most_steps(table[trained]) if trained.any() else most_steps(table)
    first, n = models_of(most)[0], max(int(most["n"].max()), 2)
    account = (
        f"A pixel's standard deviation over n images is known to 1/sqrt(2(n - 1)) = {100 / np.sqrt(2 * n - 2):.0f} %"
        f" where errors are normal. n = {n}, the same images at every seed, on the levels of {count} steps ({sampler});"
        f" {results.account(sampler)}."
    )
    chosen = (gammas["arm"] == "forced-train") & (gammas["sampler"] == sampler) & (gammas["steps"] == count)
    strengths = ", ".join(f"{row.model} {row.gamma:.3f}" for row in gammas[chosen].itertuples())
    out.figure(
        _SECTION, draw_nu(table, out.figures), "Size of the error along t",
        f"{what}Top: nu_t; bottom: over that of {first}. Shaded: from the least to the greatest pixel of {first} on"
        " training images; the papers' model N(0, nu_t^2 I) has no such range. The papers' strength of input"
        " perturbation, gamma = mean over t of nu_t on training images, halved:"
        f" {strengths or 'not measured'}. {account}",
    )  # fmt: skip
    if (first, sampler, count) in spread:
        out.figure(
            _SECTION, draw_map(spread[first, sampler, count], sampler, out.figures),
            f"Where the error is large ({first})",
            "Standard deviation over training images of e_t = x0 - x0_hat at each pixel (root mean square over"
            " channels) over its mean over pixels, one colour scale. Were the error isotropic, N(0, nu_t^2 I), every"
            f" picture would be flat at 1 up to chance. {account}",
        )  # fmt: skip


def _what(results: Results) -> str:
    """Say what nu_t is here."""
    edm = any(is_edm(record.cell["sampler"]) for record in results.cells)
    return (
        "nu_t: mean over pixels of the standard deviation over images of e_t = x0 - x0_hat at single teacher-forced"
        f" steps, [-1, 1] scale, {used_x0(results)}. "
        + (
            "On EDM levels its mean is over these, not over training indices, and no gamma of the papers. "
            if edm
            else ""
        )
    )


def _enter_tables(table: pd.DataFrame, gammas: pd.DataFrame, results: Results, out: Output) -> None:
    seeds = f"_sd: spread over seeds, which share their images. {results.account()}."
    out.table(
        _SECTION, "error_gamma", gammas, "Input perturbation strength from the error",
        f"{_what(results)}mean_nu: its mean over t at the most steps; gamma: half of it, the papers' choice of input"
        f" perturbation, for which they use training images. {seeds}",
    )  # fmt: skip
    out.table(
        _SECTION, "error_nu", thinned(table), "Size of the error along t",
        f"{_what(results)}nu: mean over seeds; n: images a seed; pixel_min, pixel_max: least and greatest pixel"
        f" (training images, variances pooled over seeds). At most twenty levels a walk. {seeds}",
    )  # fmt: skip


def analyse(results: Results, out: Output) -> None:
    """Write and draw the error of the predicted image."""
    _analyse_error(results, out)
    _analyse_spread(results, out)
