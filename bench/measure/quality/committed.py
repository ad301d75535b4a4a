"""What the package keeps of a dataset whose images it does not: statistics of features and pixels, and their hash.

``python -m bench.measure.quality.committed --data-dir DIR`` writes them. A run on these very images reads the features
from
here, too, so that a run without the images has the same scores.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.data import DataError, Dataset, load
from bench.files.npz import CheckedNpz
from bench.measure.features.extractors import Extractor, open_extractor
from bench.measure.instruments.moments import PixelMoments
from bench.measure.quality.statistics import ReferenceStatistics, kept_name, summarise
from bench.measure.quality.statistics_files import read_statistics, statistics_arrays, write_npz
from bench.runtime.errors import FeatureError, OneLineParser, one_line

__all__ = ["COMMITTED", "Kept", "Unseen", "committed_statistics", "kept_statistics", "unseen"]

_FOLDER = Path(__file__).parents[1] / "weights"
COMMITTED = ("cifar10",)  # datasets, which are also the names of the features


@dataclass(frozen=True)
class Kept:
    """What is kept of a dataset.

    Attributes:
        name: how tables call the dataset.
        content: hash of its images and their split.
        heldout: number of held-out images.
        pixels: moments of the training images.
    """

    name: str
    content: str
    heldout: int
    pixels: PixelMoments

    @property
    def training_name(self) -> str:
        """Return how tables call the training part."""
        return f"{self.name}-{'train' if self.heldout else 'all'} ({self.pixels.n})"


@dataclass(frozen=True)
class Unseen(Dataset):
    """A dataset whose images are not at hand: it has none, but their shape, and what is ``kept`` of them."""

    kept: Kept = field(kw_only=True)

    def content_hash(self) -> str:
        """Return a hash that no results share with those that real images had a part in."""
        return f"{self.kept.content}-unseen"

    @property
    def training_name(self) -> str:
        """Return how tables call the training part."""
        return self.kept.training_name


def _path(dataset: str) -> Path:
    return _FOLDER / f"{dataset}-statistics.npz"


@lru_cache
def _kept(dataset: str) -> Kept:
    """Read what is kept of one of :data:`COMMITTED`."""
    with CheckedNpz(_path(dataset)) as file:
        text = [str(file.read(name, lambda s: s == (), "one text", "U")) for name in ("name", "content")]
        counts = [int(file.read(name, lambda s: s == (), "one number", "iu")) for name in ("heldout", "n")]
        moments = [
            torch.from_numpy(file.read(f"pixels_{name}", lambda s: len(s) in (1, 3), "an array of moments"))
            for name in ("mean", "variance", "spectrum", "haar")
        ]
    return Kept(text[0], text[1], counts[0], PixelMoments(counts[1], *moments))


def unseen(dataset: str) -> Unseen:
    """Return one of :data:`COMMITTED` without its images."""
    kept = _kept(dataset)
    nothing = torch.empty(0, dtype=torch.int64)
    images = torch.empty(0, *kept.pixels.mean.shape, dtype=torch.uint8)
    return Unseen(kept.name, images, nothing, nothing.bool(), kept=kept)


def committed_statistics(extractor: Extractor, content: str, n: int) -> ReferenceStatistics | None:
    """Return the kept statistics of an extractor's features, None where there are none of these images.

    Args:
        extractor: whose features.
        content: hash of the images, as of :meth:`Dataset.content_hash`.
        n: how many of them are training images.
    """
    if extractor.name not in COMMITTED:
        return None
    kept = _kept(extractor.name)
    return kept_statistics(extractor.name, extractor) if (content, n) == (kept.content, kept.pixels.n) else None


def kept_statistics(dataset: str, extractor: Extractor) -> ReferenceStatistics:
    """Return the kept statistics of one of :data:`COMMITTED`.

    Raises:
        FeatureError: they are of other features.
    """
    if extractor.name != dataset:
        raise FeatureError(
            f"of {dataset} the package keeps statistics of --features {dataset}, not of {extractor.name}"
        )
    kept = _kept(dataset)
    found = read_statistics(_path(dataset), extractor, kept.training_name)
    return replace(found, pooled_name=kept_name(kept.training_name, kept.pixels.n))


def keep(data: Dataset, extractor: Extractor, path: Path) -> None:
    """Write what is kept of a dataset: a file of statistics, with moments of the pixels beside those of the features.

    The features that images are compared by one by one are rounded to half precision, a relative error below 5e-4.
    """
    images, pixels = data.part("train"), PixelMoments.of_training(data)
    found = summarise(extractor, images, data.name, quiet=False)
    rounded = replace(found, pooled=found.pooled.astype(np.float16).astype(np.float32))
    moments = {name: getattr(pixels, name) for name in ("mean", "variance", "spectrum", "haar")}
    own = {
        "name": np.array(data.name),
        "content": np.array(data.content_hash()),
        "heldout": np.array(data.count("heldout")),
        **{f"pixels_{name}": tensor.numpy() for name, tensor in moments.items() if isinstance(tensor, Tensor)},
    }
    write_npz(path, statistics_arrays(rounded, keep_features=True) | own, compressed=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Write what is kept of a dataset; returns the exit code."""
    parser = OneLineParser(prog="python -m bench.measure.quality.committed", description=main.__doc__)
    parser.add_argument("--dataset", choices=COMMITTED, default=COMMITTED[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="where its files lie")
    parser.add_argument("--out", type=Path, help="npz file to write (default: the embedded one)")
    args = parser.parse_args(argv)
    out = args.out or _path(args.dataset)
    try:
        extractor, data = open_extractor(args.dataset), load(args.dataset, args.data_dir)
        assert extractor is not None  # 'none' is no dataset
        if data.count("train") < 2:
            raise DataError(f"{args.data_dir} has fewer than 2 training images of {args.dataset}")
        keep(data, extractor, out)
    except (DataError, FeatureError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {out} cannot be written ({error.strerror or error}); name another --out", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
