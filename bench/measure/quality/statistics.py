"""Statistics of the features of a set of images, streamed batch by batch.

A covariance is accumulated in float64 by merging the moments of blocks (Chan, Golub & LeVeque 1983), so that a mean
that is large against the spread costs no digits. Of the features themselves 10,000 evenly spaced rows are retained, for
the scores that compare single images (KID, precision, recall). guided-diffusion's reference files hold as many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.measure.features.extractors import Extractor
from bench.measure.quality.frechet import feature_moments

Rows = NDArray[np.float32]
RETAINED = 10_000
# Images that a reference needs for scores that compare single images. The variance of a kernel distance to M images is
# proportional to 1 / M: a distance to fewer says more about these images than about the samples.
FEWEST_COMPARED = 100
# Samples that the same scores need: three neighbours of 4 samples span everything, and the unbiased KID of 2 is noise.
FEWEST_SCORED = 50
_BLOCK = 2048  # rows whose moments are computed at once, by numpy alone where there are no more


@dataclass(frozen=True)
class FeatureMoments:
    """Mean [d] and covariance [d, d] (divisor n - 1) of n features, float64; n is None where it is unknown."""

    mean: NDArray[np.float64]
    cov: NDArray[np.float64]
    n: int | None


def merged(a: FeatureMoments, b: FeatureMoments) -> FeatureMoments:
    """Return the moments of two sets together (ibid., eq. 1.5); both must know their n."""
    assert a.n is not None
    assert b.n is not None
    n, difference = a.n + b.n, b.mean - a.mean
    scatter = (a.n - 1) * a.cov + (b.n - 1) * b.cov + np.outer(difference, difference) * (a.n * b.n / n)
    return FeatureMoments(a.mean + difference * (b.n / n), scatter / (n - 1), n)


class MomentStream:
    """Moments of features that come in batches of any size; memory does not grow with their number."""

    def __init__(self) -> None:
        self._batches: list[Rows] = []
        self._rows = 0
        self._merged: FeatureMoments | None = None

    @classmethod
    def of(cls, blocks: Iterable[Rows]) -> FeatureMoments:
        """Return the moments of features that come in blocks [B, d], one at a time in memory."""
        stream = cls()
        for block in blocks:
            stream.add(block)
        return stream.result()

    def add(self, features: Rows) -> None:
        """Add features [B, d]."""
        self._batches.append(features)
        self._rows += len(features)
        if self._rows >= _BLOCK:
            self._close()

    def result(self) -> FeatureMoments:
        """Return the moments of everything added; a single row has a covariance of 0."""
        if self._batches:
            self._close()
        assert self._merged is not None  # callers add at least one row
        return self._merged

    def _close(self) -> None:
        block = np.concatenate(self._batches)
        d = block.shape[1]
        mean, cov = feature_moments(block) if len(block) > 1 else (block[0].astype(np.float64), np.zeros((d, d)))
        moments = FeatureMoments(mean, cov, len(block))
        self._merged = moments if self._merged is None else merged(self._merged, moments)
        self._batches, self._rows = [], 0


@dataclass(frozen=True)
class ReferenceStatistics:
    """What samples are compared with.

    Attributes:
        name: name in tables.
        extractor: key of the extractor of its features, empty where it is unknown.
        moments: moments of the pooled features.
        spatial: moments of the spatial features, None where there are none.
        pooled: at most 10,000 of the pooled features [M, d], float32; M is 0 where there are no images.
        pooled_name: name of these in tables, since they need not be all of the reference.
    """

    name: str
    extractor: str
    moments: FeatureMoments
    spatial: FeatureMoments | None
    pooled: Rows
    pooled_name: str

    @property
    def n(self) -> int | None:
        """Return the number of images, None where it is unknown."""
        return self.moments.n

    @property
    def comparable(self) -> bool:
        """Tell whether there are enough single images for KID, precision, recall and kernel terms."""
        return len(self.pooled) >= FEWEST_COMPARED

    def content_hash(self) -> str:
        """Return a hash of all numbers in it."""
        digest = hashlib.sha256(self.extractor.encode())
        for moments in (self.moments, self.spatial):
            for array in () if moments is None else (moments.mean, moments.cov):
                digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(np.ascontiguousarray(self.pooled).tobytes())
        return digest.hexdigest()[:16]


def blocks_of(features: Rows) -> Iterable[Rows]:
    """Return features [N, d] in blocks: at most 10,000 rows are copied to float64 at a time."""
    return (features[start : start + RETAINED] for start in range(0, len(features), RETAINED))


def thinned(n: int, most: int = RETAINED) -> NDArray[np.int64]:
    """Return the numbers of at most ``most`` of n rows, evenly spaced, both ends included."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(np.int64)


def retained_name(name: str, n: int) -> str:
    """Return the name in tables of the retained ones of n images."""
    return name if n <= RETAINED else f"{name}, {RETAINED} of them evenly spaced"


def summarise(
    extractor: Extractor, images: Tensor, name: str, batch: int = 256, quiet: bool = True
) -> ReferenceStatistics:
    """Return the statistics of the features of images.

    Args:
        extractor: source of the features.
        images: uint8 [N, 1 or 3, H, W], N at least 1.
        name: name of the images in tables.
        batch: images a network call.
        quiet: no progress bar.
    """
    numbers, start = thinned(len(images)), 0
    pooled_moments, spatial_moments, retained = MomentStream(), MomentStream(), []
    for pooled, spatial in extractor.stream(images, batch, name, quiet):
        pooled_moments.add(pooled)
        spatial_moments.add(spatial)
        first, last = np.searchsorted(numbers, [start, start + len(pooled)])
        retained.append(pooled[numbers[first:last] - start])
        start += len(pooled)
    return ReferenceStatistics(
        name,
        extractor.key,
        moments=pooled_moments.result(),
        spatial=spatial_moments.result(),
        pooled=np.concatenate(retained),
        pooled_name=retained_name(name, len(images)),
    )
