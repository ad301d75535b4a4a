"""Which of two models is better on shared seeds: the paired difference of kernel distances.

With within_i and cross_i the per-sample kernel terms, the squared kernel distance to the reference is, up to a
constant, D = mean(within) - 2 mean(cross). Samples of one number share their noise, so for two models the difference
Delta = D_A - D_B has the standard error 2 std(p) / sqrt(N), p_i = (within_i - cross_i)_A - (within_i - cross_i)_B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.records.load import CellRecord, Results, ResultsError

__all__ = ["CRITICAL", "Comparison", "Row", "Terms", "compare", "kernel_terms"]

CRITICAL = 1.96  # two-sided 5 %
Row = tuple[str, str]  # model, sampler
Terms = Mapping[int, NDArray[np.float64]]  # by seed: [N, 2], within and cross


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


def kernel_terms(results: Results) -> dict[int, dict[Row, dict[int, NDArray[np.float64]]]]:
    """Return the per-sample kernel terms by steps, (model, sampler) and seed."""
    found: dict[int, dict[Row, dict[int, NDArray[np.float64]]]] = {}
    for cell, terms in results.each(_terms):
        found.setdefault(cell["steps"], {}).setdefault((cell["model"], cell["sampler"]), {})[cell["seed"]] = terms
    return found


def _terms(record: CellRecord) -> tuple[dict[str, Any], NDArray[np.float64]] | None:
    terms = record.array("kernel.npy")
    if terms is None:
        return None
    sound = terms.ndim == 2 and terms.shape[1] == 2 and len(terms) > 0 and terms.dtype.kind in "iuf"
    if not sound or not np.isfinite(terms).all():
        raise ResultsError(
            f"{record.folder / 'kernel.npy'} does not hold two finite columns; delete the cell and run again"
        )
    return record.cell, terms
