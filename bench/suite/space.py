"""How much disk space a run needs."""

from __future__ import annotations

import math

import torch

from bench.measure.features.extractors import Extractor
from bench.measure.instruments.probes import WalkProbe
from bench.suite.plan import Cell, Unit
from bench.suite.run import Run

__all__ = ["disk_bytes", "size"]

_UNITS = ("kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Return a number of bytes as people say it: ``12 MB``."""
    power = min(max(int(math.log10(max(count, 1)) // 3), 1), len(_UNITS))
    number = count / 1000**power
    return f"{number:.{1 if number < 9.95 else 0}f} {_UNITS[power - 1]}"


def disk_bytes(run: Run, extractor: Extractor | None) -> int:
    """Return the bytes of all complete cells and, beside them, of the parts of the largest, roughly.

    Files of a few kilobytes, tables, figures and measurements with network calls of their own are not counted. Parts of
    a cell (shards) are there until it is complete; of a ``--shard`` of the work, those of all cells, until they are
    merged.
    """
    widths = (extractor.widths or (0, 0)) if extractor is not None else (0, 0)
    kept = [_cell(run, run.store.extended(cell), widths[0]) for cell in run.cells]
    parts = [_shards(run, run.store.extended(cell), widths) for cell in run.cells]
    if run.request.share is not None:
        return sum(parts) // run.request.share.count
    return sum(kept) + max(parts, default=0)


def _records(run: Run, cell: Cell, arm: str) -> int:
    """Return the bytes of the records of an arm."""
    look = cell.instruments()
    if look is None or not look.indices or arm == "errors":
        return 0
    probe = WalkProbe(cell.steps, look.indices, torch.zeros(run.data.shape), arm != "free")
    once = sum(array.nbytes for array in probe.state().values())
    return 2 * once if arm == "forced" else once


def _errors(run: Run, cell: Cell) -> int:
    look = cell.instruments()
    if look is None:
        return 0
    return 4 * len(look.error_indices) * (look.error_train + look.error_heldout) * math.prod(run.data.shape)


def _cell(run: Run, cell: Cell, width: int) -> int:
    channels, height, columns = run.data.shape
    colours = max(channels, 3)  # grey images are stored as colours
    arms = {unit.arm for unit in cell.units(run.request.batch)}
    images = cell.samples * (colours * height * columns + 4 * width + 16)
    return images + sum(_records(run, cell, arm) for arm in arms) + _errors(run, cell)


def _shards(run: Run, cell: Cell, widths: tuple[int, int]) -> int:
    def of(unit: Unit) -> int:
        images = unit.stop - unit.start if unit.arm == "free" else 0
        return images * (math.prod(run.data.shape) + 4 * sum(widths))

    units = list(cell.units(run.request.batch))
    records = {arm: _records(run, cell, arm) for arm in {unit.arm for unit in units}}
    return sum(of(unit) + records[unit.arm] for unit in units) + _errors(run, cell)
