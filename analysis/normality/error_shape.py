"""The shape of the prediction error's distribution: quantiles against normal ones, and histograms, from ``errors.npz``.

Errors e_t = x0 - x0_hat are standardised by each pixel's own mean and standard deviation over the n images of a seed,
then pooled over pixels and seeds. Normal errors so standardised are not quite normal, for n is finite: they follow
Thompson's tau distribution, whose quantiles are the reference here, so that the diagonal is exact. Pixels of one image
are dependent and seeds share images, so the errors of the quantiles come from leaving out groups of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from analysis.output.entries import Output
from analysis.output.selection import most_steps, shown
from analysis.output.style import colours, key, label_panels, level_name, line_key, line_panels, panels, save
from analysis.output.text import used_x0
from analysis.records.arrays import single_errors
from analysis.records.load import CellRecord, Results

_SECTION = "Prediction error"
_SCORES = np.linspace(-3.2, 3.2, 33)  # normal quantiles at which errors are compared
_BEYOND = 10  # values a quantile must leave beyond it
_GROUPS = 10  # of images, left out in turn
_BINS = 30

Floats = NDArray[np.float64]
Levels = dict[float, list[Floats]]  # by t: a seed's errors each, [images, C, H, W]


def kept_by_model(results: Results) -> tuple[dict[str, Levels], str, int]:
    """Return the kept errors by model and t, a seed each, with the sampler and steps: those of the most steps.

    Four t are kept, spread from the least to the most noisy; no models where no errors were kept.
    """
    cells = pd.DataFrame([record.key() for record in results.cells if (record.folder / "errors.npz").exists()])
    if not len(cells):
        return {}, "", 0
    _, sampler, steps = most_steps(cells)

    def read(record: CellRecord) -> tuple[str, dict[float, Floats]] | None:
        is_chosen = (record.cell["sampler"], record.cell["steps"]) == (sampler, steps)
        single = single_errors(record) if is_chosen else None
        if single is None:
            return None
        return record.cell["model"], {float(single.t[row]): single.errors[row] for row in shown(range(len(single.t)))}

    by_model: dict[str, Levels] = {}
    for model, levels in results.each(read):
        for t, errors in levels.items():
            by_model.setdefault(model, {}).setdefault(t, []).append(errors)
    return by_model, sampler, steps


def _standardised(errors: Floats) -> Floats:
    """Return the errors of one seed over each pixel's own mean and std, [images, varying pixels]."""
    pixels = errors.reshape(len(errors), -1)
    pixels = pixels[:, np.ptp(pixels, axis=0) > 0]
    return (pixels - pixels.mean(0)) / pixels.std(0, ddof=1)


def _tau(p: Floats, n: int) -> Floats:
    """Return quantiles of (x - mean) / std of one of n normal values (Thompson 1935; std divides by n - 1)."""
    t = stdtrit(n - 2, p)
    return (n - 1) / np.sqrt(n) * t / np.sqrt(n - 2 + t**2)


def _quantiles(seeds: list[Floats], p: Floats) -> Floats:
    pooled = np.concatenate([_standardised(errors).ravel() for errors in seeds])
    return np.quantile(pooled, p) if len(pooled) else np.full(len(p), np.nan)  # a group may leave no pixel that varies


def _quantile_errors(seeds: list[Floats], p: Floats) -> Floats:
    """Return standard errors of quantiles: jackknife over groups of images, at all pixels and seeds together."""
    n = min(map(len, seeds))
    groups = min(_GROUPS, n // 2)
    group = np.arange(n) % groups
    left_out = np.array([_quantiles([errors[:n][group != g] for errors in seeds], p) for g in range(groups)])
    return np.sqrt((groups - 1) * left_out.var(0))


def quantile_table(errors_by_model: Mapping[str, Levels]) -> pd.DataFrame:
    """Return quantiles of the standardised errors beside those of normal errors, a row a model, t and probability.

    ``se`` is given for the first model alone; n counts images a seed, ``values`` the pooled images x pixels x seeds.
    """
    tables = []
    for position, (model, levels) in enumerate(errors_by_model.items()):
        for t, seeds in sorted(levels.items()):
            n, values = min(map(len, seeds)), sum(_standardised(errors).size for errors in seeds)
            if not values:
                continue
            scores = _SCORES[np.abs(_SCORES) <= -ndtri(min(_BEYOND / values, 0.5))]
            p = ndtr(scores)
            columns = {"p": p, "normal": _tau(p, n), "error": _quantiles(seeds, p)}
            columns["se"] = _quantile_errors(seeds, p) if position == 0 else np.full(len(p), np.nan)
            of = {"model": model, "t": t, "n": n, "seeds": len(seeds), "values": values}
            tables.append(pd.DataFrame(of | columns))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def histogram_table(levels: Levels) -> pd.DataFrame:
    """Return densities of one model's errors, a row a t, bin and ``what``: the central pixel, or all, standardised.

    The central pixel is that of the papers' figure, the last channel's [H / 2, W / 2]; ``normal`` is the density at
    the bin's middle of the normal distribution of the same mean and standard deviation.
    """
    tables = []
    for t, seeds in sorted(levels.items()):
        height, width = seeds[0].shape[-2:]
        central = np.concatenate([errors[:, -1, height // 2, width // 2] for errors in seeds])
        pooled = np.concatenate([_standardised(errors).ravel() for errors in seeds])
        for what, values in (("central pixel", central), ("all pixels, standardised", pooled)):
            if len(values) and np.ptp(values) > 0:
                tables.append(_histogram(values).assign(t=t, what=what, values=len(values)))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _histogram(values: Floats) -> pd.DataFrame:
    mean, std = values.mean(), values.std(ddof=1)
    density, edges = np.histogram(values, bins=mean + std * np.linspace(-4, 4, _BINS + 1))
    middle, width = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    normal = np.exp(-0.5 * ((middle - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    return pd.DataFrame(
        {"left": edges[:-1], "right": edges[1:], "density": density / len(values) / width, "normal": normal}
    )


def draw_quantiles(table: pd.DataFrame, sampler: str, folder: Path) -> list[Path]:
    """Quantiles of the standardised errors against normal ones, a panel a t; band of two standard errors."""
    times = sorted(table["t"].unique())[::-1]
    with line_panels(list(dict.fromkeys(table["model"])), len(times), sharey=True) as (figure, rows):
        for row in rows:
            for axis, t in zip(row.axes, times, strict=True):
                axis.axline((0, 0), slope=1, color="0.5", linewidth=0.8, linestyle="--")
                line = table[table["t"] == t]
                row.bands(axis, (line.assign(t=line["normal"], value=line["error"], error=line["se"]), "-"))
            row.axes[0].set_ylabel("quantile of\nthe error")
        label_panels(rows, [level_name(t, sampler) for t in times])
        figure.supxlabel("quantile of normal errors", fontsize=8)
        line_key(figure, rows, {"normal": ("--", "0.5")})
        return save(figure, folder, "error_quantiles")


def draw_histogram(table: pd.DataFrame, paint: dict[str, str], sampler: str, folder: Path) -> list[Path]:
    """Histograms of one model's errors with the fitted normal density: central pixel (top), all pixels (bottom).

    Args:
        table: of ``histogram_table``.
        paint: the model and its colour.
        sampler: whose levels they are.
        folder: where the figure goes.
    """
    times, kinds = sorted(table["t"].unique())[::-1], list(dict.fromkeys(table["what"]))
    (colour,) = paint.values()
    with panels(len(kinds), len(times)) as (figure, axes):
        for row, what in enumerate(kinds):
            for axis, t in zip(axes[row], times, strict=True):
                bins = table[(table["what"] == what) & (table["t"] == t)]
                axis.stairs(bins["density"], [*bins["left"], *bins["right"][-1:]], color=colour, fill=True, alpha=0.4)
                axis.plot((bins["left"] + bins["right"]) / 2, bins["normal"], color="black", linewidth=0.9)
            axes[row, 0].set_ylabel(f"density\n{what}")
        for axis, t in zip(axes[0], times, strict=True):
            axis.set_title(level_name(t, sampler))
        key(figure, paint, {"normal of the same mean and std": ("-", "black")})
        return save(figure, folder, "error_histogram")


def analyse(results: Results, out: Output) -> None:
    """Write and draw the shape of the error."""
    errors_by_model, sampler, steps = kept_by_model(results)
    if not errors_by_model:
        return
    first, quantiles = next(iter(errors_by_model)), quantile_table(errors_by_model)
    if len(quantiles):
        drawn = draw_quantiles(quantiles, sampler, out.figures)
        words = used_x0(results), _account(quantiles, sampler, steps)
        _enter_quantiles(quantiles, drawn, first, words, out)
    histogram = histogram_table(errors_by_model[first])
    if len(histogram):
        paint = {first: colours(list(errors_by_model))[first]}
        drawn = draw_histogram(histogram, paint, sampler, out.figures)
        _enter_histogram(histogram, drawn, first, _account(quantiles, sampler, steps), out)


def _account(quantiles: pd.DataFrame, sampler: str, steps: int) -> str:
    """Return N and seeds for captions, and how far they go."""
    n, seeds = int(quantiles["n"].max()), int(quantiles["seeds"].max())
    return (
        f"n = {n} training and held-out images, the same at each of {seeds} seeds, on the levels of {steps} steps"
        f" ({sampler}). Pixels of one image are dependent and seeds share images: there is far less evidence than"
        " points."
    )


def _enter_quantiles(
    quantiles: pd.DataFrame, drawn: list[Path], first: str, words: tuple[str, str], out: Output
) -> None:
    """Write the table and enter the figure; ``words`` say what x0_hat is, and of how many images."""
    used, account = words
    errors = f"Errors e_t = x0 - x0_hat of single teacher-forced steps, {used};"
    errors += " each pixel over its own mean and standard deviation over n images, pooled over the pixels that vary and"
    errors += " over seeds"
    out.table(
        _SECTION, "error_quantiles", quantiles, "Quantiles of the error",
        f"{errors}: quantiles at probability p, and those of normal errors standardised over as many images (Thompson's"
        f" tau). values: points pooled; se: jackknife over groups of images. {account}",
    )  # fmt: skip
    out.figure(
        _SECTION, drawn, "Quantiles of the error against normal ones",
        f"{errors}: quantiles against those of normal errors standardised over as many images. On the dashed diagonal"
        f" errors are normal; steeper than it at both ends: heavy tails. Shaded: two standard errors of {first}, found"
        f" by leaving out groups of images. Where one colour is seen the models coincide. {account}",
    )  # fmt: skip


def _enter_histogram(histogram: pd.DataFrame, drawn: list[Path], model: str, account: str, out: Output) -> None:
    out.table(
        _SECTION, "error_histogram", histogram, "Histogram of the error",
        f"Densities of e_t = x0 - x0_hat of {model}, and of the normal distribution of the same mean and standard"
        f" deviation at the middle of each bin. {account}",
    )  # fmt: skip
    out.figure(
        _SECTION, drawn, f"Histogram of the error ({model})",
        "Top: e_t = x0 - x0_hat of single teacher-forced steps at the central pixel (last channel, [H/2, W/2], as in"
        " the papers). Bottom: all pixels that vary, each over its own mean and standard deviation. Black: the normal"
        f" density of the same mean and standard deviation. {account}",
    )  # fmt: skip
