"""Sample quality: features to statistics to scalars, each scalar with its reference, N and, if empty, the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from bench.data import to_unit
from bench.measure.extrapolation import FEWEST_PER_FEATURE, frechet_infinity
from bench.measure.features import Extractor
from bench.measure.frechet import feature_moments, frechet_distance

__all__ = ["SCORES_VERSION", "FeatureSet", "Score", "frechet_score", "neighbour_ratio", "score"]

Rows = NDArray[np.float32]
SCORES_VERSION = 4  # raise when the set of scores or the meaning of one changes: samples are then scored anew
_NEIGHBOURS = 3
_ROWS = 256  # of a distance matrix held at a time, so that memory grows with N and not with N^2


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images: ``pooled`` [N, d] and ``spatial`` [N, d']."""

    pooled: Rows
    spatial: Rows


@dataclass(frozen=True)
class Score:
    """One metric of a cell; ``value`` is None where N cannot support it, for the stated ``reason``."""

    metric: str
    value: float | None
    n: int
    reference: str
    reason: str = ""


def score(samples: FeatureSet, reference: FeatureSet, extractor: Extractor, reference_name: str) -> Iterator[Score]:
    """Yield Frechet distances on pooled (as it is, and at infinite N) and spatial features, KID, precision and recall.

    KID, precision and recall (k = 3, all samples) are torch-fidelity's; KID subsets hold min(1000, N, M) images.
    """
    n, names = len(samples.pooled), extractor.metrics
    yield frechet_score(names["frechet"], samples.pooled, reference.pooled, reference_name)
    yield _infinite(f"{names['frechet']}_inf", samples.pooled, reference.pooled, reference_name)
    yield frechet_score(names["spatial"], samples.spatial, reference.spatial, reference_name)
    ours, theirs = torch.from_numpy(samples.pooled), torch.from_numpy(reference.pooled)
    fewest = min(len(ours), len(theirs))
    if fewest < 2:
        yield Score(names["kid"], None, n, reference_name, "needs 2 images")
    else:
        kid = kid_features_to_metric(ours, theirs, kid_subset_size=min(1000, fewest), verbose=False)
        yield Score(names["kid"], kid[KEY_METRIC_KID_MEAN], n, reference_name)
    if fewest < _NEIGHBOURS + 1:
        for key in ("precision", "recall"):
            yield Score(names[key], None, n, reference_name, f"needs {_NEIGHBOURS + 1} images")
        return
    settings = {"prc_neighborhood": _NEIGHBOURS, "prc_batch_size": _ROWS, "save_cpu_ram": True, "verbose": False}
    prc = prc_features_to_metric(ours, theirs, **settings)
    yield Score(names["precision"], prc[KEY_METRIC_PRECISION], n, reference_name)
    yield Score(names["recall"], prc[KEY_METRIC_RECALL], n, reference_name)


def frechet_score(name: str, samples: Rows, reference: Rows, reference_name: str) -> Score:
    """Return the Frechet distance of features [N, d] to the reference's, empty where N does not exceed d."""
    needed = samples.shape[1] + 1
    fewest = min(len(samples), len(reference))
    if fewest < needed:
        reason = f"a covariance of {samples.shape[1]} features needs {needed} images, not {fewest}"
        return Score(name, None, len(samples), reference_name, reason)
    value = frechet_distance(*feature_moments(samples), *feature_moments(reference))
    return Score(name, value, len(samples), reference_name)


def _infinite(name: str, samples: Rows, reference: Rows, reference_name: str) -> Score:
    """Extrapolate the samples' side of a Frechet distance; the reference stays as large as it is."""
    n, features = samples.shape
    needed = FEWEST_PER_FEATURE * features
    if n < needed:
        reason = f"extrapolation of {features} features needs {needed} images, not {n}"
        return Score(name, None, n, reference_name, reason)
    if len(reference) <= features:
        reason = f"a covariance of {features} features needs {features + 1} images, not {len(reference)}"
        return Score(name, None, n, reference_name, reason)
    return Score(name, frechet_infinity(samples, *feature_moments(reference)), n, reference_name)


def neighbour_ratio(samples: Tensor, train: Tensor, heldout: Tensor) -> Score:
    """Return mean nearest-pixel distance to training over held-out images; below 1 the model memorises.

    Training images are thinned evenly to the number of held-out ones, so that both offer as many neighbours.

    Args:
        samples: uint8 [N, C, H, W].
        train: uint8 [M, C, H, W].
        heldout: uint8 [K, C, H, W].
    """
    name, reference = "nn_ratio", "train / held-out, equal numbers"
    count = min(len(train), len(heldout))
    if not count:
        return Score(name, None, len(samples), reference, "the dataset has no held-out part")
    thinned = [images[torch.linspace(0, len(images) - 1, count).long()] for images in (train, heldout)]
    near = [_nearest(samples, images) for images in thinned]
    if not near[1]:
        return Score(name, None, len(samples), reference, "every sample is a held-out image")
    return Score(name, near[0] / near[1], len(samples), reference)


def _nearest(samples: Tensor, images: Tensor) -> float:
    """Return the mean distance of samples to their nearest image, in the [-1, 1] scale."""
    theirs = to_unit(images).flatten(1)
    # By differences, not products: the distance of equal images is then exactly 0.
    mode = "donot_use_mm_for_euclid_dist"
    nearest = [
        torch.cdist(to_unit(part).flatten(1), theirs, compute_mode=mode).amin(1) for part in samples.split(_ROWS)
    ]
    return torch.cat(nearest).double().mean().item()
