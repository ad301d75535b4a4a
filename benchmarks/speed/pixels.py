"""Statistics of every pixel against loops over pixels: the Shapiro-Wilk test, and the spread of states."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.normality.shapiro import shapiro_wilk
from bench.measure.instruments.moments import Moments
from benchmarks.comparison import Comparison, Setting, compare
from benchmarks.memory.stored_states import StoredStates

_BATCH = 128


def pixels(setting: Setting) -> Iterator[Comparison]:
    """Compare the tests of one level, and the spreads of several."""
    size, rng = setting.size, np.random.default_rng(0)
    errors = rng.standard_normal((3 * size * size, setting.tested))
    yield compare(
        "pixels", f"Shapiro-Wilk, {len(errors)} pixels of {setting.tested} images", "a loop of scipy.stats.shapiro",
        lambda: shapiro_wilk(errors), lambda: by_loop(errors), setting, pairs=setting.many, goal=20.0,
    )  # fmt: skip
    states = torch.randn(setting.levels, setting.counts[0], 3, size, size)
    yield compare(
        "pixels", f"std of {3 * size * size} pixels of {setting.counts[0]} images, {setting.levels} levels",
        "stored states, a loop of numpy.std", lambda: streamed(states), lambda: stored(states), setting,
        pairs=setting.many,
    )  # fmt: skip


def by_loop(errors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (W, p) of each row [pixels, images], one after the other."""
    found = [scipy.stats.shapiro(row) for row in errors]
    return np.array([one.statistic for one in found]), np.array([one.pvalue for one in found])


def streamed(states: Tensor) -> NDArray[np.float64]:
    """Return the standard deviations [levels, C, H, W] of states [levels, N, C, H, W], divisor N - 1."""
    moments = Moments(len(states), states.shape[2:])
    for batch in states.split(_BATCH, dim=1):
        for level, values in enumerate(batch):
            moments.add(level, values)
    return np.sqrt(Moments.variance(moments.state()))


def stored(states: Tensor) -> NDArray[np.float64]:
    """Return the same with divisor N, from stored states and a loop over pixels."""
    keeper = StoredStates()
    for batch in states.split(_BATCH, dim=1):
        for level, values in enumerate(batch):
            keeper.add(level, values)
    return np.stack(list(keeper.stds().values()))
