"""What an earlier run left that a resumed run takes as done.

A cell is sampled once ``metrics.json`` names the key of these settings and each of its files is as it was written. It
is scored once its scores are those of the features of this run. Everything else is computed anew; shards of an
interrupted cell are taken over by :meth:`bench.suite.store.store.Store.begin`.
"""

from __future__ import annotations

from dataclasses import replace

from bench.suite.plan import Cell
from bench.suite.settings import IN_CELLS
from bench.suite.store.store import SAMPLED, SCORED, Store


def is_sampled(store: Store, cell: Cell) -> bool:
    """Tell whether the cell's sampling is complete, whatever features it was scored with."""
    metrics = store.metrics(cell)
    if metrics is None or not store.is_intact(cell, metrics, SAMPLED):
        return False
    return metrics.get("key") == extended(store, cell).key() and set(cell.measure) <= set(_measured(store, cell))


def extended(store: Store, cell: Cell) -> Cell:
    """Return the cell with the measurements that its folder has already, so that measuring more loses none."""
    measured = _measured(store, cell)
    return replace(cell, measure=tuple(name for name in IN_CELLS if name in (*cell.measure, *measured)))


def _measured(store: Store, cell: Cell) -> list[str]:
    description = (store.metrics(cell) or {}).get("cell")
    names = description.get("measure") if isinstance(description, dict) else None
    return names if isinstance(names, list) else []


def is_scored(store: Store, cell: Cell, features: str) -> bool:
    """Tell whether a sampled cell's scores are those of these features, and their files are there."""
    metrics = store.metrics(cell) or {}
    return metrics.get("features") == features and store.is_intact(cell, metrics, SCORED)


def is_damaged(store: Store, cell: Cell) -> bool:
    """Tell whether a cell was complete and a file of it is not as it was written any more."""
    if not (store.folder(cell) / "metrics.json").exists():
        return False
    metrics = store.metrics(cell)
    return metrics is None or not store.is_intact(cell, metrics, SAMPLED + SCORED)
