"""The scores of a sampled cell, which may be made anew with other features without sampling again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from bench.measure.kernel import kernel_terms
from bench.measure.quality.scores import FeatureSet, Score, collect, neighbour_ratio, score
from bench.suite.cells.reference import Reference
from bench.suite.plan import Cell
from bench.suite.store.store import Store

__all__ = ["score_cell"]


def score_cell(
    cell: Cell, reference: Reference, store: Store, facts: Mapping[str, Any], features: FeatureSet | None = None
) -> None:
    """Score a sampled cell, and complete it.

    Args:
        cell: whose samples are in the store.
        reference: what to compare with.
        store: where everything is.
        facts: what is known of the sampling, kept in ``metrics.json``.
        features: of the samples, None where they are still to be extracted.
    """
    samples = torch.from_numpy(store.samples(cell)).movedim(3, 1)
    store.unscore(cell)
    scores = [asdict(found) for found in _scores(cell, reference, store, samples, features)]
    told = {"features": reference.key(), "training": cell.model.description.seen(), "scores": scores}
    store.finish(cell, {**facts, **told})


def _scores(
    cell: Cell, reference: Reference, store: Store, samples: Tensor, features: FeatureSet | None
) -> Iterator[Score]:
    data = reference.data
    grey = samples[:, : data.shape[0]]
    yield neighbour_ratio(grey, data.part("train"), data.part("heldout"))
    extractor = reference.extractor
    if extractor is None:
        return
    features = features or collect(extractor, samples, cell.name)
    store.put_arrays(cell, "features.npz", {"pooled": features.pooled})
    known = reference.features()
    if len(samples) > 1 and known.comparable:
        store.put_array(cell, "kernel.npy", kernel_terms(features.pooled, known.pooled))
    yield from score(features, known, extractor, reference.name)
    yield from reference.exact_scores(len(samples))
