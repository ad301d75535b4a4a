"""Constants that are known at some levels, looked up at any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["ByLevel"]


class ByLevel:
    """A piecewise linear function of a level's ``t``, constant outside its knots.

    Args:
        t: knots, strictly ascending.
        values: one a knot.
    """

    def __init__(self, t: Sequence[float], values: Sequence[float]) -> None:
        self.t, self.values = np.asarray(t, dtype=np.float64), np.asarray(values, dtype=np.float64)
        if len(self.t) != len(self.values) or not len(self.t) or (np.diff(self.t) <= 0).any():
            raise ValueError("knots must ascend, and have one value each")
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, t: Any) -> Any:
        """Return the value at a level: a float, or a tensor like ``t`` where levels are one an image."""
        if not isinstance(t, Tensor):
            return float(np.interp(t, self.t, self.values))
        knots, values = self._on(t)
        if len(knots) == 1:
            return values.expand_as(t)
        right = torch.searchsorted(knots, t.contiguous()).clamp(1, len(knots) - 1)
        low, high = values[right - 1], values[right]
        share = ((t - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
        return low + share * (high - low)

    def _on(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return knots and values where ``t`` is; they are copied there once."""
        place = (t.device, t.dtype)
        if place not in self._copies:
            knots, values = (torch.as_tensor(row, dtype=t.dtype, device=t.device) for row in (self.t, self.values))
            self._copies[place] = (knots, values)
        return self._copies[place]
