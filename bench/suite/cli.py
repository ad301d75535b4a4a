"""The command line of ``run_bench.py``."""

from __future__ import annotations

import argparse
import errno
import math
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from bench.measure.features.extractors import EXTRACTORS, INCEPTION_EXTRACTORS
from bench.measure.quality.committed import COMMITTED
from bench.models.acceleration import PRECISIONS
from bench.runtime.devices import DEVICES
from bench.runtime.distributed import AgreedError, PeerError, is_launched, speaks, spoken_once
from bench.runtime.errors import UserError, one_line
from bench.runtime.signals import Signals, exit_code, say_interrupted
from bench.runtime.tensorboard import require_tensorboard
from bench.suite.compiling import settle_compiling
from bench.suite.config.flags import make_parser
from bench.suite.config.resolve import Request
from bench.suite.execution.launch import Outcome, execute
from bench.suite.preview import dry_run
from bench.suite.processes.ranks import Team, join
from bench.suite.registry.registry import EMBEDDED, Registry, load_registry
from bench.suite.registry.remedies import KINDS, SUFFIXES
from bench.suite.registry.tune import Tune, parse_tune
from bench.suite.run import Run
from bench.suite.settings import (
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
from bench.suite.shares import parse_share
from bench.suite.tuning.outcome import choose_constants, fit_constants, refuse_grid

__all__ = ["choose", "resolve", "run", "told"]

_GOES_ON = "the same command goes on where it stopped"
_MENDED = {  # by what a file system says
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "let files be larger",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}
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


def _features(args: argparse.Namespace, entries: Collection[str]) -> str:
    """Return the features to score with, and refuse files that they do not use."""
    features = args.features or _usual_features(args, entries)
    if args.reference is not None and features == "none":
        raise ConfigError("--reference has no effect with --features none")
    if args.inception_weights is not None and features not in INCEPTION_EXTRACTORS:
        raise ConfigError(f"--inception-weights has no effect with --features {features}")
    return _choice("--features", features, EXTRACTORS)


def _usual_features(args: argparse.Namespace, entries: Collection[str]) -> str:
    """Return the features of a run that names none: an embedded classifier's where Inception's have no reference."""
    kept = args.dataset in COMMITTED and args.dataset not in entries
    alone = kept and args.data_dir is None and args.reference is None
    return args.dataset if args.dataset == "digits" or alone else "inception"


def _tune(args: argparse.Namespace) -> Tune | None:
    if args.tune is None:
        return None
    if args.features == "none":
        raise ConfigError("--tune compares distances on features; leave out --features none")
    tune = parse_tune(args.tune)
    if not tune.values and (args.shard is not None or is_launched()):
        raise ConfigError(f"--tune {tune.text} is one piece of work; run it without torchrun and --shard")
    if args.samples is not None and not tune.values:
        raise ConfigError(f"--samples has no effect with --tune {tune.text}, whose rule knows how many it needs")
    if args.eps_scale is not None and tune.constant == "b":
        raise ConfigError("--eps-scale has no effect with --tune b, which replaces it; leave one out")
    return tune


def _request(args: argparse.Namespace, arguments: Sequence[str] = (), entries: Collection[str] = ()) -> Request:
    """Check every flag that can be checked alone.

    Args:
        args: as parsed.
        arguments: what they were parsed from.
        entries: names of the config files' datasets.
    """
    samples = args.samples if args.samples is not None else (256 if args.dataset == "digits" else 1000)
    _check_numbers(args, samples)
    if args.out is not None and str(args.out) == ".":
        raise ConfigError("--out is empty or the current folder; name a folder for the results")
    sampler = SamplerConfig(
        spacing=_choice("--spacing", args.spacing, ("plain", "ddim")),
        eta=args.eta,
        churn=args.churn,
        quantize=_choice("--quantize", args.quantize, ("round", "floor")),
        precision=_choice("--precision", args.precision, PRECISIONS),
    )
    if args.tensorboard is not None:
        require_tensorboard()
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
        features=_features(args, entries),
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
        share=None if args.shard is None else parse_share(args.shard),
        progress=not args.quiet if args.progress is None else args.progress,
        tensorboard=args.tensorboard,
        arguments=tuple(arguments),
        compile=_choice("--compile", args.compile, ("auto", "on", "off")),
    )


def _models(registry: Registry) -> list[str]:
    """Return the lines of ``--list-models``."""
    names = [f"{name:<16} {EMBEDDED.get(name, 'from the config file')}" for name in registry.names()]
    remedies = [f"-{suffix:<15} {KINDS[kind].about}" for suffix, kind in SUFFIXES.items()]
    return [*names, "", "and each with remedies, in the order of the name, as in adm-es or adm-ts-es:", "", *remedies]


def run(argv: Sequence[str] | None = None) -> tuple[int, Path | None]:
    """Run the command line.

    Returns:
        (exit code, the results folder if one is there to be analysed by this process). A user's mistake gives one line
        on stderr and code 2, an interruption 130, SIGTERM 143.
    """
    with spoken_once():
        args = make_parser().parse_args(argv)
    with Signals():
        team = Team()
        try:
            team = join(args.shard)
            return _run(args, list(sys.argv[1:] if argv is None else argv), team)
        except (UserError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            if speaks() or not isinstance(error, AgreedError | PeerError):
                print(f"error: {told(error, args.out)}", file=sys.stderr)
            # Under torchrun the first rank must have told of it before a code of failure ends it.
            return (2 if speaks() or not isinstance(error, AgreedError) else 0), None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            print(f"error: {told(MemoryError(), args.out)}", file=sys.stderr)
            return 2, None
        except KeyboardInterrupt as stop:
            say_interrupted()
            return exit_code(stop), None
        finally:
            team.close()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether torch says that the host's memory does not suffice, for which it has no error of its own."""
    return "DefaultCPUAllocator" in str(error)


def told(error: BaseException, out: Path | None) -> str:
    """Return an error as one line for the user.

    Args:
        error: one of those that a run may end with.
        out: the results folder, which an error of the file system is about if it names no file.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"out of memory; use a smaller --batch-size, then {_GOES_ON}"
    if isinstance(error, OSError):
        where, mended = error.filename or out or "the results folder", _MENDED.get(error.errno or 0, "see to that")
        return f"{one_line(where)}: {one_line(error.strerror or error)}; {mended}, then {_GOES_ON}"
    return one_line(error)


def resolve(args: argparse.Namespace, arguments: Sequence[str], team: Team) -> tuple[Registry, Run | None]:
    """Check everything that was asked for; ranks agree on what is wrong, so that none waits for another.

    Raises:
        ConfigError: what is wrong on any of them.
    """
    with team.together():
        known = load_registry(args.config, args.dataset)
        resolved = None if args.list_models else Run(_request(args, arguments, known.datasets), known)
    return known, resolved


def _run(args: argparse.Namespace, arguments: Sequence[str], team: Team) -> tuple[int, Path | None]:
    known, bench = resolve(args, arguments, team)
    if bench is None or args.dry_run:
        lines = _models(known) if bench is None else list(dry_run(bench, team))
        if team.leads:
            print("\n".join(lines))
        return 0, None
    tune = bench.request.tune
    if tune is not None:
        with team.together():
            refuse_grid(bench, tune)
        if bench.fits:
            settle_compiling(bench, team)
            found = fit_constants(bench, tune, args.quiet)
            print(found.read_text() + f"\nwritten to {found}; read them with --config")
            return 0, None
    if bench.left_out and team.leads and not args.quiet:
        print(_left_out(bench), file=sys.stderr)
    outcome = execute(bench, team)
    if not team.leads:
        # Not the code of a failure: torchrun would end the first rank, which has yet to tell of it and to draw.
        return 0, None
    return _close(bench, outcome, args.quiet)


def _left_out(bench: Run) -> str:
    """Return the line that says what a run without its dataset's images does not measure."""
    kept = f"compared with the kept statistics of {bench.data.training_name}"
    return f"note: no --data-dir and so no images: {kept}; left out: {'; '.join(bench.left_out)}"


def _close(bench: Run, outcome: Outcome, quiet: bool) -> tuple[int, Path | None]:
    """Tell how a run ended, and choose its constants."""
    for failure in outcome.failures:
        print(f"error: {failure}", file=sys.stderr)
    missing, cells, is_share = outcome.incomplete, len(bench.cells), bench.request.share is not None
    if missing and is_share and not quiet:
        print(f"{missing} of {cells} cells wait for units of the other shares", file=sys.stderr)
    if missing and not is_share and not outcome.failures:
        print(f"{missing} of {cells} cells are not complete; {_GOES_ON}", file=sys.stderr)
    if not missing:
        choose(bench, quiet)
    shown = not missing if is_share else missing < cells  # of the jobs of an array the last one draws
    code = 2 if outcome.failures else int(missing > 0 and not is_share)
    return code, (bench.out if shown else None)


def choose(bench: Run, quiet: bool) -> None:
    """Choose the constants of a run under ``--tune``, whose cells are all complete."""
    tune = bench.request.tune
    if tune is None:
        return
    found, ends = choose_constants(bench, tune)
    print("".join(f"{line}\n" for line in ends), end="", file=sys.stderr)
    print("" if quiet else f"constants in {found}; read them with --config\n", end="")
