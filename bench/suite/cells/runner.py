"""The runner of a cell: computes its units of work, merges their records and has the samples scored."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.data import coloured
from bench.files.writing import write_array, write_atomic, write_blocks
from bench.measure.quality.frechet import feature_moments
from bench.measure.quality.influence import influence_arrays
from bench.measure.quality.scores import FeatureSet, Score, collect, neighbour_ratio, score
from bench.measure.quality.statistics import MomentStream
from bench.suite.cells.records import Records
from bench.suite.cells.reference import Reference
from bench.suite.cells.walks import Arrays, CellWalks, WalkContext, sample_labels
from bench.suite.plan import Cell, Unit
from bench.suite.store.shards import DamagedShard
from bench.suite.store.store import Described, Store

_FEATURE_BATCH = 256


@dataclass
class _Totals:
    """The sums over a cell's shards, besides their records."""

    seconds: float = 0.0
    nfe: int = 0
    pooled: list[NDArray[np.float32]] = field(default_factory=list)
    spatial: MomentStream = field(default_factory=MomentStream)


class CellRunner:
    """Computes one cell.

    Args:
        cell: the configuration.
        context: the network, data, device and batch size.
        store: the run's folder.
    """

    def __init__(self, cell: Cell, context: WalkContext, store: Store) -> None:
        self.cell, self.context, self.store = cell, context, store
        self.arms, self.reference = CellWalks(cell, context), context.reference

    def units(self) -> list[Unit]:
        """Return the cell's units in merging order."""
        return list(self.cell.units(self.context.batch))

    def walk(self, unit: Unit) -> Arrays:
        """Return the records of a unit, with the seconds they took."""
        started = time.perf_counter()
        arrays = self.arms.compute(unit)
        return {**arrays, "seconds": np.array(time.perf_counter() - started)}

    def keep(self, unit: Unit, arrays: Arrays) -> None:
        """Write a unit's shard, with the features of its samples."""
        self.store.put_shard(self.cell, unit, {**arrays, **self._features(arrays)})

    def is_sampled(self) -> bool:
        """Tell whether every unit's shard is there."""
        return all(self.store.has_shard(self.cell, unit) for unit in reversed(self.units()))  # the last comes last

    def complete(self) -> None:
        """Merge the shards, which are all there, into the cell's files, score the samples, and complete the cell."""
        totals, cell = _Totals(), self.cell
        others = {"quantize": np.array(cell.config.quantize)}
        labels = sample_labels(cell, self.arms.noise, torch.arange(cell.samples))
        if labels is not None:
            others["arr_1"] = labels.cpu().numpy()
        records = Records(cell, cell.instruments, self.reference)
        path = self.store.folder(cell) / "samples.npz"
        write_blocks(path, "arr_0", cell.samples, self._merge(totals, records), others)
        if "steps" in cell.measure:
            self.store.put_arrays(cell, "moments.npz", records.moments())
            table = records.table()
            write_atomic(path.with_name("steps.csv"), lambda partial: table.to_csv(partial, index=False))
        if "normality" in cell.measure:
            self.store.put_arrays(cell, "errors.npz", records.errors())
        calls = sum(map(cell.unit_cost, self.units()))
        facts = {"network_calls": calls, "seconds": totals.seconds, "nfe": totals.nfe}
        rows = totals.pooled
        features = FeatureSet(np.concatenate(rows), totals.spatial.result()) if rows else None
        score_cell(cell, self.reference, self.store, facts, features)

    def _shards(self) -> Iterator[Arrays]:
        """Yield the shards in merging order; one that is damaged, or made for other features, is mended."""
        for unit in self.units():
            try:
                yield self._scorable(self.store.get_shard(self.cell, unit.name))
            except DamagedShard:
                arrays = self.walk(unit)
                self.keep(unit, arrays)
                yield self._scorable(arrays)

    def _merge(self, totals: _Totals, records: Records) -> Iterator[NDArray[np.uint8]]:
        """Yield the samples of each shard, [n, H, W, 3], and add its other arrays to the totals and records."""
        for shard in self._shards():
            totals.seconds += float(shard["seconds"])
            if "pooled" in shard:
                totals.pooled.append(shard["pooled"])
                totals.spatial.add(shard["spatial"])
            records.add(shard)
            if "samples" in shard:
                totals.nfe = max(totals.nfe, int(shard["nfe"]))
                yield coloured(shard["samples"])

    def _features(self, arrays: Arrays) -> Arrays:
        """Return the features of a free unit's samples, and the key of their extractor."""
        extractor = self.reference.extractor
        if extractor is None or "samples" not in arrays:
            return {}
        images = torch.from_numpy(arrays["samples"]).movedim(3, 1)
        pooled, spatial = extractor.extract(images, _FEATURE_BATCH)
        return {"pooled": pooled, "spatial": spatial, "extractor": np.array(extractor.key)}

    def _scorable(self, arrays: Arrays) -> Arrays:
        extractor = self.reference.extractor
        key = "none" if extractor is None else extractor.key
        if "samples" not in arrays or str(arrays.get("extractor", "none")) == key:
            return arrays
        other = {name: array for name, array in arrays.items() if name not in ("pooled", "spatial", "extractor")}
        return {**other, **self._features(arrays)}


def score_cell(
    cell: Cell, reference: Reference, store: Store, facts: Mapping[str, Any], features: FeatureSet | None = None
) -> None:
    """Score a sampled cell, and complete it.

    Args:
        cell: whose samples are in the store.
        reference: what to compare with.
        store: where everything is.
        facts: network calls, seconds and NFE of the sampling, for ``metrics.json``.
        features: of the samples, None where they are still to be extracted.
    """
    samples, data = torch.from_numpy(store.samples(cell)).movedim(3, 1), reference.pictures
    store.unscore(cell)
    scores = [neighbour_ratio(samples[:, : data.shape[0]], data.part("train"), data.part("heldout"))]
    if reference.extractor is not None:
        features = features or collect(reference.extractor, samples, cell.name)
        scores += score_features(cell, reference, store, features, {})
    training, rows = cell.model.description.training_images(), [asdict(score) for score in scores]
    store.finish(cell, {**facts, "features": reference.key(), "training": training, "scores": rows})


def score_features(
    cell: Described, reference: Reference, store: Store, features: FeatureSet, others: Arrays
) -> Iterator[Score]:
    """Write the features of a cell's samples and the terms of their tests, and yield their scores.

    Args:
        cell: whose samples.
        reference: what to compare with; it has an extractor.
        store: where the files go.
        features: of the samples.
        others: further arrays of ``influence.npz``.
    """
    extractor, statistics = reference.extractor, reference.features()
    assert extractor is not None  # its callers asked
    store.put_arrays(cell, "features.npz", {"pooled": features.pooled})
    terms = influence_arrays(features.pooled, statistics, extractor)
    if "kernel" in terms:
        write_array(store.folder(cell) / "kernel.npy", terms.pop("kernel"))
    store.put_arrays(cell, "influence.npz", terms | _feature_moments(features.pooled) | others)
    yield from score(features, statistics, extractor, reference.name)
    yield from reference.exact_scores(len(features.pooled))


def _feature_moments(pooled: NDArray[np.float32]) -> Arrays:
    """Return ``mean`` [d] and ``covariance`` [d (d + 1) / 2], the upper triangle by rows; nothing for one image."""
    if len(pooled) < 2:
        return {}
    mean, cov = feature_moments(pooled)
    triangle = cov[np.triu_indices(len(mean))]
    return {"mean": mean.astype(np.float32), "covariance": triangle.astype(np.float32)}
