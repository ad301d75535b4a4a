"""Per-sample terms of two distances, from which their standard errors and paired tests are made.

A distance D between samples a_1 .. a_N and reference images r_1 .. r_M is, to first order, a mean over samples plus a
mean over reference images. The terms of these means are the influence functions of D. Their variance is the variance
of D, with no resampling, and the variance of their differences is that of D_A - D_B, where two models A and B share
the noise of each sample. The tests themselves are in :mod:`analysis.comparison.paired_tests`.

Near a perfect sampler the first-order terms vanish. A test that trusts them rejects too often, or too rarely. So the
terms are taken twice, with the statistics of the even and of the odd samples: what the two halves have in common is
the signal, and what they do not share is noise of second order. For the Frechet distance the halves are tangents: few
samples have a covariance near a singular one, so the step to half of the samples is taken along the derivative at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.measure.features.extractors import Extractor
from bench.measure.quality.frechet import frechet_distance
from bench.measure.quality.statistics import FeatureMoments, ReferenceStatistics, thinned

Floats = NDArray[np.float64]
Rows = NDArray[np.float32]
_FEWEST_OF_A_CLASS = 5
_SPREAD = 2000  # reference images whose spread is taken for that of all
_BLOCK = 256  # rows of a kernel or quadratic form held at a time; even
_STEP = 0.1  # of the weights of even samples up and of odd ones down, for derivatives: errors are of its square


@dataclass(frozen=True)
class FrechetTerms:
    """Influence functions of a Frechet distance.

    Attributes:
        samples: [N, 2], of each sample, with the moments of the even and of the odd samples (tangents).
        reference: [M, 2], of each kept reference image, likewise; empty where the reference has none.
        self_influence: [N], half of what each sample's own weight adds to its influence.
    """

    samples: Floats
    reference: Floats
    self_influence: Floats


@dataclass(frozen=True)
class KernelTerms:
    """Means of the kernel k(x, y) = (x.y / d + 1)^3 of KID (Binkowski et al. 2018).

    Attributes:
        within: [N, 2], mean of k(a_i, a_j) over the even and over the odd j, without j = i; 0 where there is no other.
        cross: [N], mean of k(a_i, r_j) over the reference.
        reference: [M, 2], mean of k(a_i, r_j) over the even and over the odd samples.
    """

    within: Floats
    cross: Floats
    reference: Floats

    def by_sample(self) -> Floats:
        """Return [N, 2]: the mean of k(a_i, a_j) over all j other than i, and the mean over the reference."""
        partners = _partners(len(self.cross))
        return np.stack([(self.within * partners).sum(axis=1) / partners.sum(axis=1), self.cross], axis=1)


def frechet_terms(features: Rows, reference: ReferenceStatistics) -> FrechetTerms | None:
    """Return the influence functions of the Frechet distance between samples and a reference.

    With mean m, covariance C of the samples, m_r, C_r of the reference and T the linear map that carries C to C_r,
    phi_i = 2 (m - m_r).(a_i - m) + (a_i - m)' (I - T) (a_i - m), less its mean, for a sample, and
    psi_j = 2 (m_r - m).(r_j - m_r) + (r_j - m_r)' (I - T^-1) (r_j - m_r), less its mean, for a reference image.
    Where sample i weighs 1 + h s_i, with s_i = 1 for even and -1 for odd i, both are functions phi(h), psi(h). The
    terms of the even and of the odd samples are phi(0) + phi'(0) and phi(0) - phi'(0).

    Each sample has a part in the covariance that its influence is taken at. Without sample i the distance is another
    by the mean of its influence at weight 1 and at weight 0, that is phi_i - own_i, with own_i = (a_i - m)' T'
    (a_i - m) / 2 and T' the derivative of T, with its sign turned, in the direction (a_i - m)(a_i - m)' / N.

    Args:
        features: a, [N, d].
        reference: its moments, and the features [M, d] of its kept images.

    Returns:
        The terms, or None where the samples are too few for derivatives at their covariance (N / 2 <= d).
    """
    n, d = features.shape
    if n // 2 <= d:
        return None
    a, rows, theirs = features.astype(np.float64), reference.pooled.astype(np.float64), reference.moments
    roots = _roots(theirs.cov)
    signs = np.where(np.arange(n) % 2 == 0, _STEP, -_STEP)
    phi, psi = [], []
    for weights in (1 + signs, 1 - signs):
        ours = _weighted(a, weights)
        transport, inverse = _transports(ours.cov, *roots)
        phi.append(_influence(a, ours, theirs, transport))
        psi.append(_influence(rows, theirs, ours, inverse) if len(rows) else np.empty(0))
    samples = _tangents(*phi)
    for half in (0, 1):
        samples[half::2] -= samples[half::2].mean(axis=0)  # a half fits its own samples better: no part of the error
    return FrechetTerms(samples, _tangents(*psi), _self_influences(a, roots[0]))


@dataclass(frozen=True)
class StratifiedTerms:
    """A Frechet distance whose samples are weighted to the reference's class shares.

    Attributes:
        distance: between the weighted samples' moments and the reference's.
        samples: [N], weight_i (phi_i - its class mean): std(samples) / sqrt(N) is the distance's standard error.
    """

    distance: float
    samples: Floats


def stratified_terms(
    features: Rows, classes: NDArray[np.int64], shares: Floats, reference: FeatureMoments
) -> StratifiedTerms | None:
    """Return the distance at the reference's class shares, with the terms of its error.

    A sample of class k weighs share_k N / n_k (post-stratification). The classes are those that a classifier sees in
    the samples. What this distance does not see, uneven classes, is tested on its own.

    Args:
        features: [N, d].
        classes: [N], from 0.
        shares: [K], of the reference's images; they sum to 1.
        reference: moments of the reference's features.

    Returns:
        The distance, or None where N <= d, or a class of the reference has fewer than 5 samples.
    """
    n, d = features.shape
    counts = np.bincount(classes, minlength=len(shares))
    if n <= d or len(counts) > len(shares) or (counts[shares > 0] < _FEWEST_OF_A_CLASS).any():
        return None
    weights = (shares * n / np.maximum(counts, 1))[classes]
    a = features.astype(np.float64)
    ours = _weighted(a, weights)
    phi = _influence(a, ours, reference, _transports(ours.cov, *_roots(reference.cov))[0])
    class_means = np.bincount(classes, phi, len(shares)) / np.maximum(counts, 1)
    distance = frechet_distance(ours.mean, ours.cov, reference.mean, reference.cov)
    return StratifiedTerms(distance, weights * (phi - class_means[classes]))


def _weighted(rows: Floats, weights: Floats) -> FeatureMoments:
    """Return the moments of rows [n, d] with weights [n], about 1 in the mean."""
    total = weights.sum()
    mean = weights @ rows / total
    centred = rows - mean
    return FeatureMoments(mean, (centred.T * weights) @ centred / (total - 1), len(rows))


def _tangents(up: Floats, down: Floats) -> Floats:
    """Return the tangents of functions at 0, at 1 and at -1, [n, 2], from values [n] at the step and minus the step."""
    middle, slope = (up + down) / 2, (up - down) / (2 * _STEP)
    return np.stack([middle + slope, middle - slope], axis=1)


def _self_influences(rows: Floats, root: Floats) -> Floats:
    """Return half of what the own weight of each row [n, d] adds to its influence, with R the root of a target."""
    centred = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(root @ (centred.T @ centred / (len(rows) - 1)) @ root)
    roots, positive = _positive_roots(values)
    # In the eigenbasis of M, with q its roots, M^(-1/2) along E has the derivative -E_kl / (q_k q_l (q_k + q_l)).
    slopes = np.outer(positive, positive) / (np.outer(roots, roots) * np.add.outer(roots, roots))
    parts = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        squares = (centred[block] @ (root @ vectors)) ** 2
        parts[block] = ((squares @ slopes) * squares).sum(axis=1) / (2 * len(rows))
    return parts


def _influence(rows: Floats, ours: FeatureMoments, theirs: FeatureMoments, transport: Floats) -> Floats:
    """Return the influence of each row [n, d], of the law ``ours``, on the distance to ``theirs``; its mean is 0."""
    gradient = np.eye(len(ours.mean)) - transport  # of the trace term with respect to ours.cov
    centred = rows - ours.mean
    values = 2 * centred @ (ours.mean - theirs.mean)
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        values[block] += ((centred[block] @ gradient) * centred[block]).sum(axis=1)
    centre: Floats = values - values.mean()
    return centre


def _transports(source: Floats, root: Floats, inverse_root: Floats) -> tuple[Floats, Floats]:
    """Return T = R (R source R)^(-1/2) R with R the root of a target, and T^-1: T source T = target at full rank."""
    middle, inverse_middle = _roots(root @ source @ root)
    return root @ inverse_middle @ root, inverse_root @ middle @ inverse_root


def _roots(matrix: Floats) -> tuple[Floats, Floats]:
    """Return the root of a positive semidefinite matrix [d, d], and its inverse but for eigenvalues of rounding."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    roots, positive = _positive_roots(values)
    return (vectors * roots * positive) @ vectors.T, (vectors / roots * positive) @ vectors.T


def _positive_roots(values: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the roots of ascending eigenvalues, 1 for those of rounding, and which are not of rounding."""
    positive = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return np.sqrt(np.where(positive, values, 1.0)), positive


def kernel_terms(features: Rows, reference: Rows) -> KernelTerms:
    """Return the kernel means of samples and reference images.

    The squared kernel distance is mean(within) - 2 mean(cross) up to a constant of the reference, where within_i is the
    mean over all j other than i. Work is O(N (N + M) d) in blocks, so that memory grows with N + M only.

    Args:
        features: a, [N, d], N at least 2.
        reference: r, [M, d].
    """
    a, r = features.astype(np.float64), reference.astype(np.float64)
    n, scale = len(a), 1.0 / a.shape[1]
    even = np.arange(n) % 2 == 0
    within, cross, theirs = np.empty((n, 2)), np.empty(n), np.zeros((len(r), 2))
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        k = _kernel(a[rows] * scale, a)
        k[np.arange(len(k)), np.arange(start, start + len(k))] = 0  # no sample is its own partner
        within[rows, 0], within[rows, 1] = k[:, even].sum(axis=1), k[:, ~even].sum(axis=1)
        k = _kernel(a[rows] * scale, r)
        cross[rows] = k.mean(axis=1)
        for half in (0, 1):
            theirs[:, half] += k[half::2].sum(axis=0)
    return KernelTerms(within / np.maximum(_partners(n), 1), cross, theirs / (even.sum(), n // 2))


def kernel_error(features: Rows, reference: Rows) -> float:
    """Return the standard error of the squared kernel distance between samples and reference images.

    With p_i = within_i - cross_i over even and over odd partners, of the samples and likewise of the reference,
    Var = sum over both of 2 (var p + max(cov(p_even, p_odd), 0)) / n: as in the paired test, with the reference's own
    kernel in it. Of a large reference the spread of 2000 images, evenly spaced, stands for that of all.

    Args:
        features: of the samples, [N, d], N at least 2.
        reference: [M, d], M at least 2.
    """
    variance, few = 0.0, reference[thinned(len(reference), _SPREAD)]
    for rows, others, count in ((features, few, len(features)), (few, features, len(reference))):
        terms = kernel_terms(rows, others)
        p = terms.by_sample() @ (1, -1)
        halves = terms.within - terms.cross[:, None]
        variance += 2 * (float(p.var(ddof=1)) + max(float(np.cov(halves, rowvar=False)[0, 1]), 0.0)) / count
    return math.sqrt(variance)


def _partners(n: int) -> NDArray[np.int64]:
    """Return [n, 2], how many even and how many odd numbers below n are not the row's own."""
    even = np.arange(n) % 2 == 0
    return np.stack([even.sum() - even, (~even).sum() - ~even], axis=1)


def _kernel(a: Floats, b: Floats) -> Floats:
    """Return (a.b + 1)^3 for all rows of a [n, d] and b [m, d]."""
    k: Floats = a @ b.T
    k += 1
    k *= k * k  # several times faster than ** 3
    return k


def influence_arrays(features: Rows, reference: ReferenceStatistics, extractor: Extractor) -> dict[str, NDArray[Any]]:
    """Return everything that tests of a cell's distances need, by name, float32 unless said otherwise.

    Args:
        features: of the samples, [N, d].
        reference: what they are compared with.
        extractor: gave both.

    Returns:
        frechet [N, 2], frechet_reference [M, 2], frechet_self [N]: :class:`FrechetTerms`, absent where N / 2 <= d.
        reference_n: number of reference images, absent where nobody states it.
        kernel [N, 2] in double precision, within [N, 2], kernel_reference [M, 2]: :class:`KernelTerms`, absent where
            the reference has too few images to compare with.
        classes [N], reference_classes [K]: predicted classes and their counts, of embedded classifiers alone.
        stratified [N]: terms of the stratified distance, absent where it has none.
    """
    arrays: dict[str, NDArray[Any]] = {}
    if reference.n is not None:
        arrays["reference_n"] = np.array(reference.n)
    terms = frechet_terms(features, reference)
    if terms is not None:
        arrays["frechet"] = terms.samples.astype(np.float32)
        arrays["frechet_reference"] = terms.reference.astype(np.float32)
        arrays["frechet_self"] = terms.self_influence.astype(np.float32)
    if reference.comparable and len(features) > 1:
        kernel = kernel_terms(features, reference.pooled)
        arrays["kernel"] = kernel.by_sample()  # its mean is the distance: differences are small against it
        arrays["within"] = kernel.within.astype(np.float32)
        arrays["kernel_reference"] = kernel.reference.astype(np.float32)
    if extractor.embedded and len(reference.pooled):
        classes, counts, stratified = class_terms(features, reference, extractor)
        arrays |= {"classes": classes.astype(np.uint8), "reference_classes": counts}
        if stratified is not None:
            arrays["stratified"] = stratified.samples.astype(np.float32)
    return arrays


def class_terms(
    features: Rows, reference: ReferenceStatistics, extractor: Extractor
) -> tuple[NDArray[np.int64], NDArray[np.int64], StratifiedTerms | None]:
    """Return the samples' predicted classes [N], the counts [K] of the reference's, and the distance at its shares.

    Args:
        features: of the samples, [N, d].
        reference: has features of single images.
        extractor: an embedded classifier.
    """
    classes, counts = _predicted(features, extractor), np.bincount(_predicted(reference.pooled, extractor))
    return classes, counts, stratified_terms(features, classes, counts / counts.sum(), reference.moments)


def _predicted(features: Rows, extractor: Extractor) -> NDArray[np.int64]:
    """Return the class, [N] from 0, that a classifier with logits sees in each image of features [N, d]."""
    assert extractor.logits is not None  # every embedded classifier has them
    classes: NDArray[np.int64] = extractor.logits(torch.from_numpy(features)).argmax(dim=1).numpy()
    return classes
