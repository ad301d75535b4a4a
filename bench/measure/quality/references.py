"""Sets of images and reference statistics, opened from whatever a command names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.data import DataError, Dataset, Preprocessing, load, load_path
from bench.measure.features.extractors import Extractor
from bench.measure.quality.embedded_statistics import WITH_STATISTICS, dataset_statistics
from bench.measure.quality.statistics import ReferenceStatistics
from bench.measure.quality.statistics_files import (
    cached_statistics,
    is_statistics,
    npz_names,
    read_statistics,
    with_features,
)
from bench.runtime.errors import FeatureError


@dataclass(frozen=True)
class ImageSet:
    """Images of one side: their name in tables, uint8 [N, C, H, W], and a hash of their content.

    ``preprocessing`` is what was done to them, and ``note`` says what of their files was passed over.
    """

    name: str
    images: Tensor
    content: str
    preprocessing: str = "none"
    note: str = ""

    @classmethod
    def all_of(cls, data: Dataset) -> ImageSet:
        """Take all images of a dataset."""
        name = f"{data.name} ({len(data.images)})"
        return cls(name, data.images, data.content_hash(), data.preprocessing, data.note)

    @classmethod
    def training(cls, data: Dataset) -> ImageSet:
        """Take the images that are not held out: those of ``train`` of a folder with ``train`` and ``test``."""
        if not data.heldout.any():
            return cls.all_of(data)
        return cls(data.training_name, data.part("train"), data.content_hash(), data.preprocessing, data.note)

    @property
    def size(self) -> str:
        """Return height x width."""
        return "x".join(map(str, self.images.shape[2:]))

    def count_in(self, other: ImageSet) -> int:
        """Return how many of the images are, pixel by pixel, images of the other set."""
        if self.images.shape[2:] != other.images.shape[2:]:
            return 0
        return int(np.isin(_hashes(self.images), _hashes(other.images)).sum())


def _hashes(images: Tensor) -> NDArray[np.uint64]:
    """Return 64 bits of a hash of each image [N], grey ones as three equal channels."""
    digests = b"".join(
        hashlib.blake2b(image.contiguous().numpy().data, digest_size=8).digest()
        for image in images.expand(-1, 3, -1, -1)
    )
    return np.frombuffer(digests, np.uint64)


@dataclass(frozen=True)
class Yardstick:
    """A reference: its statistics, and its images where it has any."""

    statistics: ReferenceStatistics
    pictures: ImageSet | None

    def content_hash(self) -> str:
        """Return a hash of all numbers and images in it."""
        hashes = [self.statistics.content_hash(), *([self.pictures.content] if self.pictures else [])]
        return "-".join(hashes)

    def completed(self, extractor: Extractor, batch: int = 256, quiet: bool = True) -> ReferenceStatistics:
        """Return the statistics with features of the reference's images, where it has any.

        Args:
            extractor: source of the features.
            batch: images a network call.
            quiet: no progress bar.
        """
        if self.pictures is None:
            return self.statistics
        pictures = self.pictures
        return with_features(self.statistics, extractor, pictures.images, pictures.name, pictures.content, batch, quiet)


def open_statistics(path: Path, extractor: Extractor) -> Yardstick:
    """Read a file of statistics (``mu, sigma``), and its images (``arr_0``) if it has any; nothing is computed.

    Args:
        path: the npz file.
        extractor: extractor that the features are assumed to come from.

    Raises:
        FeatureError: no such file, damaged, no statistics or of other features, or images of a size that the extractor
            cannot read.
        DataError: its images cannot be read.
    """
    statistics = read_statistics(path, extractor)
    if "arr_0" not in npz_names(path):
        return Yardstick(statistics, None)
    pictures = ImageSet.all_of(load_path(f"images of {path.name}", path, classes=False))
    extractor.check(tuple(pictures.images.shape))
    return Yardstick(statistics, pictures)


def open_sample_statistics(path: Path, extractor: Extractor) -> ReferenceStatistics | None:
    """Read samples of which a file holds statistics or pooled features alone; None where there are images.

    Raises:
        FeatureError: damaged, of other features, or without the number of images.
    """
    _check_there(path, "SAMPLES")
    names = npz_names(path)
    if not is_statistics(names) or "arr_0" in names:
        return None
    statistics = read_statistics(path, extractor)
    if statistics.n is None:
        raise FeatureError(
            f"{path} does not say of how many images it is, and a distance depends on that; write it again with their"
            " number, np.savez(FILE, mu=..., sigma=..., n=N)"
        )
    return statistics


def open_samples(path: Path, extractor: Extractor, preprocessing: Preprocessing) -> ImageSet:
    """Read samples from an npz (``arr_0`` uint8 NHWC), a folder or a zip of images; of labels nothing is read.

    Raises:
        DataError: they cannot be read.
        FeatureError: the extractor cannot read images of that size.
    """
    _check_there(path, "SAMPLES")
    names = npz_names(path)
    if is_statistics(names) and "arr_0" not in names:
        held = ", ".join(sorted(names))
        raise DataError(
            f"{path} holds statistics or features ({held}) and no images; a test of two sets needs the images of both"
        )
    samples = ImageSet.all_of(load_path(path.name, path, preprocessing=preprocessing, classes=False))
    extractor.check(tuple(samples.images.shape))
    return samples


def open_reference(
    reference: str, extractor: Extractor, batch: int, quiet: bool, preprocessing: Preprocessing
) -> Yardstick:
    """Return a reference with its statistics, which are computed, or read from the cache or from the file itself.

    Args:
        reference: ``digits``; the path of images, whose training part is meant, or of statistics; or, where there is no
            such path, a dataset whose statistics come with the package.
        extractor: source of the features.
        batch: images a network call.
        quiet: no progress bar.
        preprocessing: done to images that are named by a path and no part of a file of statistics.

    Raises:
        DataError: images cannot be read.
        FeatureError: statistics cannot be read or are of other features, or images of a size that cannot be.
    """
    path = Path(reference)
    if reference in WITH_STATISTICS and not path.exists():
        return Yardstick(dataset_statistics(reference, extractor), None)
    if reference == "digits":
        pictures = ImageSet.training(load("digits"))
    else:
        _check_there(path, "--reference")
        if is_statistics(npz_names(path)):
            yardstick = open_statistics(path, extractor)
            return replace(yardstick, statistics=yardstick.completed(extractor, batch, quiet))
        pictures = ImageSet.training(load_path(path.name, path, preprocessing=preprocessing, classes=False))
    extractor.check(tuple(pictures.images.shape))
    statistics = cached_statistics(extractor, pictures.images, pictures.name, pictures.content, batch, quiet)
    return Yardstick(statistics, pictures)


def _check_there(path: Path, flag: str) -> None:
    if not path.exists():
        raise DataError(f"{flag} {path}: there is no such file or folder; check the path")
