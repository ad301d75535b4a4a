"""What a comparison ends with: a win, a loss, a tie, or a test that could have shown nothing.

No method takes a distance below that of an exact sampler, which is not 0 at a finite N. Where the difference that a
test sees with a chance of 80 % is larger than what both models have above that, a perfect method would have tied.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.comparison.paired_tests import LEVEL

DECIDED = ("win", "loss")
UNTESTABLE = "not testable"
_ROUNDING = 1e-6  # of one distance, by machine


def verdicts(table: pd.DataFrame) -> NDArray[np.str_]:
    """Return ``win``, ``loss``, ``tie`` or ``not testable`` of each row, a test of one table.

    Args:
        table: columns ``delta`` (below 0 the first model is closer), ``p_holm`` (corrected within the table),
            ``detectable`` and ``excess``: the farther model's distance less an exact sampler's, NaN where unknown.
    """
    ends = np.where(table["delta"] < 0, *DECIDED)
    ties = np.where(table["detectable"] > table["excess"], UNTESTABLE, "tie")
    return np.where(table["p_holm"] < LEVEL, ends, ties)


def untested(table: pd.DataFrame) -> str:
    """Say how many rows of a table are not testable, and why; empty for none."""
    count = int((table["verdict"] == UNTESTABLE).sum())
    if not count:
        return ""
    return (
        f"{count} {'is' if count == 1 else 'are'} not testable at this N, where even an exact sampler would not be told"
        " from the farther model"
    )


def exact_distances(metrics: pd.DataFrame, metric: str) -> dict[int, tuple[float, float]]:
    """Return by step count what an exact sampler would have at its N, mean and std; nothing where N varies."""
    exact = {}
    for steps, group in metrics.groupby("steps"):
        numbers = []
        for name in (f"{metric}_exact", f"{metric}_exact_sd"):
            values = group.loc[group["metric"] == name, "value"].astype(float).dropna().to_numpy()
            if len(values) and np.allclose(values, values[0], rtol=_ROUNDING, atol=0):
                numbers.append(float(values[0]))
        if len(numbers) == 2:
            exact[int(str(steps))] = (numbers[0], numbers[1])
    return exact


def exact_means(metrics: pd.DataFrame, metric: str | None) -> dict[int, float]:
    """Return the means of :func:`exact_distances`, none without a metric."""
    return {} if metric is None else {steps: mean for steps, (mean, _) in exact_distances(metrics, metric).items()}
