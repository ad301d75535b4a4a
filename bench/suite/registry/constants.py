"""The constants of remedies: tuned on the digits here, published for the datasets of the papers."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

_CONSTANTS = Path(__file__).parent / "constants.toml"


@dataclass(frozen=True)
class Constants:
    """A remedy's constants by name, under one sampler.

    ``values`` has one value for each count of ``steps`` (ascending). Between them it is interpolated linearly in log
    steps, outside it is constant. ``fixed`` constants are the same at every step count, and come first.
    """

    steps: tuple[int, ...] = ()
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def names(self) -> set[str]:
        """Return the names of the constants that have a value."""
        return {*self.values, *self.fixed}

    def at(self, steps: int) -> dict[str, Any]:
        """Return the constants of a step count."""
        x, knots = math.log(steps), [math.log(count) for count in self.steps]
        return {name: _interpolate(x, knots, row) for name, row in self.values.items()} | dict(self.fixed)

    def overridden(self, values: Mapping[str, Any]) -> Constants:
        """Return them with some fixed at every step count."""
        return replace(self, fixed={**self.fixed, **values})


def _interpolate(x: float, knots: list[float], values: tuple[float, ...]) -> float:
    if x <= knots[0]:
        return values[0]
    for left, right, low, high in zip(knots, knots[1:], values, values[1:], strict=False):
        if x == right:
            return high  # to the last bit, which the formula is not
        if x < right:
            return low + (high - low) * (x - left) / (right - left)
    return values[-1]


def constants_of(dataset: str, model: str, conditional: bool) -> Mapping[str, Constants]:
    """Return the constants of a model's remedy by sampler; empty where there are none.

    Args:
        dataset: the run's.
        model: a name of the embedded family, e.g. ``adm-es``.
        conditional: whether the network takes class labels; its constants are then those of ``<dataset>-cond``.
    """
    document = tomllib.loads(_CONSTANTS.read_text())
    samplers = document.get(f"{dataset}-cond" if conditional else dataset, {}).get(model, {})
    return {sampler: _constants(row) for sampler, row in samplers.items()}


def _constants(row: Mapping[str, Any]) -> Constants:
    steps = tuple(row.get("steps", ()))
    values = {name: tuple(value) for name, value in row.items() if name != "steps" and isinstance(value, list)}
    fixed = {name: value for name, value in row.items() if name != "steps" and name not in values}
    return Constants(steps, values, fixed)
