"""The command line of ``run_bench.py``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from bench.data import DataError
from bench.measure.features import EXTRACTORS, FeatureError
from bench.models.networks import CheckpointError
from bench.suite.config import (
    ConfigError,
    SamplerConfig,
    nearest,
    parse_measure,
    parse_models,
    parse_seeds,
    parse_steps,
    positive,
)
from bench.suite.registry import EMBEDDED, Registry, load_registry
from bench.suite.request import Request
from bench.suite.run import Run, dry_run
from bench.suite.runner import RunError

__all__ = ["run"]

_INTERRUPTED = 130
_MOST = 10_000_000


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error alone and exit with code 2."""
        self.exit(2, f"error: {message}; see --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
    grid.add_argument(
        "--dataset", default="digits", metavar="NAME", help="digits, or one of the config file's (default %(default)s)"
    )
    grid.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where relative dataset paths of the config file start"
    )
    grid.add_argument("--config", type=Path, metavar="FILE.toml", help="adds models and datasets")


def _add_sampling(how: argparse._ArgumentGroup) -> None:
    how.add_argument("--sampler", default="ddpm", help="ddpm (ancestral) or ddim (default %(default)s)")
    how.add_argument(
        "--spacing", default="plain", help="plain (ends included) or ddim (whole strides) (default %(default)s)"
    )
    how.add_argument("--eta", type=float, default=0.0, help="DDIM's noise, 0 to 1 (default %(default)s)")
    how.add_argument(
        "--variance", help="learned, fixed-small or fixed-large (default: what the network was trained for)"
    )
    how.add_argument(
        "--clip", action=argparse.BooleanOptionalAction, default=True, help="clamp x0_hat to [-1, 1] (default on)"
    )
    how.add_argument(
        "--quantize", default="round", help="round, or floor as the papers' scripts do (default %(default)s)"
    )
    how.add_argument("--eps-scale", type=float, metavar="B", help="override b of scaling models")
    how.add_argument("--eps-slope", type=float, metavar="K", help="override k of scaling models")
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
    look.add_argument("--features", help="digits, inception or none (default: digits for digits, else inception)")
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
    return ("steps", "normality") if args.measure is None else parse_measure(args.measure)


def _request(args: argparse.Namespace) -> Request:
    """Check every flag that can be checked alone."""
    samples = args.samples if args.samples is not None else (256 if args.dataset == "digits" else 1000)
    positive("--samples", samples)
    positive("--batch-size", args.batch_size)
    if max(samples, args.batch_size) > _MOST:
        raise ConfigError(f"--samples and --batch-size go up to {_MOST:,}")
    if args.out is not None and str(args.out) == ".":
        raise ConfigError("--out is empty or the current folder; name a folder for the results")
    if args.eps_scale is not None:
        positive("--eps-scale", args.eps_scale)
    if args.eps_slope is not None and not math.isfinite(args.eps_slope):
        raise ConfigError(f"--eps-slope must be a number, not {args.eps_slope}")
    if not 0 <= args.eta <= 1:
        raise ConfigError(f"--eta must lie between 0 and 1, not {args.eta}")
    features = args.features or ("digits" if args.dataset == "digits" else "inception")
    if args.inception_weights is not None and features != "inception":
        raise ConfigError(f"--inception-weights has no effect with --features {features}")
    sampler = SamplerConfig(
        sampler=_choice("--sampler", args.sampler, ("ddpm", "ddim")),
        spacing=_choice("--spacing", args.spacing, ("plain", "ddim")),
        eta=args.eta,
        clip=args.clip,
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
        variance=args.variance,
        batch=args.batch_size,
        device=_choice("--device", args.device, ("auto", "cpu", "cuda", "mps")),
        measure=_measure(args),
        features=_choice("--features", features, EXTRACTORS),
        inception_weights=args.inception_weights,
        eps_scale=args.eps_scale,
        eps_slope=args.eps_slope,
        data_dir=args.data_dir,
        out=args.out,
    )


def _list_models(registry: Registry) -> None:
    for name in registry.names():
        print(f"{name:<16} {EMBEDDED.get(name, 'from the config file')}")


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
        print(f"error: {error}", file=sys.stderr)
        return 2, None
    except (MemoryError, torch.OutOfMemoryError):
        print("error: out of memory; use a smaller --batch-size, then the same command goes on", file=sys.stderr)
        return 2, None
    except OSError as error:
        print(f"error: {error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
        return 2, None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return _INTERRUPTED, None
    return 0, bench.out
