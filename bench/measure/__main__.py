"""``python -m bench.measure SAMPLES --reference REF``: score samples that any tool made."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.data import DataError
from bench.files.errors import one_line
from bench.measure.errors import FeatureError
from bench.measure.features.extractors import EXTRACTORS, INCEPTION_EXTRACTORS, open_extractor
from bench.measure.quality.committed import COMMITTED
from bench.measure.quality.statistics_files import write_statistics
from bench.measure.scoring import as_table, notes, open_reference, open_samples, record, scores_of
from bench.runtime.devices import DEVICES, find_device, full_float32
from bench.runtime.errors import OneLineParser

__all__ = ["main"]

_INTERRUPTED = 130
_MOST = 100_000


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m bench.measure", description="Score samples that any tool made.", allow_abbrev=False
    )
    images = "npz (arr_0 uint8 NHWC), folder or zip of images"
    parser.add_argument("samples", type=Path, metavar="SAMPLES", help=images)
    parser.add_argument(
        "--reference",
        required=True,
        metavar="REF",
        help=f"{images}, npz of statistics (mu, sigma[, mu_s, sigma_s][, arr_0]), digits, or cifar10",
    )
    parser.add_argument(
        "--features", choices=[name for name in EXTRACTORS if name != "none"],
        help="whose features (default: those of digits and cifar10, else inception)",
    )  # fmt: skip
    parser.add_argument("--inception-weights", type=Path, metavar="FILE", help="torch-fidelity's Inception weights")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images a call (default %(default)s)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="default %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the scores and what they depend on")
    parser.add_argument(
        "--save-statistics", type=Path, metavar="FILE.npz", help="also write the reference's statistics"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _check(args: argparse.Namespace) -> torch.device:
    """Check every flag that can be checked alone; return the device."""
    if not 0 < args.batch_size <= _MOST:
        raise FeatureError(f"--batch-size must lie between 1 and {_MOST:,}, not {args.batch_size}")
    if args.inception_weights is not None and args.features not in INCEPTION_EXTRACTORS:
        raise FeatureError(f"--inception-weights has no effect with --features {args.features}; leave it out")
    for flag, path, suffix in (("--out", args.out, ".json"), ("--save-statistics", args.save_statistics, ".npz")):
        if path is not None and (path.suffix != suffix or path.is_dir()):
            raise FeatureError(f"{flag} must name a {suffix} file, not {path}")
    if (device := find_device(args.device)) is None:
        raise FeatureError(f"--device {args.device} is not available here; use --device auto")
    return device


def _score(args: argparse.Namespace) -> None:
    """Do everything that can fail before anything is written or printed."""
    device = _check(args)
    full_float32()
    extractor = open_extractor(args.features, args.inception_weights, device)
    assert extractor is not None  # the parser offers no 'none'
    samples = open_samples(args.samples, extractor)
    reference = open_reference(args.reference, extractor, args.batch_size, args.quiet)
    scores = scores_of(samples, reference, extractor, args.batch_size, args.quiet)
    said = tuple(notes(samples, reference, extractor))
    if args.save_statistics is not None:
        pictures = reference.pictures
        write_statistics(reference.statistics, args.save_statistics, None if pictures is None else pictures.images)
    if args.out is not None:
        _write_json(record(samples, reference, extractor, scores, said), args.out)
    print("\n".join([*as_table(scores), *(f"note: {line}" for line in said)]))


def _write_json(facts: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _usual_features(reference: str) -> str:
    """Return the features of a command that names none: an embedded classifier's for what comes with the package."""
    kept = reference in COMMITTED and not Path(reference).exists()
    return reference if reference == "digits" or kept else "inception"


def main(argv: Sequence[str] | None = None) -> int:
    """Score samples; a user's mistake gives one line on stderr and code 2, an interruption 130."""
    args = _parser().parse_args(argv)
    args.features = args.features or _usual_features(args.reference)
    try:
        _score(args)
    except (DataError, FeatureError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
    except (MemoryError, torch.OutOfMemoryError):
        print("error: out of memory; use a smaller --batch-size", file=sys.stderr)
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
    raise SystemExit(main())
