"""Tests of normality over the pixels of one level: as published and corrected, and the power they have."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.normality.shapiro import shapiro_wilk

__all__ = ["LEVEL", "MOST", "RATES", "benjamini_hochberg", "level_statistics", "power_table"]

LEVEL = 0.05
MOST = 5000  # images the test is defined for
RATES = {"rejected": "published: rejected at level .05", "rejected_fdr": "all images, FDR controlled"}
_PUBLISHED = 100  # images a test
_DRAWS = 2000  # simulated samples a row of the power table: standard error at most .011
_SEED = 0

Floats = NDArray[np.float64]


def benjamini_hochberg(p: Floats, alpha: float = LEVEL) -> NDArray[np.bool_]:
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
    """Test the errors of one level, [images, C, H, W]; return counts, rejection shares and moments over pixels.

    ``rejected``: as published, over ``n_published`` images drawn for each pixel (seeded). ``rejected_fdr``: over all n
    images (5000 at most), after Benjamini-Hochberg. ``excess_kurtosis``: mean over pixels of G2 (Joanes & Gill 1998),
    whose expectation is 0 for normal errors.
    """
    pixels = errors.reshape(len(errors), -1).T
    tested = pixels[np.ptp(pixels, axis=1) > 0]
    drawn = _drawn(tested)
    counts = {"n": len(errors), "n_published": drawn.shape[1], "pixels": len(tested)}
    result = counts | {"constant_pixels": len(pixels) - len(tested)}
    drawn = drawn[np.ptp(drawn, axis=1) > 0]  # few distinct values may leave a draw without range
    if not len(drawn):
        return result | dict.fromkeys((*RATES, "mean_w", "excess_kurtosis"), float("nan"))
    statistic, p = shapiro_wilk(tested[:, :MOST])
    return result | {
        "rejected": float((shapiro_wilk(drawn)[1] < LEVEL).mean()),
        "rejected_fdr": float(benjamini_hochberg(p).mean()),
        "mean_w": float(statistic.mean()),
        "excess_kurtosis": float(_kurtosis(tested).mean()),
    }


def _drawn(pixels: Floats) -> Floats:
    """Draw the published number of images for each pixel [pixels, images] on its own, all where there are no more."""
    if pixels.shape[1] <= _PUBLISHED:
        return pixels
    return np.random.default_rng(_SEED).permuted(pixels, axis=1)[:, :_PUBLISHED]


def _kurtosis(pixels: Floats) -> Floats:
    """Return G2, the excess kurtosis that is unbiased for normal samples, of each row."""
    n = pixels.shape[1]
    centred = pixels - pixels.mean(1, keepdims=True)
    centred /= np.ptp(pixels, axis=1)[:, None]  # free of scale; keeps fourth powers of tiny values from vanishing
    g2 = (centred**4).mean(1) / (centred**2).mean(1) ** 2 - 3
    return (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * g2 + 6)


def power_table(*sizes: int) -> pd.DataFrame:
    """Return the share of samples of each size that the test rejects, for distributions of known shape (seeded)."""
    rows = []
    for n in sorted(set(sizes)):
        rng = np.random.default_rng(_SEED)
        shape = (_DRAWS, n)
        normal = rng.standard_normal(shape)
        samples = {
            "normal": normal,
            "clipped normal": normal.clip(-1.5, 1.5),
            "Student t5": rng.standard_t(5, shape),
            "logistic": rng.logistic(size=shape),
            "Laplace": rng.laplace(size=shape),
        }
        for name, x in samples.items():
            rejected = float((shapiro_wilk(x)[1] < LEVEL).mean())
            rows.append({"distribution": name, "n": n, "rejected": rejected, "draws": _DRAWS})
    return pd.DataFrame(rows)
