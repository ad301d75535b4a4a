"""Statistics that come with the package, of datasets whose images do not: of features and pixels, with a hash.

``python -m bench.measure.quality.embedded_statistics --data-dir DIR`` writes them. A run with the images reads the
statistics of features from here too, so that a run without the images has the same scores.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.data import DataError, Dataset, load, to_unit
from bench.files.npz import CheckedNpz
from bench.files.writing import write_arrays
from bench.measure.features.extractors import Extractor, open_extractor
from bench.measure.instruments.gaussian import LinearGaussian
from bench.measure.instruments.moments import PixelMoments
from bench.measure.quality.statistics import (
    FeatureMoments,
    MomentStream,
    ReferenceStatistics,
    retained_name,
    summarise,
)
from bench.measure.quality.statistics_files import read_statistics, statistics_arrays
from bench.runtime.errors import FeatureError, OneLineParser, UserError

_FOLDER = Path(__file__).parents[1] / "weights"
WITH_STATISTICS = ("cifar10", "cifar10-16")  # names of datasets and of their features
_WHOLE = 768  # values of an image whose whole covariance is held
_PIXEL_ROWS = 2048  # images in float64 at a time
_MOMENTS = ("mean", "variance", "spectrum", "haar")


@dataclass(frozen=True)
class EmbeddedStatistics:
    """What the package holds of a dataset.

    Attributes:
        name: name of the dataset in tables.
        content: hash of its images and their split.
        heldout: number of held-out images.
        pixels: moments of the training images.
        gaussian: Gaussian with their mean and covariance, or no more than its eigenvalues; None where neither is held.
    """

    name: str
    content: str
    heldout: int
    pixels: PixelMoments
    gaussian: LinearGaussian | None = None

    @property
    def training_name(self) -> str:
        """Return the name of the training part in tables."""
        return f"{self.name}-{'train' if self.heldout else 'all'} ({self.pixels.n})"


@dataclass(frozen=True)
class Unseen(Dataset):
    """A dataset without its images: it has their shape, and what the package holds of them."""

    embedded: EmbeddedStatistics = field(kw_only=True)

    def content_hash(self) -> str:
        """Return a hash that differs from that of the images, so that results with and without them never mix."""
        return f"{self.embedded.content}-unseen"

    @property
    def training_name(self) -> str:
        """Return the name of the training part in tables."""
        return self.embedded.training_name


def _path(dataset: str) -> Path:
    return _FOLDER / f"{dataset}-statistics.npz"


@lru_cache
def _read_embedded(path: Path) -> EmbeddedStatistics:
    """Read what the package holds of one of :data:`WITH_STATISTICS`."""
    with CheckedNpz(path) as file:
        text = [str(file.read(name, lambda s: s == (), "one text", "U")) for name in ("name", "content")]
        counts = [int(file.read(name, lambda s: s == (), "one number", "iu")) for name in ("heldout", "n")]
        moments = [
            torch.from_numpy(file.read(f"pixels_{name}", lambda s: len(s) in (1, 3), "an array of moments"))
            for name in _MOMENTS
        ]
        gaussian = _gaussian(file, moments[0].flatten().numpy())
    return EmbeddedStatistics(text[0], text[1], counts[0], PixelMoments(counts[1], *moments), gaussian)


def _gaussian(file: CheckedNpz, mean: NDArray[np.float64]) -> LinearGaussian | None:
    """Read the covariance of the pixels, or its eigenvalues with the mean in its basis."""
    d = len(mean)
    if "pixels_triangle" in file.names:
        triangle = file.read("pixels_triangle", lambda s: s == (d * (d + 1) // 2,), "a triangle of a covariance")
        cov = np.zeros((d, d))
        cov[np.tril_indices(d)] = triangle
        return LinearGaussian(mean, cov)  # whose decomposition reads the lower triangle
    if "pixels_eigenvalues" in file.names:
        parts = [file.read(f"pixels_{name}", lambda s: s == (d,), f"[{d}]") for name in ("eigenvalues", "rotated_mean")]
        return LinearGaussian.of_eigenvalues(*(part.astype(np.float64) for part in parts))
    return None


def unseen(dataset: str) -> Unseen:
    """Return one of :data:`WITH_STATISTICS` without its images."""
    embedded, nothing = _read_embedded(_path(dataset)), torch.empty(0, dtype=torch.int64)
    images = torch.empty(0, *embedded.pixels.mean.shape, dtype=torch.uint8)
    return Unseen(embedded.name, images, nothing, nothing.bool(), embedded=embedded)


def embedded_statistics_of(extractor: Extractor, content: str, n: int) -> ReferenceStatistics | None:
    """Return the embedded statistics of these images' features, None where there are none.

    Args:
        extractor: source of the features.
        content: hash of the images, as of :meth:`Dataset.content_hash`.
        n: number of training images.
    """
    if extractor.name not in WITH_STATISTICS:
        return None
    embedded = _read_embedded(_path(extractor.name))
    if (content, n) != (embedded.content, embedded.pixels.n):
        return None
    return dataset_statistics(extractor.name, extractor)


def dataset_statistics(dataset: str, extractor: Extractor) -> ReferenceStatistics:
    """Return the embedded statistics of one of :data:`WITH_STATISTICS`.

    Raises:
        FeatureError: they are of other features.
    """
    if extractor.name != dataset:
        raise FeatureError(
            f"of {dataset} the package keeps statistics of --features {dataset}, not of {extractor.name}"
        )
    embedded = _read_embedded(_path(dataset))
    statistics = read_statistics(_path(dataset), extractor, embedded.training_name)
    return replace(statistics, pooled_name=retained_name(embedded.training_name, embedded.pixels.n))


def write_embedded(data: Dataset, extractor: Extractor, path: Path) -> None:
    """Write the statistics of a dataset's features, with the moments of its pixels beside them.

    The retained features of single images are rounded to half precision, a relative error below 5e-4.
    """
    images, pixels = data.part("train"), PixelMoments.of_training(data)
    statistics = summarise(extractor, images, data.name, quiet=False)
    rounded = replace(statistics, pooled=statistics.pooled.astype(np.float16).astype(np.float32))
    arrays = statistics_arrays(rounded, keep_features=True)
    arrays |= {"name": np.array(data.name), "content": np.array(data.content_hash())}
    arrays |= {"heldout": np.array(data.count("heldout"))}
    arrays |= {f"pixels_{name}": getattr(pixels, name).numpy() for name in _MOMENTS} | _covariance(data)
    write_arrays(path, arrays, compressed=True)


def pixel_moments(data: Dataset) -> FeatureMoments:
    """Return the moments of the training images' values, in the [-1, 1] scale."""
    blocks = torch.arange(data.count("train")).split(_PIXEL_ROWS)
    return MomentStream.of(to_unit(data.pick("train", rows)).flatten(1).numpy() for rows in blocks)


def _covariance(data: Dataset) -> dict[str, NDArray[np.float32]]:
    """Return the lower triangle of the pixels' covariance, or of large images its eigenvalues and the rotated mean."""
    moments = pixel_moments(data)
    if len(moments.mean) <= _WHOLE:
        return {"pixels_triangle": moments.cov[np.tril_indices(len(moments.mean))].astype(np.float32)}
    law = LinearGaussian(moments.mean, moments.cov)
    return {"pixels_eigenvalues": law.values.astype(np.float32), "pixels_rotated_mean": law.mean.astype(np.float32)}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the statistics of a dataset that come with the package; returns the exit code."""
    parser = OneLineParser(prog="python -m bench.measure.quality.embedded_statistics", description=main.__doc__)
    parser.add_argument("--dataset", choices=WITH_STATISTICS, default=WITH_STATISTICS[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of its files")
    parser.add_argument("--out", type=Path, help="npz file to write (default: the embedded one)")
    args = parser.parse_args(argv)
    out = args.out or _path(args.dataset)
    try:
        extractor, data = open_extractor(args.dataset), load(args.dataset, args.data_dir)
        assert extractor is not None  # 'none' is no dataset
        if data.count("train") < 2:
            raise DataError(f"{args.data_dir} has fewer than 2 training images of {args.dataset}")
        write_embedded(data, extractor, out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {out} cannot be written ({error.strerror or error}); name another --out", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
