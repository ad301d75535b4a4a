"""The runner: computes a cell's missing units, merges their records and has the samples scored."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bench.data import coloured
from bench.suite.arms import Arms
from bench.suite.plan import Unit
from bench.suite.records import Records
from bench.suite.reference import Reference
from bench.suite.scoring import score_cell
from bench.suite.store import Store, write_atomic

__all__ = ["CellRunner"]


class CellRunner:
    """Computes one cell.

    Args:
        arms: the cell's walks.
        reference: what to compare with.
        store: where to put it.
    """

    def __init__(self, arms: Arms, reference: Reference, store: Store) -> None:
        self.arms, self.reference, self.store = arms, reference, store
        self.cell, self.batch = arms.cell, arms.batch

    def run(self) -> None:
        """Sample what is missing, merge, score, and complete the cell."""
        self.store.begin(self.cell)
        units = list(self.cell.units(self.batch))
        for unit in units:
            if not self.store.has_shard(self.cell, unit):
                started = time.perf_counter()
                arrays = self.arms.compute(unit)
                self.store.put_shard(self.cell, unit, arrays, time.perf_counter() - started)
        images = self._merge(units)
        quantize_mode = np.array(self.cell.config.quantize)
        samples = {"arr_0": coloured(images), "quantize": quantize_mode}
        classes = self.cell.model.description.classes
        if classes:
            samples["arr_1"] = self.arms.labels(torch.arange(self.cell.samples)).numpy()
        self.store.put_arrays(self.cell, "samples.npz", samples)
        seconds = sum(self.store.shard_seconds(self.cell, unit) for unit in units)
        nfe = max(int(self.store.get_shard(self.cell, unit)["nfe"]) for unit in units if unit.arm == "free")
        facts = {"network_calls": sum(map(self.cell.unit_cost, units)), "seconds": seconds, "nfe": nfe}
        score_cell(self.cell, self.reference, self.store, facts)

    def _merge(self, units: Sequence[Unit]) -> NDArray[np.uint8]:
        """Merge the shards' records into files of the cell; return the samples [N, H, W, C]."""
        look = self.cell.instruments()
        records = Records(self.cell, look, self.reference) if look is not None else None
        images = []
        for unit in units:
            shard = self.store.get_shard(self.cell, unit)
            if "samples" in shard:
                images.append(shard["samples"])
            if records is not None:
                records.add(shard)
        if records is not None:
            self._write(records)
        return np.concatenate(images)

    def _write(self, records: Records) -> None:
        """Write the files of what was measured."""
        if "steps" in self.cell.measure:
            self.store.put_arrays(self.cell, "moments.npz", records.moments())
            table = records.table()
            write_atomic(self.store.folder(self.cell) / "steps.csv", lambda path: table.to_csv(path, index=False))
        if "normality" in self.cell.measure:
            self.store.put_arrays(self.cell, "errors.npz", records.errors())
