"""The papers' way to a state's spread: keep every state of every image, then take each pixel's spread in turn.

Written anew from the description of ADM-ES's ``x_t_distribution_consecutive_sampling``: states are appended by step,
joined at the end, and ``numpy.std`` over images is taken in a loop over channels, rows and columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class StoredStates:
    """States by step; memory grows with the number of images."""

    def __init__(self) -> None:
        self._kept: dict[int, list[NDArray[np.float32]]] = {}

    def add(self, i: int, states: Tensor) -> None:
        """Keep a batch [B, C, H, W] of solver index i."""
        self._kept.setdefault(i, []).append(states.float().cpu().numpy())

    def stds(self) -> dict[int, NDArray[np.float64]]:
        """Return each step's standard deviation over images [C, H, W], divisor N."""
        return {i: _by_pixel(np.concatenate(parts)) for i, parts in self._kept.items()}


def _by_pixel(states: NDArray[np.float32]) -> NDArray[np.float64]:
    found = np.empty(states.shape[1:])
    for c, h, w in np.ndindex(found.shape):
        found[c, h, w] = np.std(states[:, c, h, w])
    return found
