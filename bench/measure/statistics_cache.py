"""Reference statistics that were computed before, by the content of the images and the extractor's weights."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from bench.measure.errors import FeatureError
from bench.measure.features.extractors import Extractor
from bench.measure.quality.statistics import KEPT, ReferenceStatistics, kept_name, summarise, thinned
from bench.measure.quality.statistics_files import read_statistics, write_statistics

__all__ = ["CACHE_VARIABLE", "cached_statistics", "statistics_cache", "with_features"]

CACHE_VARIABLE = "EXPOSURE_BIAS_CACHE"
_VERSION = 1  # raise when what is cached changes its meaning
_LOG = logging.getLogger(__name__)


def statistics_cache() -> Path:
    """Return the folder of cached statistics: in ``$EXPOSURE_BIAS_CACHE``, else in the user's cache folder (XDG)."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own) / "statistics"
    general = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(general) / "exposure-bias-bench" / "statistics"


def cached_statistics(
    extractor: Extractor, images: Tensor, name: str, content: str, batch: int = 256, quiet: bool = True
) -> ReferenceStatistics:
    """Return images' statistics, from the cache if they were computed before.

    At most 10,000 images that an embedded classifier looks at are not worth a file and leave the cache alone. A cached
    file that is damaged, and a cache that cannot be written, cost time and a note, never the result.

    Args:
        extractor: gives the features.
        images: uint8 [N, 1 or 3, H, W].
        name: how tables call the images; it may differ from the one they were cached under.
        content: hash of the images.
        batch: images a network call.
        quiet: no progress bar.
    """
    if extractor.embedded and len(images) <= KEPT:
        return summarise(extractor, images, name, batch, quiet)
    path = _path(extractor, content, len(images))
    if (found := _cached(path, extractor, name, len(images))) is not None:
        return found
    made = summarise(extractor, images, name, batch, quiet)
    try:
        write_statistics(made, path, keep_features=True)
    except OSError as error:
        _LOG.warning("note: statistics are not cached (%s: %s)", path, error.strerror or error)
    return made


def with_features(
    statistics: ReferenceStatistics,
    extractor: Extractor,
    images: Tensor,
    name: str,
    content: str,
    batch: int = 256,
    quiet: bool = True,
) -> ReferenceStatistics:
    """Return statistics with the pooled features of images to be compared one by one, at most 10,000 evenly spaced.

    The features are cached as :func:`cached_statistics` does; what that kept of the same images serves too.

    Args:
        statistics: whose moments stay as they are.
        extractor: gives the features.
        images: uint8 [N, 1 or 3, H, W], N at least 1.
        name: how tables call the images.
        content: hash of the images.
        batch: images a network call.
        quiet: no progress bar.
    """
    n = len(images)
    found = _cached(_path(extractor, content, n), extractor, name, n)
    if found is None:
        part = content if n <= KEPT else f"{content}-of-{n}"
        found = cached_statistics(extractor, images[thinned(n)], name, part, batch, quiet)
    return replace(statistics, pooled=found.pooled, pooled_name=kept_name(name, n))


def _path(extractor: Extractor, content: str, n: int) -> Path:
    return statistics_cache() / f"{extractor.key}-{content}-{n}-v{_VERSION}.npz"


def _cached(path: Path, extractor: Extractor, name: str, n: int) -> ReferenceStatistics | None:
    """Return what a cached file holds if it is whole and of so many images."""
    if not path.exists():
        return None
    try:
        found = read_statistics(path, extractor, name)
        whole = found.spatial is not None and len(found.pooled) == min(n, KEPT)
        if not whole or found.extractor != extractor.key or found.n != n:
            raise FeatureError(f"{path} lacks a part")
    except FeatureError as error:
        _LOG.warning("note: cached statistics are computed anew (%s)", error)
        return None
    return replace(found, pooled_name=kept_name(name, n))
