"""Files of reference statistics in guided-diffusion's format and EDM's, and a cache of them.

guided-diffusion's files hold ``mu, sigma, mu_s, sigma_s`` and, where there are images, ``arr_0``; EDM's ``mu, sigma``;
others ``m, s``, or the pooled features themselves, ``pool_3`` [N, d].
Files written here hold ``n`` and ``extractor`` too, which other readers ignore, and in the cache ``pooled``.
"""

from __future__ import annotations

import logging
import math
import os
import zipfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.files.npz import CheckedNpz
from bench.files.writing import write_arrays
from bench.measure.features.extractors import Extractor
from bench.measure.quality.statistics import (
    RETAINED,
    FeatureMoments,
    MomentStream,
    ReferenceStatistics,
    blocks_of,
    retained_name,
    summarise,
    thinned,
)
from bench.runtime.errors import FeatureError

CACHE_VARIABLE = "EXPOSURE_BIAS_CACHE"
_VERSION = 1  # raise when the meaning of cached statistics changes
_WIDEST = 2**13  # features; no extractor in use has more
_MOST_FEATURES = 2**29  # numbers of a file of features
_PAIRS = (("mu", "sigma"), ("m", "s"))  # names of a mean and a covariance
_FEATURES = "pool_3"
_MADE_WITH = "use the features it was made with (64 are digits, 128 cifar10, 2048 inception)"
_ROUNDING = 1e-6  # relative to the largest entry: some files hold float32
_LOG = logging.getLogger(__name__)


def npz_names(path: Path) -> frozenset[str]:
    """Return the names of an npz's arrays, none where the file is no npz; its reader then raises the error."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return frozenset()
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except Exception:  # on damaged bytes zipfile raises almost any kind
        return frozenset()


def is_statistics(names: Collection[str]) -> bool:
    """Tell a file of statistics or features by the names of its arrays."""
    return "mu" in names or _FEATURES in names or set(_PAIRS[1]) <= set(names)


def read_statistics(path: Path, extractor: Extractor, name: str = "") -> ReferenceStatistics:
    """Read ``mu, sigma`` and, where present, ``mu_s, sigma_s, n, extractor, pooled``; images are not read.

    ``m, s`` are read as ``mu, sigma``. Of features ``pool_3`` [N, d] the moments are computed, unless they stand beside
    them.

    Args:
        path: the npz file.
        extractor: extractor that the features are assumed to come from.
        name: name of the reference in tables; the file's name if empty.

    Raises:
        FeatureError: damaged, of other features, not numbers, not finite, or not a mean and a covariance.
    """
    wide, wide_spatial = extractor.widths or (None, None)
    with CheckedNpz(path) as file:
        pair = next((pair for pair in _PAIRS if set(pair) <= file.names), None)
        if pair is None:
            return _of_features(file, extractor, name or path.name)
        key, n = "", None
        if "extractor" in file.names:
            key = str(file.read("extractor", lambda shape: shape == (), "one text", "U"))
        if key and key != extractor.key:
            raise FeatureError(f"{path} holds statistics of {key}, not of {extractor.key}; use its --features")
        if "n" in file.names:
            n = int(file.read("n", lambda shape: shape == (), "one number", "iu"))
            if n < 1:
                raise FeatureError(f"{path}: 'n' is {n}, and no number of images; get the file again")
        moments = _moments(file, *pair, wide, extractor.name, n)
        spatial = None
        if {"mu_s", "sigma_s"} <= file.names:
            spatial = _moments(file, "mu_s", "sigma_s", wide_spatial, extractor.name, n)
        width = len(moments.mean)
        pooled: NDArray[Any] = np.empty((0, width))
        if "pooled" in file.names:
            fits = f"[1 to {RETAINED}, {width}]"
            pooled = file.read("pooled", lambda s: len(s) == 2 and 0 < s[0] <= RETAINED and s[1] == width, fits)
        elif _FEATURES in file.names:
            rows = _features(file, extractor)
            pooled = rows[thinned(len(rows))]
    name = name or (path.name if n is None else f"{path.name} ({n})")
    return ReferenceStatistics(name, key, moments, spatial, pooled.astype(np.float32), name)


def _of_features(file: CheckedNpz, extractor: Extractor, name: str) -> ReferenceStatistics:
    """Return the statistics of a file of pooled features."""
    if "arr_0" in file.names:
        raise FeatureError(
            f"{file.path} holds images and no statistics; write them with python -m bench.measure {file.path}"
            f" --reference {file.path} --features {extractor.name} --save-statistics FILE.npz"
        )
    if _FEATURES not in file.names:
        raise FeatureError(
            f"{file.path} holds {file.listed()}; a file of statistics has 'mu' [d] and 'sigma' [d, d]: write its mean"
            " and covariance with np.savez(FILE, mu=..., sigma=...)"
        )
    rows = _features(file, extractor)
    name, moments = f"{name} ({len(rows)})", MomentStream.of(blocks_of(rows))
    return ReferenceStatistics(name, "", moments, None, rows[thinned(len(rows))], retained_name(name, len(rows)))


def _features(file: CheckedNpz, extractor: Extractor) -> NDArray[np.float32]:
    """Return the pooled features [N, d] of a file, which may have axes of one entry behind them."""
    width = (extractor.widths or (None, None))[0]
    shape = f"[N, {width or 'd'}] as --features {extractor.name} has them; {_MADE_WITH}"

    def fits(shape: tuple[int, ...]) -> bool:
        is_table = len(shape) > 1 and shape[0] > 1 and math.prod(shape) == shape[0] * shape[1] <= _MOST_FEATURES
        return is_table and width in (None, shape[1])

    rows = file.read(_FEATURES, fits, shape)
    return rows.reshape(rows.shape[:2]).astype(np.float32, copy=False)


def _moments(
    file: CheckedNpz, mean_name: str, cov_name: str, width: int | None, features: str, n: int | None
) -> FeatureMoments:
    """Read a mean and a covariance and check that they can be these."""
    shape = f"[{width or 'd'}] as --features {features} has them; {_MADE_WITH}"

    def fits(shape: tuple[int, ...]) -> bool:
        return shape[:-1] in ((), (1,)) and 0 < shape[-1] <= _WIDEST and width in (None, shape[-1])

    mean = file.read(mean_name, lambda s: len(s) > 0 and fits(s), shape).reshape(-1)  # some files hold [1, d]
    square = (len(mean), len(mean))
    cov = file.read(cov_name, lambda s: s == square, f"{list(square)}; get the file again").astype(np.float64)
    largest = float(np.abs(cov).max())
    asymmetric = float(np.abs(cov - cov.T).max()) > _ROUNDING * largest
    # The rounding of the entries moves an eigenvalue by at most d times as much.
    if asymmetric or float(np.linalg.eigvalsh(cov)[0]) < -_ROUNDING * largest * len(cov):
        raise FeatureError(
            f"{file.path}: '{cov_name}' is no covariance (symmetric, no negative eigenvalue); get the file again"
        )
    return FeatureMoments(mean.astype(np.float64), cov, n)


def write_statistics(
    statistics: ReferenceStatistics, path: Path, images: Tensor | None = None, keep_features: bool = False
) -> None:
    """Write statistics in guided-diffusion's format.

    Args:
        statistics: what to write; without spatial features the file is like EDM's.
        path: file to write; it appears complete or not at all.
        images: uint8 [N, C, H, W]; at most 10,000, evenly spaced, become ``arr_0`` [M, H, W, 3].
        keep_features: whether to write the retained features too, as the cache needs.
    """
    write_arrays(path, statistics_arrays(statistics, images, keep_features))


def statistics_arrays(
    statistics: ReferenceStatistics, images: Tensor | None = None, keep_features: bool = False
) -> dict[str, NDArray[Any]]:
    """Return the arrays that :func:`write_statistics` writes, by name."""
    arrays: dict[str, NDArray[Any]] = {"mu": statistics.moments.mean, "sigma": statistics.moments.cov}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.cov}
    if images is not None:
        arrays["arr_0"] = images[thinned(len(images))].expand(-1, 3, -1, -1).movedim(1, -1).contiguous().cpu().numpy()
    if keep_features:
        arrays["pooled"] = statistics.pooled
    if statistics.n is not None:
        arrays["n"] = np.array(statistics.n, dtype=np.int64)
    if statistics.extractor:
        arrays["extractor"] = np.array(statistics.extractor)
    return arrays


def statistics_cache() -> Path:
    """Return the folder of cached statistics: in ``$EXPOSURE_BIAS_CACHE``, else in the user's cache folder (XDG)."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder) / "statistics"
    general = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(general) / "exposure-bias-bench" / "statistics"


def cached_statistics(
    extractor: Extractor, images: Tensor, name: str, content: str, batch: int = 256, quiet: bool = True
) -> ReferenceStatistics:
    """Return the statistics of images, from the cache if they were computed before.

    At most 10,000 images of an embedded classifier are not cached: computing them is fast. A damaged file in the cache,
    or a cache that cannot be written, costs time and a note, never the result.

    Args:
        extractor: source of the features.
        images: uint8 [N, 1 or 3, H, W].
        name: name of the images in tables; it may differ from the name they were cached under.
        content: hash of the images.
        batch: images a network call.
        quiet: no progress bar.
    """
    if extractor.embedded and len(images) <= RETAINED:
        return summarise(extractor, images, name, batch, quiet)
    path = _path(extractor, content, len(images))
    if (cached := _cached(path, extractor, name, len(images))) is not None:
        return cached
    statistics = summarise(extractor, images, name, batch, quiet)
    try:
        write_statistics(statistics, path, keep_features=True)
    except OSError as error:
        _LOG.warning("note: statistics are not cached (%s: %s)", path, error.strerror or error)
    return statistics


def with_features(
    statistics: ReferenceStatistics,
    extractor: Extractor,
    images: Tensor,
    name: str,
    content: str,
    batch: int = 256,
    quiet: bool = True,
) -> ReferenceStatistics:
    """Return statistics with the pooled features of at most 10,000 images, evenly spaced, for scores of single images.

    The features come from the cache of :func:`cached_statistics`, and go there.

    Args:
        statistics: the statistics, whose moments do not change.
        extractor: source of the features.
        images: uint8 [N, 1 or 3, H, W], N at least 1.
        name: name of the images in tables.
        content: hash of the images.
        batch: images a network call.
        quiet: no progress bar.
    """
    n = len(images)
    cached = _cached(_path(extractor, content, n), extractor, name, n)
    if cached is None:
        part = content if n <= RETAINED else f"{content}-of-{n}"
        cached = cached_statistics(extractor, images[thinned(n)], name, part, batch, quiet)
    return replace(statistics, pooled=cached.pooled, pooled_name=retained_name(name, n))


def _path(extractor: Extractor, content: str, n: int) -> Path:
    return statistics_cache() / f"{extractor.key}-{content}-{n}-v{_VERSION}.npz"


def _cached(path: Path, extractor: Extractor, name: str, n: int) -> ReferenceStatistics | None:
    """Return the statistics of a cached file, None where it is absent, damaged or of another number of images."""
    if not path.exists():
        return None
    try:
        cached = read_statistics(path, extractor, name)
        whole = cached.spatial is not None and len(cached.pooled) == min(n, RETAINED)
        if not whole or cached.extractor != extractor.key or cached.n != n:
            raise FeatureError(f"{path} lacks a part")
    except FeatureError as error:
        _LOG.warning("note: cached statistics are computed anew (%s)", error)
        return None
    return replace(cached, pooled_name=retained_name(name, n))
