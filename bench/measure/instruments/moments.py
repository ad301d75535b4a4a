"""Streaming moments: counts, sums and sums of squares in float64, mergeable and independent of the number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Moments"]

Arrays = dict[str, NDArray[np.float64]]


class Moments:
    """First and second moments of values of a fixed shape, kept apart for a number of rows (noise levels).

    Sums in float64 are safe here because the values' mean is never large against their spread. They live on the
    values' device, or on the CPU where the device has no float64.

    Args:
        rows: how many levels.
        shape: shape of one value, () for scalars.
        device: where the values come from.
    """

    def __init__(self, rows: int, shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.count = np.zeros(rows)  # on the host: adding a batch size needs no device
        place = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
        self._sums = torch.zeros((2, rows, *shape), dtype=torch.float64, device=place)

    def add(self, row: int, values: Tensor) -> None:
        """Add a batch of values [B, *shape] to a row."""
        wide = values.to(self._sums.device).double()
        self.count[row] += len(wide)
        self._sums[0, row] += wide.sum(0)
        self._sums[1, row] += wide.square().sum(0)

    def state(self) -> Arrays:
        """Return count [rows], mean [rows, *shape] and second (the raw second moment); the one device-to-host copy."""
        sums = self._sums.cpu().numpy()
        divisor = np.maximum(self.count, 1).reshape(-1, *[1] * (sums.ndim - 2))
        return {"count": self.count.copy(), "mean": sums[0] / divisor, "second": sums[1] / divisor}

    @staticmethod
    def merge(parts: Sequence[Mapping[str, NDArray[np.float64]]]) -> Arrays:
        """Merge states in the order given (float addition is not associative, so the order is part of the result)."""
        count = np.sum([part["count"] for part in parts], axis=0)
        merged: Arrays = {"count": count}
        for name in ("mean", "second"):
            total = np.zeros_like(parts[0][name])
            for part in parts:
                weight = part["count"].reshape(-1, *[1] * (total.ndim - 1))
                total += weight * part[name]
            merged[name] = total / np.maximum(count, 1).reshape(-1, *[1] * (total.ndim - 1))
        return merged

    @staticmethod
    def variance(state: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the unbiased variance [rows, *shape] of a state; NaN where fewer than two values were seen."""
        count = state["count"].reshape(-1, *[1] * (state["mean"].ndim - 1))
        spread = np.maximum(state["second"] - state["mean"] ** 2, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(count > 1, spread * count / (count - 1), np.nan)
