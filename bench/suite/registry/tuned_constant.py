"""``--tune``: the constant of a remedy to tune, and models with other values of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.suite.registry.constants import Constants
from bench.suite.registry.model import Model
from bench.suite.registry.remedies import Remedy
from bench.suite.settings import RESERVED_SEEDS, ConfigError

BY_STEPS = ("b",)  # constants whose rule depends on the step count
OF_IMAGES = ("data_variance", "std", "reference")  # constants that are measured on real images
_MOST = 200
_LARGEST = 1e12


@dataclass(frozen=True)
class TunedConstant:
    """One constant and the values to try; without values it is fitted by its own rule."""

    constant: str
    values: tuple[float, ...]

    def variants(self, models: Sequence[Model], sampler: str, counts: Sequence[int]) -> tuple[Model, ...]:
        """Return every model with every value."""
        return tuple(
            replace(with_constant(model, self.constant, [value] * len(counts), sampler, counts), name=name)
            for model in models
            for value, name in zip(self.values, self.names(model), strict=True)
        )

    def names(self, model: Model) -> list[str]:
        """Return the names of a model's variants."""
        return [f"{model.name}@{self.constant}={value:.6g}" for value in self.values]

    def seeds(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """Return the reserved seeds that stand for the user's."""
        return tuple(RESERVED_SEEDS + seed for seed in seeds)

    @property
    def text(self) -> str:
        """Return it as the command line would have it."""
        grid = f"{self.values[0]:g}:{self.values[-1]:g}:{len(self.values)}" if self.values else "fit"
        return f"{self.constant}={grid}"

    def prepared(self, model: Model) -> Model:
        """Return a model whose constant has some value, so that it can be planned.

        Raises:
            ConfigError: it has no such constant or more than one, or its network has no name without remedies.
        """
        holder = _holder(model, self.constant)
        if not model.base:
            raise ConfigError(
                f"--tune: the network of model {model.name!r} has no entry without corrections, for a tuned one to be"
                " based on; give it one, and 'base' to this"
            )
        if self.constant == "span":  # it changes others, which must be known
            return model
        if self.constant == "reference" and self.values:
            raise ConfigError("--tune: 'reference' is no number; give reference=fit")
        stand_in: Any = [[0.0, 1.0]] if self.constant == "reference" else 1.0
        remedies = list(model.remedies)
        remedies[holder] = remedies[holder].overridden({self.constant: self.values[0] if self.values else stand_in})
        return replace(model, remedies=tuple(remedies))


def parse_tune(text: str) -> TunedConstant:
    """Read ``NAME=LOW:HIGH:COUNT``, both ends included, or ``NAME=fit``.

    Raises:
        ConfigError: it is neither.
    """
    constant, equals, grid = (part.strip() for part in text.partition("="))
    if constant and grid == "fit":
        return TunedConstant(constant, ())
    try:
        first, last, points = grid.split(":")
        low, high, count = float(first), float(last), int(points)
    except ValueError:
        low, high, count = math.nan, math.nan, 0
    if not (constant and equals and -_LARGEST < low < high < _LARGEST and 3 <= count <= _MOST):
        raise ConfigError(
            f"--tune: {text!r} is not NAME=LOW:HIGH:COUNT with LOW below HIGH and COUNT from 3 to {_MOST}, as in"
            " b=0.99:1.06:15, or NAME=fit"
        )
    values = tuple(float(f"{value:.6g}") for value in np.linspace(low, high, count))
    if len(set(values)) < count:
        raise ConfigError(f"--tune: {text!r} has values that are equal to six digits; give fewer, or a wider range")
    return TunedConstant(constant, values)


def _holder(model: Model, constant: str) -> int:
    """Return the position of the remedy that has a constant."""
    holders = [
        place
        for place, remedy in enumerate(model.remedies)
        if constant in remedy.defaults or (constant == "span" and remedy.has_span)
    ]
    if len(holders) == 1:
        return holders[0]
    names = sorted({name for remedy in model.remedies for name in remedy.defaults})
    if holders:
        raise ConfigError(
            f"--tune: {constant!r} belongs to several remedies of model {model.name!r}; keep one of them in the name"
        )
    reason = f"its constants are {', '.join(names)}" if names else "it has no remedy; add one, as in adm-es"
    raise ConfigError(f"--tune: model {model.name!r} has no constant {constant!r}; {reason}")


def with_constant(model: Model, constant: str, values: Sequence[Any], sampler: str, counts: Sequence[int]) -> Model:
    """Return a model with one constant replaced under one sampler, a value for each step count.

    ``span`` is the rise of epsilon scaling's divisor from the least to the most noisy step, k (steps - 1), at the mean
    divisor that the model has, as in the tables of Ning et al. 2024: b falls by half of what the rise adds.
    """
    place = _holder(model, constant)
    remedy = model.remedies[place]
    rows: dict[int, dict[str, Any]] = {}
    for count, value in sorted(zip(counts, values, strict=True)):
        row = remedy.at(sampler, count)
        if constant != "span":
            row[constant] = value
        elif count > 1:  # one step has no rise
            mean = row["b"] + row["k"] * (count - 1) / 2
            row |= {"b": mean - value / 2, "k": value / (count - 1)}
        rows[count] = row
    numbers = [name for name, value in row.items() if isinstance(value, int | float)]
    fixed = {name: value for name, value in row.items() if isinstance(value, list)}
    knots = {name: tuple(row[name] for row in rows.values()) for name in numbers}
    remedies = list(model.remedies)
    remedies[place] = Remedy(remedy.kind, {**remedy.constants, sampler: Constants(tuple(rows), knots, fixed)})
    return replace(model, remedies=tuple(remedies))
