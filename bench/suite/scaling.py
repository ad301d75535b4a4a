"""Epsilon-scaling constants: tuned on the digits here, published for the datasets of the papers."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["Scaling", "constants"]

_CONSTANTS = Path(__file__).parent / "scaling.toml"


@dataclass(frozen=True)
class Scaling:
    """Epsilon-scaling constants of a model and sampler: knots over step counts.

    ``b`` is the divisor at the least noisy step; ``span`` is k * (steps - 1), the rise to the noisiest one. Both are
    interpolated linearly in log steps and held constant outside the knots. ``slope`` is a k the user fixed. Without
    knots nothing was tuned.
    """

    steps: tuple[int, ...] = ()
    b: tuple[float, ...] = ()
    span: tuple[float, ...] = ()
    slope: float | None = None

    def at(self, steps: int) -> tuple[float, float]:
        """Return (b, k) for a step count."""
        x = math.log(steps)
        knots = [math.log(s) for s in self.steps]
        b, span = (_interpolate(x, knots, values) for values in (self.b, self.span))
        if self.slope is not None:
            return b, self.slope
        return b, span / (steps - 1) if steps > 1 else 0.0

    def overridden(self, b: float | None, k: float | None) -> Scaling:
        """Return the scaling with constants of the user's at every step count; None keeps a constant."""
        fixed = self if b is None else Scaling((1,), (b,), self.span[:1] or (0.0,), self.slope)
        if b is not None and self.steps:  # the tuned rise stays, whatever b is
            fixed = replace(self, b=(b,) * len(self.b))
        return fixed if k is None else replace(fixed, slope=k)


def _interpolate(x: float, knots: list[float], values: tuple[float, ...]) -> float:
    if x <= knots[0]:
        return values[0]
    for left, right, low, high in zip(knots, knots[1:], values, values[1:], strict=False):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return values[-1]


def constants(dataset: str, model: str, conditional: bool) -> Mapping[str, Scaling]:
    """Return a scaling model's constants by sampler, empty where there are none.

    Args:
        dataset: the run's.
        model: a name of the embedded family, e.g. ``adm-es``.
        conditional: whether the network takes class labels; its constants are then those of ``<dataset>-cond``.
    """
    document = tomllib.loads(_CONSTANTS.read_text())
    known = document.get(f"{dataset}-cond" if conditional else dataset, {}).get(model, {})
    return {
        sampler: Scaling(tuple(row["steps"]), tuple(row["b"]), tuple(row["span"])) for sampler, row in known.items()
    }
