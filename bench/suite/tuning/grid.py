"""``--tune NAME=LOW:HIGH:COUNT``: the distances of a grid of values, and the value of least distance.

Every value is a model of its own, named ``<model>@<constant>=<value>``, on the same noise. Seeds are those of the user
plus a million, a range that no other run may use: no reported number comes from the noise it was tuned on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.files.writing import write_atomic
from bench.suite.plan import Cell
from bench.suite.registry.model import Model
from bench.suite.registry.tuned_constant import TunedConstant
from bench.suite.settings import ConfigError
from bench.suite.store.store import Store

_NEAR = 2  # grid points on either side of the best one that the parabola goes through


def choose(values: Sequence[float], distances: Sequence[float]) -> float:
    """Return the value of least distance: the vertex of a parabola around the best point, to six digits.

    The parabola is fitted to the best point and up to two on either side. Where its vertex is no minimum, or lies
    outside of these points, the best point itself is taken.
    """
    best = int(np.argmin(distances))
    near = slice(max(0, best - _NEAR), best + _NEAR + 1)
    x, y = np.asarray(values[near]), np.asarray(distances[near])
    middle = x.mean()
    curve = np.polyfit(x - middle, y, 2)
    vertex = middle - curve[1] / (2 * curve[0]) if curve[0] > 0 else math.nan
    return float(f"{vertex if x[0] <= vertex <= x[-1] else values[best]:.6g}")


def choose_values(
    tune: TunedConstant, models: Sequence[Model], cells: Sequence[Cell], store: Store, metric: str
) -> dict[str, list[float]]:
    """Write the distances of every model as tables; return the value chosen by model, in the order of step counts.

    Args:
        tune: the constant and its values.
        models: as the user named them.
        cells: complete ones of all their variants.
        store: the run's folder.
        metric: the distance, e.g. ``fid``.

    Raises:
        ConfigError: a distance is missing, because N does not support it.
    """
    by_name = {cell.name: cell for cell in cells}
    config, steps, seeds = cells[0].config, sorted({c.steps for c in cells}), sorted({c.seed for c in cells})
    chosen: dict[str, list[float]] = {}
    for model in models:
        for count in steps:
            rows = [
                _row(by_name[f"{name}-{config.sampler}-{count}-seed{seed}"], store, metric)
                | {"model": model.name, "parameter": tune.constant, "value": value}
                for name, value in zip(tune.names(model), tune.values, strict=True)
                for seed in seeds
            ]
            table = pd.DataFrame(rows)
            write_table(store.root / "tuning" / f"{model.name}-{config.sampler}-{count}-{tune.constant}.csv", table)
            means = table.groupby("value", sort=True)["distance"].mean()
            chosen.setdefault(model.name, []).append(choose([float(v) for v in means.index], means.tolist()))
    return chosen


def _row(cell: Cell, store: Store, metric: str) -> dict[str, Any]:
    """Return a cell's distance as a part of a curve's row."""
    scores = (store.metrics(cell) or {}).get("scores", [])
    score = next((score for score in scores if score["metric"] == metric), {"reason": "it was not scored"})
    if score.get("value") is None:
        raise ConfigError(f"--tune needs {metric}, and {cell.name} has none: {score['reason']}")
    where = {"model": "", "sampler": cell.config.sampler, "steps": cell.steps, "parameter": "", "value": 0.0}
    return where | {"seed": cell.seed, "n": score["n"], "metric": metric, "distance": score["value"]}


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file, atomically."""
    write_atomic(path, lambda partial: table.to_csv(partial, index=False))
