"""Reference statistics as npz files, in guided-diffusion's format and EDM's.

guided-diffusion: ``mu, sigma, mu_s, sigma_s`` and, where there are images, ``arr_0``; EDM: ``mu, sigma``. What we write
has ``n`` and ``extractor`` beside them, which other readers pass over, and in the cache ``pooled``.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.files.npz import CheckedNpz
from bench.measure.features.extractors import Extractor
from bench.measure.quality.statistics import KEPT, FeatureMoments, ReferenceStatistics, kept_name, summarise, thinned
from bench.runtime.errors import FeatureError

_WIDEST = 2**13  # features; no extractor in use has more
_ROUNDING = 1e-6  # of the largest entry: some files hold float32


def npz_names(path: Path) -> frozenset[str]:
    """Return the names of an npz's arrays; none where it is no npz, whose reader then says what is wrong."""
    if path.suffix != ".npz" or not path.is_file():
        return frozenset()
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(name.removesuffix(".npy") for name in archive.namelist())
    except Exception:  # on damaged bytes zipfile raises almost any kind
        return frozenset()


def read_statistics(path: Path, extractor: Extractor, name: str = "") -> ReferenceStatistics:
    """Read ``mu, sigma`` and, if there, ``mu_s, sigma_s`` and what we wrote beside them; images are left alone.

    Args:
        path: the npz file.
        extractor: whose features they are taken for.
        name: how tables call the reference; the file's name if empty.

    Raises:
        FeatureError: damaged, of other features, not numbers, not finite, or not a mean and a covariance.
    """
    wide, wide_spatial = extractor.widths or (None, None)
    with CheckedNpz(path) as file:
        if not {"mu", "sigma"} <= file.names:
            raise FeatureError(f"{path} lacks 'mu' and 'sigma'; it is no file of reference statistics")
        key, n = "", None
        if "extractor" in file.names:
            key = str(file.read("extractor", lambda shape: shape == (), "one text", "U"))
        if key and key != extractor.key:
            raise FeatureError(f"{path} holds statistics of {key}, not of {extractor.key}; use its --features")
        if "n" in file.names:
            n = int(file.read("n", lambda shape: shape == (), "one number", "iu"))
            if n < 1:
                raise FeatureError(f"{path}: 'n' is {n}, and no number of images; get the file again")
        moments = _moments(file, "mu", "sigma", wide, extractor.name, n)
        spatial = None
        if {"mu_s", "sigma_s"} <= file.names:
            spatial = _moments(file, "mu_s", "sigma_s", wide_spatial, extractor.name, n)
        width = len(moments.mean)
        pooled = np.empty((0, width))
        if "pooled" in file.names:
            fits = f"[1 to {KEPT}, {width}]"
            pooled = file.read("pooled", lambda s: len(s) == 2 and 0 < s[0] <= KEPT and s[1] == width, fits)
    name = name or (path.name if n is None else f"{path.name} ({n})")
    return ReferenceStatistics(name, key, moments, spatial, pooled.astype(np.float32), name)


def _moments(
    file: CheckedNpz, mean_name: str, cov_name: str, width: int | None, features: str, n: int | None
) -> FeatureMoments:
    """Read a mean and a covariance and check that they can be these."""
    wanted = f"[{width or 'd'}] as --features {features} has them; use the features it was made with"
    mean = file.read(mean_name, lambda s: len(s) == 1 and 0 < s[0] <= _WIDEST and width in (None, s[0]), wanted)
    square = (len(mean), len(mean))
    cov = file.read(cov_name, lambda s: s == square, f"{list(square)}; get the file again").astype(np.float64)
    largest = float(np.abs(cov).max())
    lopsided = float(np.abs(cov - cov.T).max()) > _ROUNDING * largest
    # Each entry's rounding moves an eigenvalue by at most d times as much.
    if lopsided or float(np.linalg.eigvalsh(cov)[0]) < -_ROUNDING * largest * len(cov):
        raise FeatureError(
            f"{file.path}: '{cov_name}' is no covariance (symmetric, no negative eigenvalue); get the file again"
        )
    return FeatureMoments(mean.astype(np.float64), cov, n)


def write_statistics(
    statistics: ReferenceStatistics, path: Path, images: Tensor | None = None, keep_features: bool = False
) -> None:
    """Write statistics as guided-diffusion's reference files hold them.

    Args:
        statistics: what to write; without spatial features the file is like EDM's.
        path: file to write; it appears complete or not at all.
        images: uint8 [N, C, H, W]; at most 10,000, evenly spaced, go into ``arr_0`` [M, H, W, 3].
        keep_features: whether the kept features go along, as the cache wants.
    """
    write_npz(path, statistics_arrays(statistics, images, keep_features))


def statistics_arrays(
    statistics: ReferenceStatistics, images: Tensor | None = None, keep_features: bool = False
) -> dict[str, NDArray[Any]]:
    """Return the arrays that :func:`write_statistics` writes, by name."""
    arrays: dict[str, NDArray[Any]] = {"mu": statistics.moments.mean, "sigma": statistics.moments.cov}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.cov}
    if images is not None:
        arrays["arr_0"] = _coloured(images[thinned(len(images))])
    if keep_features:
        arrays["pooled"] = statistics.pooled
    if statistics.n is not None:
        arrays["n"] = np.array(statistics.n, dtype=np.int64)
    if statistics.extractor:
        arrays["extractor"] = np.array(statistics.extractor)
    return arrays


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]], compressed: bool = False) -> None:
    """Write arrays to a file that appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            (np.savez_compressed if compressed else np.savez)(file, allow_pickle=False, **arrays)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _coloured(images: Tensor) -> NDArray[np.uint8]:
    """Return uint8 images [N, 1 or 3, H, W] as [N, H, W, 3]."""
    pixels: NDArray[np.uint8] = images.expand(-1, 3, -1, -1).movedim(1, -1).contiguous().cpu().numpy()
    return pixels


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
