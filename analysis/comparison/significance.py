"""Which of two models is better on shared seeds: the paired difference of kernel distances.

With within_i and cross_i the per-sample kernel terms, the squared kernel distance to the reference is, up to a
constant, D = mean(within) - 2 mean(cross). Samples of one number share their noise, so for two models the difference
Delta = D_A - D_B has the standard error 2 std(p) / sqrt(N), p_i = (within_i - cross_i)_A - (within_i - cross_i)_B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtr, stdtrit

from analysis.records.arrays import Terms

CRITICAL = 1.96  # two-sided 5 %
LEVEL = 0.05  # of every family of tests, after Holm's correction
FEWEST_SEEDS = 5  # of a t-test


@dataclass(frozen=True)
class Comparison:
    """Delta < 0 says the first model is closer to the reference; ``seeds`` were shared."""

    delta: float
    error: float
    seeds: int

    @property
    def z(self) -> float:
        """Return Delta in standard errors; 0 where the two are the same samples."""
        return self.delta / self.error if self.error > 0 else 0.0

    @property
    def verdict(self) -> str:
        """Return ``win``, ``loss`` or ``tie`` of the first model."""
        if abs(self.z) < CRITICAL:
            return "tie"
        return "win" if self.z < 0 else "loss"


def compare(first: Terms, second: Terms) -> Comparison | None:
    """Compare two models over the seeds both were run with, equal weight a seed; None where they share none."""
    shared = [seed for seed in sorted(first.keys() & second.keys()) if first[seed].shape == second[seed].shape]
    if not shared:
        return None
    deltas, variances = [], []
    for seed in shared:
        a, b = first[seed], second[seed]
        deltas.append((a[:, 0] - 2 * a[:, 1]).mean() - (b[:, 0] - 2 * b[:, 1]).mean())
        p = (a[:, 0] - a[:, 1]) - (b[:, 0] - b[:, 1])
        variances.append(4 * p.var(ddof=1) / len(p))
    error = float(np.sqrt(np.sum(variances))) / len(shared)
    return Comparison(float(np.mean(deltas)), error, len(shared))


def p_value(z: ArrayLike) -> NDArray[np.float64]:
    """Return the two-sided p of normal z."""
    return np.asarray(2 * ndtr(-np.abs(np.asarray(z, dtype=float))))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Return p values adjusted for their number (Holm 1979): rejecting those below a level errs once with that chance.

    The k-th smallest of m, k from 0, is multiplied by m - k, and is at least the one before. NaN stays, uncounted.
    """
    values = np.asarray(p, dtype=float)
    adjusted = np.full(len(values), np.nan)
    order = [position for position in np.argsort(values, kind="stable") if values[position] == values[position]]
    scaled = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1) if order else scaled
    return adjusted


def rank_intervals(names: Sequence[str], z: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    """Return the lowest and the highest rank that each name may have: rank 1 is the smallest.

    ``low`` is one more than the number of names that are smaller for certain, ``high`` the number of names less those
    that are greater for certain: by the tests of all pairs at level .05 with Holm's correction, so that all intervals
    hold at once with a chance of .95 (after Mogstad, Romano, Shaikh & Wilhelm 2024).

    Args:
        names: what is ranked.
        z: first minus second in standard errors, one entry a pair that was compared.

    Returns:
        Columns ``low`` and ``high`` by name, of the names that were compared with any other.
    """
    pairs = [pair for pair in z if set(pair) <= set(names)]
    adjusted = holm(p_value([z[pair] for pair in pairs]))
    certain = [pair if z[pair] < 0 else pair[::-1] for pair, p in zip(pairs, adjusted, strict=True) if p < LEVEL]
    compared = [name for name in names if any(name in pair for pair in pairs)]
    rows = {
        name: {
            "low": 1 + sum(greater == name for _, greater in certain),
            "high": len(compared) - sum(smaller == name for smaller, _ in certain),
        }
        for name in compared
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["low", "high"])


def paired_t(first: NDArray[np.float64], second: NDArray[np.float64]) -> dict[str, object]:
    """Return the paired t-test of values by seed: the mean difference with its 95 % interval, t, p, and the seeds.

    With mean m and standard deviation s of n differences, t = m / (s / sqrt(n)) has Student's distribution with n - 1
    degrees of freedom. ``reason`` says why there is no test.
    """
    n = len(first)
    row: dict[str, object] = dict.fromkeys(("difference", "low", "high", "t", "p"), float("nan"))
    row |= {"seeds": n, "reason": ""}
    if n < FEWEST_SEEDS:
        return row | {"reason": f"{FEWEST_SEEDS} shared seeds are needed, not {n}"}
    differences = first - second
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        return row | {"difference": mean, "reason": "the difference is the same under every seed"}
    error = float(differences.std(ddof=1)) / np.sqrt(n)
    half = float(stdtrit(n - 1, 0.975)) * error
    t = mean / error
    values = {"difference": mean, "low": mean - half, "high": mean + half, "t": t, "p": 2 * stdtr(n - 1, -abs(t))}
    return row | {name: float(value) for name, value in values.items()}
