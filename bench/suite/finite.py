"""The watch over walks: whether a network said anything that is not finite, and where first."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.diffusion.types import Step

__all__ = ["FiniteWatch"]


class FiniteWatch:
    """Remembers one number a network call on the device; asking is the only device-to-host copy."""

    def __init__(self) -> None:
        self._where: list[tuple[int, float]] = []
        self._sums: list[Tensor] = []

    def update(self, step: Step, values: Tensor) -> None:
        """Look at values of a step, [B, ...] on the device.

        A sum is NaN or infinite where any of its terms is; of finite float32 it is so only where their mean is beyond
        1e30, which no working network says.
        """
        self._where.append((step.i, step.level.t))
        self._sums.append(values.sum())

    def first(self) -> tuple[int, float] | None:
        """Return (solver index, t) of the first call that was not finite, None where all were, and forget them."""
        finite = torch.stack(self._sums).isfinite().tolist() if self._sums else []
        found = next((where for where, is_finite in zip(self._where, finite, strict=True) if not is_finite), None)
        self._where, self._sums = [], []
        return found
