"""The paired test of two sets of samples, and the terms that it needs of each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.comparison.paired_tests import compare, p_value
from analysis.records.arrays import CellTerms
from bench.measure.features.extractors import Extractor
from bench.measure.quality.influence import class_terms, influence_arrays
from bench.measure.quality.scores import frechet_score
from bench.measure.quality.statistics import ReferenceStatistics
from bench.runtime.errors import FeatureError

Rows = NDArray[np.float32]


def cell_terms(features: Rows, reference: ReferenceStatistics, extractor: Extractor) -> CellTerms:
    """Return what the tests need of samples, as a cell's records hold it.

    Args:
        features: of the samples, [N, d].
        reference: what they are compared with.
        extractor: source of both.
    """
    terms: dict[str, Any] = {**influence_arrays(features, reference, extractor), "reference_n": reference.n}
    stratified = class_terms(features, reference, extractor)[2] if "stratified" in terms else None
    if stratified is not None:
        terms["stratified_distance"] = stratified.distance
    return CellTerms(frechet_score("", features, reference.moments, "").value, **terms)


def paired_test(first: Rows, second: Rows, reference: ReferenceStatistics, extractor: Extractor) -> dict[str, Any]:
    """Return the test of two sets of samples, whose images of one place may share their noise.

    Args:
        first: features [N, d].
        second: features [N, d].
        reference: what both are compared with.
        extractor: source of the features, which names the distance.

    Returns:
        distance, delta (first less second), error, z and p, ready for JSON.

    Raises:
        FeatureError: N / 2 does not exceed d, and the reference has no images to compare with.
    """
    a, b = (cell_terms(features, reference, extractor) for features in (first, second))
    test = compare({0: a}, {0: b})
    if test is None:
        raise FeatureError(
            f"a test needs more than {2 * first.shape[1]} samples, or a reference with images; drop --against"
        )
    name = extractor.metrics["frechet" if test.distance == "frechet" else "kid"]
    numbers = {"delta": test.delta, "error": test.error, "z": test.z, "p": float(p_value(test.z))}
    return {"distance": name, **numbers}
