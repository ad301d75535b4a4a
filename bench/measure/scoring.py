"""Scores of samples that any tool made, against images or statistics from a file: ``python -m bench.measure``."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.data import DataError, load, load_path
from bench.measure.features.extractors import Extractor
from bench.measure.quality.committed import COMMITTED, kept_statistics
from bench.measure.quality.references import ImageSet, Yardstick, open_statistics
from bench.measure.quality.scores import SCORES_VERSION, Score, collect, score
from bench.measure.quality.statistics_files import npz_names
from bench.measure.statistics_cache import cached_statistics

__all__ = ["as_table", "notes", "open_reference", "open_samples", "record", "scores_of"]

_PACKAGES = ("exposure-bias-bench", "torch", "torch-fidelity", "clean-fid", "numpy", "pillow")


def open_samples(path: Path, extractor: Extractor) -> ImageSet:
    """Read samples from an npz (``arr_0`` uint8 NHWC), a folder or a zip of images.

    Raises:
        DataError: they cannot be read.
        FeatureError: the extractor cannot read images of that size.
    """
    _check_there(path, "SAMPLES")
    names = npz_names(path)
    if "mu" in names and "arr_0" not in names:
        raise DataError(f"{path} holds statistics and no images; name it with --reference, and give samples as images")
    found = ImageSet.all_of(load_path(path.name, path))
    extractor.check(tuple(found.images.shape))
    return found


def open_reference(reference: str, extractor: Extractor, batch: int, quiet: bool) -> Yardstick:
    """Read a reference and compute its statistics, or take them from the cache or from the file itself.

    Args:
        reference: ``digits``, or the path of images, whose training part is meant, or of statistics; or a dataset of
            which the package keeps statistics, where there is no path of that name.
        extractor: gives the features.
        batch: images a network call.
        quiet: no progress bar.

    Raises:
        DataError: images cannot be read.
        FeatureError: statistics cannot be read or are of other features, or images of a size that cannot be.
    """
    path = Path(reference)
    if reference in COMMITTED and not path.exists():
        return Yardstick(kept_statistics(reference, extractor), None)
    if reference == "digits":
        pictures = ImageSet.training(load("digits"))
    else:
        _check_there(path, "--reference")
        if "mu" in npz_names(path):
            found = open_statistics(path, extractor)
            return replace(found, statistics=found.completed(extractor, batch, quiet))
        pictures = ImageSet.training(load_path(path.name, path))
    extractor.check(tuple(pictures.images.shape))
    statistics = cached_statistics(extractor, pictures.images, pictures.name, pictures.content, batch, quiet)
    return Yardstick(statistics, pictures)


def _check_there(path: Path, flag: str) -> None:
    if not path.exists():
        raise DataError(f"{flag} {path}: there is no such file or folder; check the path")


def scores_of(
    samples: ImageSet, reference: Yardstick, extractor: Extractor, batch: int, quiet: bool
) -> tuple[Score, ...]:
    """Return every score of samples.

    Args:
        samples: what is scored.
        reference: what it is compared with.
        extractor: gives the features.
        batch: images a network call.
        quiet: no progress bar.
    """
    features = collect(extractor, samples.images, samples.name, batch, quiet)
    return tuple(score(features, reference.statistics, extractor, reference.statistics.name))


def notes(samples: ImageSet, reference: Yardstick, extractor: Extractor) -> Iterator[str]:
    """Yield what a reader of the scores should know."""
    theirs = reference.pictures
    if theirs is not None and theirs.size != samples.size:
        yield f"samples are {samples.size}, the reference's images {theirs.size}: the extractor resizes both"
    if theirs is not None and theirs.content == samples.content:
        yield "samples and reference are the same images"
    if not reference.statistics.extractor:
        yield f"the reference does not say which features it is of; they are taken for those of {extractor.name}"


def as_table(scores: Sequence[Score]) -> list[str]:
    """Return the lines of an aligned table: metric, value, N, reference, and in place of a missing value the reason."""
    cells = [("metric", "value", "N", "reference")]
    for row in scores:
        value, reason = ("-", f" [{row.reason}]") if row.value is None else (f"{row.value:.6g}", "")
        cells.append((row.metric, value, str(row.n), f"{row.reference}{reason}"))
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    return [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in cells]


def record(
    samples: ImageSet, reference: Yardstick, extractor: Extractor, scores: Sequence[Score], said: Sequence[str]
) -> dict[str, Any]:
    """Return the scores with everything that they depend on, JSON-like."""
    theirs, statistics = reference.pictures, reference.statistics
    return {
        "samples": _described(samples),
        "reference": {
            "name": statistics.name,
            "n": statistics.n,
            "statistics_hash": statistics.content_hash(),
            "images": None if theirs is None else _described(theirs),
        },
        "features": {"name": extractor.name, "weights_sha256": extractor.weights_hash, "note": extractor.note},
        "scores_version": SCORES_VERSION,
        "scores": [asdict(row) for row in scores],
        "notes": list(said),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def _described(pictures: ImageSet) -> dict[str, Any]:
    return {"name": pictures.name, "shape": list(pictures.images.shape), "content_hash": pictures.content}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout that was not installed
        return None
