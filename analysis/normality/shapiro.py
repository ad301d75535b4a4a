"""The Shapiro-Wilk test of normality, batched (Royston 1995, AS R94), over the pixels of a level, and its power."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

_CHUNK = 2**22  # elements handled at a time, so that memory does not grow with the number of samples
_SMALL = 1e-19  # scipy takes a smaller range for none
# Polynomial coefficients of AS R94, lowest order first.
_FIRST = (0.0, 0.221157, -0.147981, -2.07119, 4.434685, -2.706056)
_SECOND = (0.0, 0.042981, -0.293762, -1.752461, 5.682633, -3.582633)
_SMALL_GAMMA = (-2.273, 0.459)
_SMALL_MEAN = (0.544, -0.39978, 0.025054, -6.714e-4)
_SMALL_STD = (1.3822, -0.77857, 0.062767, -0.0020322)
_LARGE_MEAN = (-1.5861, -0.31082, -0.083751, 0.0038915)
_LARGE_STD = (-0.4803, -0.082676, 0.0030302)
LEVEL = 0.05
MOST = 5000  # images the test is defined for
RATES = {"rejected": "published: rejected at level .05", "rejected_fdr": "all images, FDR controlled"}
_PUBLISHED = 100  # images a test
_DRAWS = 2000  # simulated samples a row of the power table: standard error at most .011
_SEED = 0

Floats = NDArray[np.float64]


def shapiro_wilk(x: ArrayLike) -> tuple[Floats, Floats]:
    """Test samples along the last axis; return (W, p), each of the other axes' shape.

    Equal to ``scipy.stats.shapiro`` for n = 3..5000. A sample of zero range (below 1e-19) gives W = 1, p = 1, as there.

    Args:
        x: [..., n] finite numbers.

    Raises:
        ValueError: n outside 3..5000, or a value that is not finite.
    """
    samples = np.asarray(x)
    if samples.dtype.kind not in "biuf":
        samples = samples.astype(np.float64)
    n = samples.shape[-1] if samples.ndim else 0
    if not 3 <= n <= 5000:
        raise ValueError(f"the Shapiro-Wilk test needs 3 to 5000 values, not {n}")
    rows = samples.reshape(-1, n)
    weights = _weights(n)
    statistic = np.empty(len(rows))
    for start in range(0, len(rows), max(1, _CHUNK // n)):
        part = slice(start, start + max(1, _CHUNK // n))
        statistic[part] = _statistic(rows[part].astype(np.float64), weights)
    if not np.isfinite(statistic).all():
        raise ValueError("the Shapiro-Wilk test needs finite values")
    p = np.where(statistic >= 1, 1.0, _significance(statistic, n))
    return statistic.reshape(samples.shape[:-1]), p.reshape(samples.shape[:-1])


def _poly(coefficients: tuple[float, ...], x: float) -> float:
    return float(np.polynomial.polynomial.polyval(x, coefficients))


def _weights(n: int) -> Floats:
    """Return the n antisymmetric weights of the order statistics, of unit length."""
    half = n // 2
    scores = ndtri((np.arange(1, half + 1) - 0.375) / (n + 0.25))
    length = 2 * float((scores**2).sum())
    weights = np.empty(half)
    if n == 3:
        weights[0] = np.sqrt(0.5)
    else:
        root = 1 / np.sqrt(n)
        weights[0] = _poly(_FIRST, root) - scores[0] / np.sqrt(length)
        fixed = 1
        if n > 5:
            weights[1] = _poly(_SECOND, root) - scores[1] / np.sqrt(length)
            fixed = 2
        rest = length - 2 * float((scores[:fixed] ** 2).sum())
        weights[fixed:] = -scores[fixed:] / np.sqrt(rest / (1 - 2 * float((weights[:fixed] ** 2).sum())))
    return np.concatenate([-weights, np.zeros(n % 2), weights[::-1]])


def _statistic(rows: Floats, weights: Floats) -> Floats:
    """Return W of each row [B, n]; 1 where a row has no range."""
    ordered = np.sort(rows, axis=1)
    span = ordered[:, -1] - ordered[:, 0]
    flat = span < _SMALL
    ordered -= ordered[:, [ordered.shape[1] // 2]]  # so that far from 0 the mean is exact
    ordered -= ordered.mean(axis=1, keepdims=True)
    ordered /= np.where(flat, 1, span)[:, None]  # W is free of scale; this keeps squares of tiny values from vanishing
    squares = np.einsum("bn,bn->b", ordered, ordered) * (weights**2).sum()
    cross = ordered @ weights
    # 1 - W by the difference of squares, which keeps its digits where W is close to 1.
    root = np.sqrt(np.where(flat, 1, squares))
    statistic = 1 - (root - cross) * (root + cross) / np.where(flat, 1, squares)
    return np.where(flat, 1.0, statistic)


def _significance(statistic: Floats, n: int) -> Floats:
    """Return p of W for a sample size."""
    below = np.minimum(statistic, 1 - 1e-16)
    if n == 3:
        p = 6 / np.pi * (np.arcsin(np.sqrt(below)) - np.pi / 3)
        return np.clip(p, 0, None)
    y = np.log(1 - below)
    if n <= 11:
        gamma = _poly(_SMALL_GAMMA, n)
        mean, std = _poly(_SMALL_MEAN, n), np.exp(_poly(_SMALL_STD, n))
        hopeless = y >= gamma
        y = -np.log(np.where(hopeless, 1.0, gamma - y))
        return np.where(hopeless, 1e-99, ndtr(-(y - mean) / std))
    mean, std = _poly(_LARGE_MEAN, np.log(n)), np.exp(_poly(_LARGE_STD, np.log(n)))
    return ndtr(-(y - mean) / std)


def benjamini_hochberg(p: Floats, alpha: float = LEVEL) -> NDArray[np.bool_]:
    """Mark the rejections among p [m] that keep the false discovery rate at alpha (Benjamini & Hochberg 1995)."""
    order = np.argsort(p)
    passes = p[order] <= alpha * np.arange(1, len(p) + 1) / len(p)
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order[: np.max(np.flatnonzero(passes), initial=-1) + 1]] = True
    return rejected


def level_statistics(errors: Floats) -> dict[str, float]:
    """Test the errors of one level, [images, C, H, W]; return counts, rejection shares and moments over pixels.

    ``rejected``: as published, over ``n_published`` images drawn for each pixel (seeded). ``rejected_fdr``: over all n
    images (5000 at most), after Benjamini-Hochberg. ``excess_kurtosis``: mean over pixels of G2 (Joanes & Gill 1998),
    whose expectation is 0 for normal errors.
    """
    pixels = errors.reshape(len(errors), -1).T
    tested = pixels[np.ptp(pixels, axis=1) > 0]
    drawn = tested  # for each pixel on its own, where there are more than the published number
    if len(errors) > _PUBLISHED:
        drawn = np.random.default_rng(_SEED).permuted(tested, axis=1)[:, :_PUBLISHED]
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
        rng, shape = np.random.default_rng(_SEED), (_DRAWS, n)
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
