"""``python -m bench.measure SAMPLES --reference REF``: score samples that any tool made."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.data import CROPS, FILTERS, Preprocessing
from bench.files.writing import write_json
from bench.measure.features.extractors import EXTRACTORS, INCEPTION_EXTRACTORS, Extractor, open_extractor
from bench.measure.quality.compare_sets import paired_test
from bench.measure.quality.embedded_statistics import WITH_STATISTICS
from bench.measure.quality.references import (
    ImageSet,
    Yardstick,
    open_reference,
    open_sample_statistics,
    open_samples,
)
from bench.measure.quality.scores import SCORES_VERSION, Score, collect, score, score_statistics
from bench.measure.quality.statistics import ReferenceStatistics
from bench.measure.quality.statistics_files import write_statistics
from bench.runtime.devices import DEVICES, find_device, full_float32
from bench.runtime.errors import FeatureError, OneLineParser, UserError, one_line
from bench.runtime.signals import exit_with

_INTERRUPTED = 130
_PACKAGES = ("exposure-bias-bench", "torch", "torch-fidelity", "clean-fid", "numpy", "pillow")
_LARGEST_BATCH = 100_000


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m bench.measure", usage="%(prog)s SAMPLES --reference REF [options]",
        description="Score samples that any tool made.", allow_abbrev=False,
    )  # fmt: skip
    extractors = [name for name in EXTRACTORS if name not in ("latents", "none")]
    images = "npz (arr_0 uint8 NHWC), folder or zip of images"
    parser.add_argument("samples", type=Path, metavar="SAMPLES", help=f"{images}, or npz of statistics with their n")
    parser.add_argument(
        "--reference",
        required=True,
        metavar="REF",
        help=f"{images}, npz of statistics (mu, sigma[, mu_s, sigma_s][, arr_0]), digits, or cifar10",
    )
    parser.add_argument(
        "--against", type=Path, metavar="OTHER",
        help=f"{images}, as many as SAMPLES: test which of the two is closer to the reference; images of the same place"
        " may share their noise",
    )  # fmt: skip
    parser.add_argument(
        "--features", choices=extractors, metavar="NAME",
        help=f"extractor: {', '.join(extractors)} (default: the reference's, else inception)",
    )  # fmt: skip
    parser.add_argument("--resize", type=int, metavar="N", help="resize all images that are read to N pixels a side")
    parser.add_argument("--crop", choices=CROPS, default="none", help="cut squares first (default %(default)s)")
    filters = f"{', '.join(FILTERS)} (default bicubic)"
    parser.add_argument("--resize-filter", choices=tuple(FILTERS), metavar="NAME", help=filters)
    parser.add_argument("--inception-weights", type=Path, metavar="FILE", help="torch-fidelity's Inception weights")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images a call (default %(default)s)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="default %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the scores and all they depend on")
    parser.add_argument(
        "--save-statistics", type=Path, metavar="FILE.npz", help="also write the reference's statistics"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _check(args: argparse.Namespace) -> torch.device:
    """Check the flags one by one; return the device."""
    if not 0 < args.batch_size <= _LARGEST_BATCH:
        raise FeatureError(f"--batch-size must lie between 1 and {_LARGEST_BATCH:,}, not {args.batch_size}")
    if args.inception_weights is not None and args.features not in INCEPTION_EXTRACTORS:
        raise FeatureError(f"--inception-weights has no effect with --features {args.features}; leave it out")
    for flag, path, suffix in (("--out", args.out, ".json"), ("--save-statistics", args.save_statistics, ".npz")):
        if path is not None and (path.suffix != suffix or path.is_dir()):
            raise FeatureError(f"{flag} must name a {suffix} file, not {path}")
    if (device := find_device(args.device)) is None:
        raise FeatureError(f"--device {args.device} is not available here; use --device auto")
    return device


def _score(args: argparse.Namespace) -> None:
    """Score the samples. Nothing is written or printed before everything is computed."""
    device = _check(args)
    full_float32()
    extractor = open_extractor(args.features, args.inception_weights, device)
    assert extractor is not None  # the parser offers no 'none'
    done = Preprocessing(args.resize, args.crop, args.resize_filter)
    statistics = None if args.against else open_sample_statistics(args.samples, extractor)
    samples = statistics or open_samples(args.samples, extractor, done)
    reference = open_reference(args.reference, extractor, args.batch_size, args.quiet, done)
    test: Mapping[str, Any] = {}
    if isinstance(samples, ReferenceStatistics):
        scores = tuple(score_statistics(samples, reference.statistics, extractor))
    else:
        features = collect(extractor, samples.images, samples.name, args.batch_size, args.quiet)
        scores = tuple(score(features, reference.statistics, extractor, reference.statistics.name))
        if args.against is not None:
            others = open_samples(args.against, extractor, done)
            if len(others.images) != len(samples.images):
                raise FeatureError(
                    f"{args.against} has {len(others.images)} images and {args.samples} {len(samples.images)}:"
                    " distances depend on N; give as many of both"
                )
            rows = collect(extractor, others.images, others.name, args.batch_size, args.quiet)
            test = paired_test(features.pooled, rows.pooled, reference.statistics, extractor)
    remarks = tuple(notes(samples, reference, extractor))
    if args.save_statistics is not None:
        pictures = reference.pictures
        write_statistics(reference.statistics, args.save_statistics, None if pictures is None else pictures.images)
    if args.out is not None:
        facts = record(samples, reference, extractor, scores, remarks)
        write_json(args.out, facts | ({"against": str(args.against), "test": test} if test else {}))
    lines = as_table(scores)
    if test:
        numbers = "{distance}: {delta:+.6g} ± {error:.2g}, z = {z:+.2f}, p = {p:.3g}".format(**test)
        lines.append(f"less that of {args.against}, paired by place: {numbers}")
    print("\n".join([*lines, *(f"note: {line}" for line in remarks)]))


def notes(samples: ImageSet | ReferenceStatistics, reference: Yardstick, extractor: Extractor) -> Iterator[str]:
    """Yield the remarks that a reader of the scores needs."""
    ours, theirs = samples if isinstance(samples, ImageSet) else None, reference.pictures
    if ours is not None and theirs is not None and theirs.size != ours.size:
        yield f"samples are {ours.size}, the reference's images {theirs.size}: the extractor resizes both"
    if ours is not None and theirs is not None and (count := ours.count_in(theirs)):
        yield f"{count} of {len(ours.images)} samples are images of the reference"
    yield from (images.note for images in (ours, theirs) if images is not None and images.note)
    unnamed = f"does not say which features it is of; they are taken for those of {extractor.name}"
    if isinstance(samples, ReferenceStatistics) and not samples.extractor:
        yield f"the samples' file {unnamed}"
    if not reference.statistics.extractor:
        yield f"the reference {unnamed}"


def as_table(scores: Sequence[Score]) -> list[str]:
    """Return the lines of an aligned table: metric, value, N, reference; the reason stands where a value is missing."""
    cells = [("metric", "value", "N", "reference")]
    for row in scores:
        value, reason = ("-", f" [{row.reason}]") if row.value is None else (f"{row.value:.6g}", "")
        cells.append((row.metric, value, str(row.n), f"{row.reference}{reason}"))
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    return [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in cells]


def record(
    samples: ImageSet | ReferenceStatistics,
    reference: Yardstick,
    extractor: Extractor,
    scores: Sequence[Score],
    remarks: Sequence[str],
) -> dict[str, Any]:
    """Return the scores with everything that they depend on, ready for JSON."""
    theirs, statistics = reference.pictures, reference.statistics
    return {
        "samples": _described(samples) if isinstance(samples, ImageSet) else _numbers(samples),
        "reference": _numbers(statistics) | {"images": None if theirs is None else _described(theirs)},
        "features": {"name": extractor.name, "weights_sha256": extractor.weights_hash, "note": extractor.note},
        "scores_version": SCORES_VERSION,
        "scores": [asdict(row) for row in scores],
        "notes": list(remarks),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def _numbers(statistics: ReferenceStatistics) -> dict[str, Any]:
    return {"name": statistics.name, "n": statistics.n, "statistics_hash": statistics.content_hash()}


def _described(pictures: ImageSet) -> dict[str, Any]:
    return {
        "name": pictures.name,
        "shape": list(pictures.images.shape),
        "content_hash": pictures.content,
        "preprocessing": pictures.preprocessing,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout that was not installed
        return None


def _usual_features(reference: str) -> str:
    """Return the default of ``--features``: an embedded classifier for references that come with the package."""
    embedded = reference == "digits" or (reference in WITH_STATISTICS and not Path(reference).exists())
    return reference if embedded else "inception"


def main(argv: Sequence[str] | None = None) -> int:
    """Score samples; a user's mistake gives one line on stderr and code 2, an interruption 130."""
    args = _parser().parse_args(argv)
    args.features = args.features or _usual_features(args.reference)
    try:
        _score(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except (MemoryError, torch.OutOfMemoryError):
        print("error: out of memory; use a smaller --batch-size", file=sys.stderr)
    except BrokenPipeError:
        raise
    except OSError as error:
        place, reason = one_line(error.filename or args.samples), one_line(error.strerror or error)
        print(f"error: {place}: {reason}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    else:
        return 0
    return 2


if __name__ == "__main__":
    exit_with(main)
