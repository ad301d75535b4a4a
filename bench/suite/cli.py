"""The command line of ``run_bench.py``.

Only what ``--help`` and ``--list-models`` need is imported here; the rest is imported where it is used.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from bench.runtime.distributed import AgreedError, PeerError, speaks, spoken_once
from bench.runtime.errors import UserError, one_line
from bench.runtime.signals import Signals, exit_code, say_interrupted
from bench.suite.config.flags import make_parser
from bench.suite.processes.ranks import Team, join

if TYPE_CHECKING:
    from bench.suite.execution.launch import Outcome
    from bench.suite.run import Run

_GOES_ON = "the same command goes on where it stopped"
_ADVICE = {  # by the error of the file system
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "let files be larger",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}


def run(argv: Sequence[str] | None = None) -> tuple[int, Path | None]:
    """Run the command line.

    Returns:
        The exit code, and the results folder if this process is to analyse it. A user's mistake gives one line on
        stderr and code 2, an interruption 130, SIGTERM 143.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with spoken_once():
        args = make_parser().parse_args(arguments)

    def work() -> tuple[int, Path | None]:
        if args.list_models:
            with spoken_once():
                print("\n".join(_model_list(args)))
            return 0, None
        with closing(join(args.shard)) as team:
            return _run(args, arguments, team)

    return answered(work, args.out)


def answered(work: Callable[[], tuple[int, Path | None]], out: Path | None) -> tuple[int, Path | None]:
    """Do the work of a command; return its exit code and folder, or the code after a line on what went wrong.

    Args:
        work: the command.
        out: the results folder, which an error of the file system is about if it names no file.
    """
    with Signals():
        try:
            return work()
        except BrokenPipeError:
            raise
        except (UserError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
                raise
            if speaks() or not isinstance(error, AgreedError | PeerError):
                print(f"error: {error_line(error, out)}", file=sys.stderr)
            # Under torchrun a code of failure ends the first rank, which must print the line before.
            return (2 if speaks() or not isinstance(error, AgreedError) else 0), None
        except KeyboardInterrupt as stop:
            say_interrupted()
            return exit_code(stop), None


def _is_out_of_memory(error: BaseException) -> bool:
    # For the host's memory torch has no error of its own.
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def error_line(error: BaseException, out: Path | None) -> str:
    """Return an error as one line for the user.

    Args:
        error: one of those that a run may end with.
        out: the results folder, which an error of the file system is about if it names no file.
    """
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return f"out of memory; use a smaller --batch-size, then {_GOES_ON}"
    if isinstance(error, OSError):
        place, advice = error.filename or out or "the results folder", _ADVICE.get(error.errno or 0, "see to that")
        return f"{one_line(place)}: {one_line(error.strerror or error)}; {advice}, then {_GOES_ON}"
    return one_line(error)


def _model_list(args: argparse.Namespace) -> list[str]:
    """Return the lines of ``--list-models``."""
    from bench.suite.registry.config_file import read_config_files
    from bench.suite.registry.names import EMBEDDED, trainings, weights_file
    from bench.suite.registry.remedies import describe_remedies

    embedded = {name: about for name, about in EMBEDDED.items() if weights_file(args.dataset, name).is_file()}
    names = {**embedded, **dict.fromkeys(read_config_files(args.config).models, "from the config file")}
    others = [f"{name}@{number}" for name in EMBEDDED for number in trainings(args.dataset, name)]
    return [
        *([] if embedded else [f"no weights are embedded for the dataset {one_line(args.dataset)}"]),
        *(f"{name:<24} {about}" for name, about in names.items()),
        *(["", "other trainings of these recipes: " + ", ".join(others)] if others else []),
        "",
        "each with remedies, in the order of the name, as in adm-es or adm-ts-es:",
        *describe_remedies(),
    ]


def prepare(args: argparse.Namespace, arguments: Sequence[str], team: Team) -> Run:
    """Check everything that was asked for; ranks agree on what is wrong, so that none waits for another.

    Raises:
        UserError: what is wrong on any of them.
    """
    from bench.suite.config.request import check_texts, make_request

    with team.together():
        check_texts(args)  # before torch is imported

        from bench.suite.config.resolve import resolve
        from bench.suite.registry.registry import load_registry
        from bench.suite.run import Run

        registry = load_registry(args.config, args.dataset)
        if "=" in args.dataset and args.data_dir is not None:
            raise UserError(f"--dataset {args.dataset} says where the images are; leave out --data-dir")
        args.dataset = registry.dataset  # without the path of NAME=PATH
        config = resolve(make_request(args, arguments, registry.datasets), registry)
        if config.request.progress and team.leads and not args.dry_run and sys.stderr.isatty():
            cells = len(config.models) * len(config.request.steps) * len(config.seeds)
            print(f"{config.data.name}: {cells} cells; loading the models", file=sys.stderr)
        return Run(config)
    raise AssertionError("together() leaves with the error")


def _run(args: argparse.Namespace, arguments: Sequence[str], team: Team) -> tuple[int, Path | None]:
    run = prepare(args, arguments, team)
    from bench.suite.plan import start_warning

    if team.leads and (warning := start_warning(run.cells)):
        print(f"warning: {warning}", file=sys.stderr)
    from bench.suite.cost import dry_run, settle_compiling
    from bench.suite.execution.launch import execute
    from bench.suite.tuning.outcome import fit_constants, refuse_grid

    if args.dry_run:
        lines = list(dry_run(run, team))
        if team.leads:
            print("\n".join(lines))
        return 0, None
    tune, left_out = run.config.request.tune, run.config.left_out
    if tune is not None:
        with team.together():
            refuse_grid(run, tune)
        if run.config.fits:
            settle_compiling(run, run.reference(), team)
            path = fit_constants(run, tune, args.quiet)
            print(path.read_text() + f"\nwritten to {path}; read them with --config")
            return 0, None
    if left_out and team.leads and not args.quiet:
        statistics = f"compared with the kept statistics of {run.config.data.training_name}"
        omitted = "; ".join(left_out)
        print(f"note: no --data-dir and so no images: {statistics}; left out: {omitted}", file=sys.stderr)
    outcome = execute(run, team, args.quiet)
    if not team.leads:
        # Not the code of a failure: torchrun would end the first rank, which has yet to print and to draw.
        return 0, None
    return _close(run, outcome, args.quiet)


def _close(run: Run, outcome: Outcome, quiet: bool) -> tuple[int, Path | None]:
    """Print how a run ended, and choose its constants."""
    for failure in outcome.failures:
        print(f"error: {failure}", file=sys.stderr)
    missing, cells, is_share = outcome.incomplete, len(run.cells), run.config.request.share is not None
    if missing and is_share and not quiet:
        print(f"{missing} of {cells} cells wait for units of the other shares", file=sys.stderr)
    if missing and not is_share and not outcome.failures:
        print(f"{missing} of {cells} cells are not complete; {_GOES_ON}", file=sys.stderr)
    if not outcome.had_work and not quiet:
        print("nothing to compute, redrawn: every cell is complete", file=sys.stderr)
    if not missing:
        choose(run, quiet)
    is_drawn = not missing if is_share else missing < cells  # of the jobs of an array the last one draws
    code = 2 if outcome.failures else int(missing > 0 and not is_share)
    return code, (run.out if is_drawn else None)


def choose(run: Run, quiet: bool) -> None:
    """Choose the constants of a run under ``--tune``, whose cells are all complete."""
    from bench.suite.tuning.outcome import choose_constants

    tune = run.config.request.tune
    if tune is None:
        return
    path, notes = choose_constants(run, tune)
    print("".join(f"{line}\n" for line in notes), end="", file=sys.stderr)
    print("" if quiet else f"constants in {path}; read them with --config\n", end="")
