"""Many comparisons at once: Holm's correction, and which ranks the tests leave open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["LEVEL", "holm", "p_value", "rank_intervals"]

LEVEL = 0.05


def p_value(z: ArrayLike) -> NDArray[np.float64]:
    """Return the two-sided p of normal z."""
    return np.asarray(2 * stats.norm.sf(np.abs(np.asarray(z, dtype=float))))


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
