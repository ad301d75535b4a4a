"""Is the prediction error Gaussian? The published Shapiro-Wilk procedure and what it cannot show, from ``errors.npz``.

e_t = x0 - x0_hat at single teacher-forced steps (Ning et al. 2023; the sign is that of the paper). Published: per pixel
a Shapiro-Wilk test over 100 images at level .05, and the share of pixels that reject. Beside it: the share that rejects
after Benjamini-Hochberg over pixels, excess kurtosis, and the test's power at the n used, without which a low share
means nothing. Pixels of zero range are left out of every share and counted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.load import CellRecord, Results
from analysis.output import Output
from analysis.select import first_sampler
from analysis.shapiro import shapiro_wilk
from analysis.style import colours, noisy_left, panels, save

__all__ = [
    "analyse",
    "benjamini_hochberg",
    "draw_normality",
    "level_statistics",
    "normality_table",
    "power_table",
    "shapiro_wilk",
]

_SECTION = "Prediction error"

_ALPHA = 0.05
_DRAWS = 2000  # simulated samples a row of the power table: standard error at most .011
_SEED = 0

Floats = NDArray[np.float64]


def benjamini_hochberg(p: Floats, alpha: float = _ALPHA) -> NDArray[np.bool_]:
    """Mark the rejections among p [m] that keep the false discovery rate at alpha (Benjamini & Hochberg 1995)."""
    if not len(p):
        return np.zeros(0, dtype=bool)
    order = np.argsort(p)
    passes = p[order] <= alpha * np.arange(1, len(p) + 1) / len(p)
    last = int(np.max(np.flatnonzero(passes), initial=-1))
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order[: last + 1]] = True
    return rejected


def level_statistics(errors: Floats) -> dict[str, float]:
    """Test the errors of one level, [images, C, H, W]; return counts, rejection shares and moments over pixels."""
    pixels = errors.reshape(len(errors), -1).T.astype(np.float64)
    varying = np.ptp(pixels, axis=1) > 0
    tested = pixels[varying]
    result = {"n": len(errors), "pixels": len(tested), "constant_pixels": int((~varying).sum())}
    if not len(tested):
        return result | dict.fromkeys(("rejected", "rejected_fdr", "mean_w", "excess_kurtosis", "nu"), float("nan"))
    statistic, p = shapiro_wilk(tested)
    z = (tested - tested.mean(1, keepdims=True)) / tested.std(1, keepdims=True)
    return result | {
        "rejected": float((p < _ALPHA).mean()),
        "rejected_fdr": float(benjamini_hochberg(p).mean()),
        "mean_w": float(statistic.mean()),
        "excess_kurtosis": float((z**4).mean(1).mean() - 3),
        "nu": float(pixels.std(1, ddof=1).mean()),
    }


def _cell_rows(record: CellRecord) -> list[dict[str, object]]:
    errors, t, i = (record.array("errors.npz", name) for name in ("errors", "t", "i"))
    if errors is None or t is None or i is None or errors.shape[1] < 3:
        return []
    return [
        {**record.key(), "i": int(i[row]), "t": float(t[row]), **level_statistics(-errors[row])}
        for row in range(len(errors))
    ]


def normality_table(results: Results) -> pd.DataFrame:
    """Return one row a cell and level; empty where no errors were kept."""
    return pd.DataFrame([row for rows in results.each(_cell_rows) for row in rows])


def power_table(n: int) -> pd.DataFrame:
    """Return the share of samples of size n that the test rejects, for distributions of known shape (seeded)."""
    rng = np.random.default_rng(_SEED)
    shape = (_DRAWS, n)
    normal = rng.standard_normal(shape)
    samples = {
        "normal": normal,
        "normal clipped at 1.5 std": normal.clip(-1.5, 1.5),
        "Student t, 5 degrees": rng.standard_t(5, shape),
        "logistic": rng.logistic(size=shape),
        "Laplace": rng.laplace(size=shape),
    }
    rows = [
        {"distribution": name, "n": n, "rejected": float((shapiro_wilk(x)[1] < _ALPHA).mean()), "draws": _DRAWS}
        for name, x in samples.items()
    ]
    return pd.DataFrame(rows)


def draw_normality(table: pd.DataFrame, power: pd.DataFrame, folder: Path) -> list[Path]:
    """Rejected shares (left; solid published, dashed after false-discovery control) and excess kurtosis (right)."""
    table, _ = first_sampler(table)
    steps = int(table["steps"].max())
    table = table[table["steps"] == steps]
    models = list(dict.fromkeys(table["model"]))
    paint = colours(models)
    known = power.set_index("distribution")["rejected"]
    with panels(1, 2) as (figure, axes):
        left, right = axes[0]
        for model in models:
            mean = table[table["model"] == model].groupby("t")[["rejected", "rejected_fdr", "excess_kurtosis"]].mean()
            left.plot(mean.index, mean["rejected"], color=paint[model], label=model)
            left.plot(mean.index, mean["rejected_fdr"], color=paint[model], linestyle="--")
            right.plot(mean.index, mean["excess_kurtosis"], color=paint[model], label=model)
        for name, value in known.items():
            left.axhline(value, color="black", linewidth=0.6, linestyle=":")
            left.text(0.99, value, name, transform=left.get_yaxis_transform(), fontsize=5, va="bottom", ha="right")
        right.axhline(0, color="black", linewidth=0.8)
        left.set(ylabel="share of pixels rejected", xlabel=f"t (levels of {steps} steps)", ylim=(-0.02, 1.08))
        right.set(ylabel="excess kurtosis of the error", xlabel=f"t (levels of {steps} steps)")
        for axis in (left, right):
            noisy_left(axis)
        right.legend()
        count = int(table["n"].max())
        lines = "published share (solid), after FDR control (dashed), power (dotted)"
        figure.suptitle(f"Shapiro-Wilk over {count} images: {lines}", fontsize=7)
        return save(figure, folder, "error_normality")


def analyse(results: Results, out: Output) -> None:
    """Write and draw the tests of normality."""
    table = normality_table(results)
    if not len(table):
        return
    power = power_table(int(table["n"].max()))
    caption = (
        "Shapiro-Wilk per pixel at level .05 over the n errors e_t = x0 - x0_hat kept at each t: share of pixels that"
        " reject as published, the share after Benjamini-Hochberg, and the share that known distributions reach at"
        " this n (dotted). A low share with low power is no evidence of normality. " + results.account() + "."
    )
    out.table(_SECTION, "normality", table, "Normality of the error", caption)
    out.table(_SECTION, "normality_power", power, "Power of the test", "Share of simulated samples of size n rejected.")
    out.figure(_SECTION, draw_normality(table, power, out.figures), "Is the error Gaussian?", caption)
