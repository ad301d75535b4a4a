"""The command line of ``run_bench.py``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.data import DataError
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
from bench.suite.flags import make_parser
from bench.suite.preview import dry_run
from bench.suite.registry import EMBEDDED, Registry, load_registry
from bench.suite.remedies import KINDS, SUFFIXES
from bench.suite.request import Request
from bench.suite.run import Run
from bench.suite.tune import Tune, parse_tune
from bench.suite.tuned_run import choose_constants, fit_constants, refuse_grid

__all__ = ["run"]

_INTERRUPTED = 130
_MOST = 10_000_000
_PREPROCESSING = ("resize", "crop", "resize_filter")


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
    tune = parse_tune(args.tune)
    if args.samples is not None and not tune.values:
        raise ConfigError(f"--samples has no effect with --tune {tune.text}, whose rule knows how many it needs")
    if args.eps_scale is not None and tune.constant == "b":
        raise ConfigError("--eps-scale has no effect with --tune b, which replaces it; leave one out")
    return tune


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
    args = make_parser().parse_args(argv)
    try:
        known = load_registry(args.config, args.dataset)
        if args.list_models:
            _list_models(known)
            return 0, None
        bench = Run(_request(args), known)
        if args.dry_run:
            print("\n".join(dry_run(bench)))
            return 0, None
        tune = bench.request.tune
        if tune is not None:
            refuse_grid(bench, tune)
        if tune is not None and bench.fits:
            found = fit_constants(bench, tune, args.quiet)
            print(found.read_text() + f"\nwritten to {found}; read them with --config")
            return 0, None
        bench.execute(args.quiet)
        if tune is not None:
            found, ends = choose_constants(bench, tune)
            print("".join(f"{line}\n" for line in ends), end="", file=sys.stderr)
            print("" if args.quiet else f"constants in {found}; read them with --config\n", end="")
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
