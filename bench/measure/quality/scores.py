"""Scores of sample quality: each a number with its reference and N, or empty with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.measure.features.extractors import Extractor
from bench.measure.quality.frechet import frechet_distance
from bench.measure.quality.influence import class_terms, kernel_error
from bench.measure.quality.statistics import (
    FEWEST_COMPARED,
    FEWEST_SCORED,
    FeatureMoments,
    MomentStream,
    ReferenceStatistics,
    blocks_of,
)

Rows = NDArray[np.float32]
SCORES_VERSION = 10  # raise when the set of scores or the meaning of one changes: samples are then scored anew
_NEIGHBOURS = 3
_KID_SUBSETS = 100  # torch-fidelity's default
_SPLIT = 5000  # images of an Inception score, as in guided-diffusion's evaluator
_ROWS = 256  # of a distance matrix held at a time, so that memory grows with N and not with N^2
_PIXEL_ROWS = 1024  # images in float64 at a time


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images: ``pooled`` [N, d], and ``spatial`` [N, d'] or no more than their moments."""

    pooled: Rows
    spatial: Rows | FeatureMoments


@dataclass(frozen=True)
class Score:
    """One metric of a cell; ``value`` is None where N cannot support it, for the stated ``reason``."""

    metric: str
    value: float | None
    n: int
    reference: str
    reason: str = ""


def collect(extractor: Extractor, images: Tensor, name: str, batch: int = 256, quiet: bool = True) -> FeatureSet:
    """Return the features of samples; spatial features, which are as large again, are reduced to their moments.

    Args:
        extractor: source of the features.
        images: uint8 [N, 1 or 3, H, W], N at least 1.
        name: label of the progress bar.
        batch: images a network call.
        quiet: no progress bar.
    """
    rows, moments = [], MomentStream()
    for pooled, spatial in extractor.stream(images, batch, name, quiet):
        rows.append(pooled)
        moments.add(spatial)
    return FeatureSet(np.concatenate(rows), moments.result())


def score(
    samples: FeatureSet, reference: ReferenceStatistics, extractor: Extractor, reference_name: str
) -> Iterator[Score]:
    """Yield every score of the features. Scores that N cannot support are empty and say why.

    In this order: Frechet distance on pooled and on spatial features, and, with an embedded classifier, on pooled
    features at the reference's class shares; KID, with its standard error where it stands for a Frechet distance;
    precision and recall; the Inception score, which has no reference.

    Args:
        samples: features of the samples.
        reference: statistics that they are compared with.
        extractor: source of both, which names the scores.
        reference_name: how tables call the reference.
    """
    n, names = len(samples.pooled), extractor.metrics
    note = f"; {extractor.note}" if extractor.note else ""
    name = f"{reference_name}{note}"
    distance = frechet_score(names["frechet"], samples.pooled, reference.moments, name)
    yield distance
    if reference.spatial is None:
        yield Score(
            names["spatial"], None, n, name, "the reference has no statistics of spatial features (mu_s, sigma_s)"
        )
    else:
        yield frechet_score(names["spatial"], samples.spatial, reference.spatial, name)
    if extractor.embedded:
        yield _stratified(f"{names['frechet']}_strat", samples.pooled, reference, extractor)
    yield from _compared(samples.pooled, reference, extractor, note, distance.value is None)
    if extractor.logits is not None:
        value = inception_score(samples.pooled, extractor.logits) if n > 1 else None  # of a single image it is always 1
        yield Score(names["inception_score"], value, n, "none", "" if n > 1 else "needs 2 images")


def score_statistics(samples: ReferenceStatistics, reference: ReferenceStatistics, extractor: Extractor) -> list[Score]:
    """Return the scores of samples of which there are only statistics: Frechet distances; the others say why not.

    Args:
        samples: with their number.
        reference: statistics that they are compared with.
        extractor: source of both, which names the scores.
    """
    n, names = samples.n or 0, extractor.metrics
    note = f"; {extractor.note}" if extractor.note else ""
    name = f"{reference.name}{note}"
    scores = [frechet_score(names["frechet"], samples.moments, reference.moments, name)]
    if samples.spatial is None or reference.spatial is None:
        scores.append(Score(names["spatial"], None, n, name, "needs mu_s and sigma_s of samples and reference"))
    else:
        scores.append(frechet_score(names["spatial"], samples.spatial, reference.spatial, name))
    others = ("kid", "precision", "recall", *(("inception_score",) if extractor.logits is not None else ()))
    return [*scores, *(Score(names[key], None, n, name, "needs the samples' images") for key in others)]


def _stratified(name: str, samples: Rows, reference: ReferenceStatistics, extractor: Extractor) -> Score:
    """Return the Frechet distance of samples that weigh as much in each class as the reference's images do."""
    n, label = len(samples), reference.pooled_name
    if not len(reference.pooled):
        return Score(name, None, n, label, "the reference has no images, whose classes could be counted")
    *_, terms = class_terms(samples, reference, extractor)
    if terms is None:
        return Score(name, None, n, label, f"needs more samples than {samples.shape[1]} features, and 5 of each class")
    return Score(name, terms.distance, n, label)


def _compared(
    samples: Rows, reference: ReferenceStatistics, extractor: Extractor, note: str, with_error: bool
) -> Iterator[Score]:
    """Yield torch-fidelity's KID, precision and recall, which compare single images with single reference images.

    KID subsets hold min(1000, N, M) images. Precision and recall use k = 3 neighbours and all samples. ``with_error``
    adds KID's standard error.
    """
    n, names, name = len(samples), extractor.metrics, f"{reference.pooled_name}{note}"
    if reason := comparison_refusal(n, len(reference.pooled)):
        for key in ("kid", "precision", "recall"):
            yield Score(names[key], None, n, name, reason)
        return
    # Imported here because it takes seconds.
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    ours, theirs = torch.from_numpy(samples), torch.from_numpy(reference.pooled)
    kid = kid_features_to_metric(
        ours, theirs, kid_subsets=_KID_SUBSETS, kid_subset_size=min(1000, n, len(theirs)), verbose=False
    )
    yield Score(names["kid"], kid[KEY_METRIC_KID_MEAN], n, name)
    if with_error:
        drawing = kid[KEY_METRIC_KID_STD] / math.sqrt(_KID_SUBSETS)  # of the subsets
        yield Score(f"{names['kid']}_error", math.hypot(kernel_error(samples, reference.pooled), drawing), n, name)
    settings = {"prc_neighborhood": _NEIGHBOURS, "prc_batch_size": _ROWS, "save_cpu_ram": True, "verbose": False}
    prc = prc_features_to_metric(ours, theirs, **settings)
    yield Score(names["precision"], prc[KEY_METRIC_PRECISION], n, name)
    yield Score(names["recall"], prc[KEY_METRIC_RECALL], n, name)


def frechet_score(name: str, samples: Rows | FeatureMoments, reference: FeatureMoments, reference_name: str) -> Score:
    """Return the Frechet distance of features [N, d] or their moments; it is empty where N does not exceed d.

    A reference without a number of images is assumed to have enough.
    """
    ours = samples if isinstance(samples, FeatureMoments) else MomentStream.of(blocks_of(samples))
    n = ours.n or 0
    if reason := frechet_refusal(len(ours.mean), n, reference.n):
        return Score(name, None, n, reference_name, reason)
    value = frechet_distance(ours.mean, ours.cov, reference.mean, reference.cov)
    return Score(name, value, n, reference_name)


def frechet_refusal(width: int, n: int, reference_n: int | None) -> str:
    """Return why so many samples and reference images give no Frechet distance, empty where they do.

    Args:
        width: number of features.
        n: number of samples.
        reference_n: number of reference images; None, where nobody states it, is enough.
    """
    fewest = n if reference_n is None else min(n, reference_n)
    return "" if fewest > width else f"a covariance of {width} features needs {width + 1} images, not {fewest}"


def comparison_refusal(n: int, references: int) -> str:
    """Return why so many samples and single reference images give no KID, precision and recall, empty where they do."""
    if not references:
        return "the reference has no images, only statistics"
    if references < FEWEST_COMPARED:
        return f"needs {FEWEST_COMPARED} reference images, not {references}"
    return "" if n >= FEWEST_SCORED else f"needs {FEWEST_SCORED} samples, not {n}"


def neighbour_ratio(samples: Tensor, train: Tensor, heldout: Tensor) -> Score:
    """Return the mean distance to the nearest training image over that to the nearest held-out image.

    A model that memorises has a ratio below 1. Training images are thinned evenly to the number of held-out images, so
    that both sets offer equally many neighbours.

    Args:
        samples: uint8 [N, C, H, W].
        train: uint8 [M, C, H, W].
        heldout: uint8 [K, C, H, W].
    """
    name, reference = "nn_ratio", "train / held-out, equal numbers"
    count = min(len(train), len(heldout))
    if not count:
        lacking = "the dataset has no held-out part" if len(train) else "the training images are not at hand"
        return Score(name, None, len(samples), reference, lacking)
    thinned = [images[torch.linspace(0, len(images) - 1, count).long()] for images in (train, heldout)]
    to_train, to_heldout = (_nearest(samples, images) for images in thinned)
    if not to_heldout:
        return Score(name, None, len(samples), reference, "every sample is a held-out image")
    return Score(name, to_train / to_heldout, len(samples), reference)


def _nearest(samples: Tensor, images: Tensor) -> float:
    """Return the mean distance of samples to their nearest image, in the [-1, 1] scale."""
    # Sums of products of grey levels are whole numbers below 2^53, so float64 is exact and equal images are 0 apart.
    nearest = torch.full((len(samples),), torch.inf, dtype=torch.float64)
    for block in images.split(_PIXEL_ROWS):
        theirs = block.flatten(1).double()
        squares = theirs.square().sum(1)
        for part, least in zip(samples.split(_PIXEL_ROWS), nearest.split(_PIXEL_ROWS), strict=True):
            ours = part.flatten(1).double()
            # ||a - b||^2 = ||a||^2 + ||b||^2 - 2 a.b
            distance = torch.addmm(squares, ours, theirs.T, alpha=-2).amin(1) + ours.square().sum(1)
            torch.minimum(least, distance, out=least)
    return nearest.sqrt().mean().item() / 127.5


@torch.no_grad()
def inception_score(pooled: NDArray[np.float32], logits: Callable[[Tensor], Tensor], split: int = _SPLIT) -> float:
    """Return the Inception score exp(mean KL(p(y | x) || p(y))), averaged over splits (Salimans et al. 2016).

    Splits have the size of guided-diffusion's evaluator, and a shorter last split counts as much as the others. They
    are drawn from one fixed permutation, which for samples in random order changes nothing in law: of samples sorted by
    class every split would lack classes. The score grows with the size of a split, so that values at N < 5000 are below
    published ones.

    Args:
        pooled: features [N, d], N at least 1.
        logits: features [B, d] to class logits [B, classes].
        split: images a split.

    Returns:
        A number from 1 to the number of classes.
    """
    if len(pooled) > split:
        # Raw words of PCG64, which numpy keeps the same for good.
        pooled = pooled[np.argsort(np.random.PCG64(0).random_raw(len(pooled)), kind="stable")]
    return float(np.mean([_split_score(logits(part)) for part in torch.from_numpy(pooled).split(split)]))


def _split_score(logits: Tensor) -> float:
    """Return exp(mean KL) of one split in float64."""
    # Logarithms throughout: a probability of 0 would make a NaN.
    log_p = logits.double().log_softmax(dim=1)
    log_mean = torch.logsumexp(log_p, dim=0) - np.log(len(log_p))
    return (log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp().item()
