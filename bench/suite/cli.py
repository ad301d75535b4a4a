"""The command line of ``run_bench.py``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.command_line import OneLineParser
from bench.data import CROPS, DATASETS, FILTERS, DataError
from bench.files.errors import one_line
from bench.measure.devices import DEVICES
from bench.measure.features import EXTRACTORS, INCEPTION_EXTRACTORS, FeatureError
from bench.models.networks import CheckpointError
from bench.suite.arms import RunError
from bench.suite.config import (
    SAMPLERS,
    ConfigError,
    SamplerConfig,
    nearest,
    parse_measure,
    parse_models,
    parse_seeds,
    parse_steps,
    positive,
)
from bench.suite.preview import dry_run
from bench.suite.registry import EMBEDDED, Registry, load_registry
from bench.suite.remedies import KINDS, SUFFIXES
from bench.suite.request import Request
from bench.suite.run import Run
from bench.suite.tune import Tune, parse_tune

__all__ = ["run"]

_INTERRUPTED = 130
_MOST = 10_000_000
_PREPROCESSING = ("resize", "crop", "resize_filter")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="run_bench.py",
        description="Measure exposure bias and sample quality of diffusion models over step counts.",
        allow_abbrev=False,
    )
    _add_grid(parser.add_argument_group("what to compare"))
    _add_sampling(parser.add_argument_group("how to sample"))
    _add_measuring(parser.add_argument_group("what to measure"))
    _add_running(parser.add_argument_group("running"))
    return parser


def _add_grid(grid: argparse._ArgumentGroup) -> None:
    grid.add_argument(
        "--models",
        default="adm,adm-ip",
        metavar="NAME[=PATH],...",
        help="models, with other weights if wished (default %(default)s)",
    )
    grid.add_argument("--steps", default="80,100,300,1000", metavar="N,...", help="step counts (default %(default)s)")
    grid.add_argument(
        "--seeds", default="0", metavar="LIST", help="seeds or ranges, e.g. 0,3 or 0-4 (default %(default)s)"
    )
    grid.add_argument(
        "--samples", type=int, metavar="N", help="samples a cell and seed (default 256 on digits, else 1000)"
    )
    known = ", ".join(DATASETS)
    grid.add_argument(
        "--dataset",
        default="digits",
        metavar="NAME",
        help=f"{known}, or one of the config file's (default %(default)s)",
    )
    grid.add_argument("--data-dir", type=Path, metavar="DIR", help="where datasets lie, the config file's too")
    grid.add_argument("--resize", type=int, metavar="N", help="resize the dataset's images to N pixels a side")
    grid.add_argument(
        "--crop", choices=CROPS, help="cut squares first: center, or guided-diffusion's way (default none)"
    )
    grid.add_argument("--resize-filter", choices=sorted(FILTERS), help="how to resize (default bicubic)")
    grid.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.toml",
        help="adds models and datasets; may be given more than once",
    )


def _add_sampling(how: argparse._ArgumentGroup) -> None:
    how.add_argument(
        "--sampler", help="ddpm (ancestral), ddim, or for EDM models heun or euler (default ddpm, heun for EDM models)"
    )
    how.add_argument(
        "--spacing", default="plain", help="plain (ends included) or ddim (whole strides) (default %(default)s)"
    )
    how.add_argument("--eta", type=float, default=0.0, help="DDIM's noise, 0 to 1 (default %(default)s)")
    how.add_argument(
        "--churn", type=float, default=0.0, metavar="S", help="noise of heun and euler, EDM's S_churn (default 0)"
    )
    how.add_argument(
        "--variance", help="learned, fixed-small or fixed-large (default: what the network was trained for)"
    )
    how.add_argument(
        "--clip",
        action=argparse.BooleanOptionalAction,
        help="clamp x0_hat to [-1, 1] (default on, off for heun and euler)",
    )
    how.add_argument(
        "--quantize", default="round", help="round, or floor as the papers' scripts do (default %(default)s)"
    )
    how.add_argument(
        "--classifier", type=Path, metavar="FILE.pt", help="guide class-conditional models by a classifier"
    )
    how.add_argument(
        "--classifier-scale", type=float, metavar="S", help="strength of the guidance (default: the published one)"
    )
    how.add_argument("--eps-scale", type=float, metavar="B", help="override b of scaling models")
    how.add_argument("--eps-slope", type=float, metavar="K", help="override k of scaling models")
    how.add_argument(
        "--tune",
        metavar="NAME=LOW:HIGH:COUNT",
        help="try a grid of one constant of the models' remedies, or fit it (NAME=fit); writes tuned.toml for --config",
    )
    how.add_argument("--batch-size", type=int, default=128, metavar="N", help="internal batch (default %(default)s)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")


def _add_measuring(look: argparse._ArgumentGroup) -> None:
    look.add_argument(
        "--measure",
        metavar="NAME,...",
        help="steps, normality (these two by default), chains, response or all; the last two cost more network calls",
    )
    look.add_argument(
        "--probes", action=argparse.BooleanOptionalAction, default=True, help="measure anything at all (default on)"
    )
    look.add_argument(
        "--features",
        help="digits, cifar10, inception, clean-fid or none (default: digits for digits, else inception)",
    )
    look.add_argument(
        "--reference",
        type=Path,
        metavar="FILE.npz",
        help="published statistics (mu, sigma, ...) to compare features with",
    )
    look.add_argument("--inception-weights", type=Path, metavar="FILE", help="torch-fidelity's Inception weights")


def _add_running(run_group: argparse._ArgumentGroup) -> None:
    run_group.add_argument(
        "--out", type=Path, metavar="DIR", help="results folder (default results/<dataset>-<sampler>-<hash>)"
    )
    run_group.add_argument("--list-models", action="store_true", help="list the known models and exit")
    run_group.add_argument("--dry-run", action="store_true", help="print the plan and its cost and exit")
    run_group.add_argument("--quiet", action="store_true", help="no progress bar, no closing lines")


def _choice(flag: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise nearest(flag, value, known)
    return value


def _measure(args: argparse.Namespace) -> tuple[str, ...]:
    if not args.probes and args.measure is not None:
        raise ConfigError("--no-probes measures nothing; leave it out, or leave out --measure")
    if not args.probes:
        return ()
    if args.measure is None:  # a grid of constants is there to be compared, and has many cells
        return ("steps", "normality") if args.tune is None else ()
    return parse_measure(args.measure)


def _check_numbers(args: argparse.Namespace, samples: int) -> None:
    """Refuse numbers out of range, and those that belong to a flag that was not given."""
    positive("--samples", samples)
    positive("--batch-size", args.batch_size)
    if max(samples, args.batch_size) > _MOST:
        raise ConfigError(f"--samples and --batch-size go up to {_MOST:,}")
    if args.eps_scale is not None:
        positive("--eps-scale", args.eps_scale)
    if args.eps_slope is not None and not math.isfinite(args.eps_slope):
        raise ConfigError(f"--eps-slope must be a number, not {args.eps_slope}")
    if args.classifier_scale is not None:
        positive("--classifier-scale", args.classifier_scale)
        if args.classifier is None:
            raise ConfigError("--classifier-scale has no effect without --classifier; name the classifier's weights")
    if not 0 <= args.eta <= 1:
        raise ConfigError(f"--eta must lie between 0 and 1, not {args.eta}")
    if not 0 <= args.churn < math.inf:
        raise ConfigError(f"--churn must be a finite number of at least 0, not {args.churn}")


def _features(args: argparse.Namespace) -> str:
    """Return the features to score with, and refuse files that they do not use."""
    features = args.features or ("digits" if args.dataset == "digits" else "inception")
    if args.reference is not None and features == "none":
        raise ConfigError("--reference has no effect with --features none")
    if args.inception_weights is not None and features not in INCEPTION_EXTRACTORS:
        raise ConfigError(f"--inception-weights has no effect with --features {features}")
    return _choice("--features", features, EXTRACTORS)


def _tune(args: argparse.Namespace) -> Tune | None:
    if args.tune is None:
        return None
    if args.features == "none":
        raise ConfigError("--tune compares distances on features; leave out --features none")
    return parse_tune(args.tune)


def _request(args: argparse.Namespace) -> Request:
    """Check every flag that can be checked alone."""
    samples = args.samples if args.samples is not None else (256 if args.dataset == "digits" else 1000)
    _check_numbers(args, samples)
    if args.out is not None and str(args.out) == ".":
        raise ConfigError("--out is empty or the current folder; name a folder for the results")
    sampler = SamplerConfig(
        spacing=_choice("--spacing", args.spacing, ("plain", "ddim")),
        eta=args.eta,
        churn=args.churn,
        quantize=_choice("--quantize", args.quantize, ("round", "floor")),
    )
    if args.variance is not None:
        _choice("--variance", args.variance, ("learned", "fixed-small", "fixed-large"))
    return Request(
        models=parse_models(args.models),
        steps=parse_steps(args.steps),
        seeds=parse_seeds(args.seeds),
        samples=samples,
        sampler=sampler,
        sampler_name=None if args.sampler is None else _choice("--sampler", args.sampler, SAMPLERS),
        variance=args.variance,
        clip=args.clip,
        batch=args.batch_size,
        device=_choice("--device", args.device, DEVICES),
        measure=_measure(args),
        features=_features(args),
        inception_weights=args.inception_weights,
        classifier=args.classifier,
        classifier_scale=args.classifier_scale,
        eps_scale=args.eps_scale,
        eps_slope=args.eps_slope,
        reference=args.reference,
        data_dir=args.data_dir,
        preprocessing={name: value for name in _PREPROCESSING if (value := getattr(args, name)) is not None},
        out=args.out,
        tune=_tune(args),
    )


def _list_models(registry: Registry) -> None:
    for name in registry.names():
        print(f"{name:<16} {EMBEDDED.get(name, 'from the config file')}")
    print("\nand each with remedies, in the order of the name, as in adm-es or adm-ts-es:\n")
    for suffix, kind in SUFFIXES.items():
        print(f"-{suffix:<15} {KINDS[kind].about}")


def run(argv: Sequence[str] | None = None) -> tuple[int, Path | None]:
    """Run the command line.

    Returns:
        (exit code, the results folder if one is there to be analysed). A user's mistake gives one line on stderr and
        code 2, an interruption 130.
    """
    args = _parser().parse_args(argv)
    try:
        known = load_registry(args.config, args.dataset)
        if args.list_models:
            _list_models(known)
            return 0, None
        bench = Run(_request(args), known)
        if args.dry_run:
            print("\n".join(dry_run(bench)))
            return 0, None
        bench.execute(args.quiet)
    except (ConfigError, DataError, CheckpointError, FeatureError, RunError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2, None
    except (MemoryError, torch.OutOfMemoryError):
        print("error: out of memory; use a smaller --batch-size, then the same command goes on", file=sys.stderr)
        return 2, None
    except OSError as error:
        print(f"error: {one_line(error.filename or args.out)}: {one_line(error.strerror or error)}", file=sys.stderr)
        return 2, None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return _INTERRUPTED, None
    return 0, bench.out
