"""Statistics of a set of images' features, streamed batch by batch: all that a reference needs to be.

A covariance of features is accumulated by merging blocks' own moments (Chan, Golub & LeVeque 1983), in float64, so that
a mean that is large against the spread costs no digits. Of the features themselves only 10,000 evenly spaced rows are
kept, for the scores that compare images (KID, precision, recall); 10,000 is also what guided-diffusion's reference
files hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from bench.measure.features.extractors import Extractor
from bench.measure.quality.frechet import feature_moments

__all__ = [
    "FEWEST_COMPARED",
    "KEPT",
    "FeatureMoments",
    "MomentStream",
    "ReferenceStatistics",
    "kept_name",
    "merged",
    "summarise",
    "thinned",
]

Rows = NDArray[np.float32]
KEPT = 10_000
# Images that a reference must have to be compared with one by one. A kernel distance to fewer says more about which
# images they happen to be than about the samples: its variance goes with 1 / M.
FEWEST_COMPARED = 100
_BLOCK = 2048  # rows whose moments are taken at once; smaller sets get exactly what numpy gives


@dataclass(frozen=True)
class FeatureMoments:
    """Mean [d] and covariance [d, d] (divisor n - 1), float64, of n features; n is None where nobody says."""

    mean: NDArray[np.float64]
    cov: NDArray[np.float64]
    n: int | None


def merged(a: FeatureMoments, b: FeatureMoments) -> FeatureMoments:
    """Return the moments of two sets together; both must know their n."""
    assert a.n is not None
    assert b.n is not None
    n, apart = a.n + b.n, b.mean - a.mean
    scatter = (a.n - 1) * a.cov + (b.n - 1) * b.cov + np.outer(apart, apart) * (a.n * b.n / n)
    return FeatureMoments(a.mean + apart * (b.n / n), scatter / (n - 1), n)


class MomentStream:
    """Moments of features that come in batches of any size; memory does not grow with their number."""

    def __init__(self) -> None:
        self._waiting: list[Rows] = []
        self._rows = 0
        self._so_far: FeatureMoments | None = None

    def add(self, features: Rows) -> None:
        """Add features [B, d]."""
        self._waiting.append(features)
        self._rows += len(features)
        if self._rows >= _BLOCK:
            self._close()

    def result(self) -> FeatureMoments:
        """Return the moments of everything added; a single row has a covariance of 0."""
        if self._waiting:
            self._close()
        assert self._so_far is not None  # nobody asks about nothing
        return self._so_far

    def _close(self) -> None:
        block = np.concatenate(self._waiting)
        d = block.shape[1]
        mean, cov = feature_moments(block) if len(block) > 1 else (block[0].astype(np.float64), np.zeros((d, d)))
        own = FeatureMoments(mean, cov, len(block))
        self._so_far = own if self._so_far is None else merged(self._so_far, own)
        self._waiting, self._rows = [], 0


@dataclass(frozen=True)
class ReferenceStatistics:
    """What samples are compared with.

    Attributes:
        name: how tables call it.
        extractor: key of the extractor its features come from, empty where nobody says.
        moments: of the pooled features.
        spatial: of the spatial features, None where there are none.
        pooled: at most 10,000 of the pooled features [M, d], float32; M is 0 where there are no images.
        pooled_name: what those are called, as they need not be all of the reference.
    """

    name: str
    extractor: str
    moments: FeatureMoments
    spatial: FeatureMoments | None
    pooled: Rows
    pooled_name: str

    @property
    def n(self) -> int | None:
        """Return the number of images, None where nobody says."""
        return self.moments.n

    @property
    def comparable(self) -> bool:
        """Tell whether there are images enough to compare with one by one (KID, precision, recall, kernel terms)."""
        return len(self.pooled) >= FEWEST_COMPARED

    def content_hash(self) -> str:
        """Return a hash of all numbers in it."""
        digest = hashlib.sha256(self.extractor.encode())
        for moments in (self.moments, self.spatial):
            for array in () if moments is None else (moments.mean, moments.cov):
                digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(np.ascontiguousarray(self.pooled).tobytes())
        return digest.hexdigest()[:16]


def thinned(n: int, most: int = KEPT) -> NDArray[np.int64]:
    """Return the numbers of at most so many of n rows, evenly spaced, the ends included."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(np.int64)


def kept_name(name: str, n: int) -> str:
    """Return what tables call the kept ones of n images."""
    return name if n <= KEPT else f"{name}, {KEPT} of them evenly spaced"


def summarise(
    extractor: Extractor, images: Tensor, name: str, batch: int = 256, quiet: bool = True
) -> ReferenceStatistics:
    """Return the statistics of images' features.

    Args:
        extractor: gives the features.
        images: uint8 [N, 1 or 3, H, W], N at least 1.
        name: how tables call the images.
        batch: images a network call.
        quiet: no progress bar.
    """
    keep, start = thinned(len(images)), 0
    pooled_moments, spatial_moments, kept = MomentStream(), MomentStream(), []
    for pooled, spatial in progress(extractor, images, name, batch, quiet):
        pooled_moments.add(pooled)
        spatial_moments.add(spatial)
        first, last = np.searchsorted(keep, [start, start + len(pooled)])
        kept.append(pooled[keep[first:last] - start])
        start += len(pooled)
    named = kept_name(name, len(images))
    moments, rows = pooled_moments.result(), np.concatenate(kept)
    return ReferenceStatistics(name, extractor.key, moments, spatial_moments.result(), rows, named)


def progress(extractor: Extractor, images: Tensor, name: str, batch: int, quiet: bool) -> Iterable[tuple[Rows, Rows]]:
    """Return the batches of :meth:`Extractor.stream` behind a progress bar on stderr."""
    batches = -(-len(images) // batch)
    return tqdm(extractor.stream(images, batch), desc=name, total=batches, unit="batch", disable=quiet)
