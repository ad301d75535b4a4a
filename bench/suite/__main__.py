"""Commands on results folders: ``python -m bench.suite merge PART... --out DIR``."""

from __future__ import annotations

from bench.runtime.errors import OneLineParser, UserError
from bench.runtime.signals import Signals, end_at_once, exit_code, say_interrupted

if __name__ == "__main__":
    end_at_once()  # the imports below take seconds

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.runtime.errors import one_line
from bench.suite.cli import told
from bench.suite.processes.locks import Claims
from bench.suite.recorded import recorded_commands
from bench.suite.store.merge import join_folders, refuse_mixed

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m bench.suite", description=__doc__, allow_abbrev=False)
    merge = parser.add_subparsers(dest="command", required=True).add_parser(
        "merge", help="join results folders, such as those of --shard jobs that wrote apart", allow_abbrev=False
    )
    merge.add_argument("parts", nargs="+", type=Path, metavar="PART", help="results folders; they stay as they are")
    merge.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder they are joined in")
    merge.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.toml",
        help="the parts' configuration files, which may run code and are therefore not taken from the parts",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 where every cell is complete, 1 where units are missing."""
    args = _parser().parse_args(argv)
    try:
        with Signals():
            return _merge(args)
    except (UserError, OSError, MemoryError) as error:
        print(f"error: {told(error, args.out)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        say_interrupted()
        return exit_code(stop)


def _merge(args: argparse.Namespace) -> int:
    refuse_mixed(args.parts, args.out)
    commands = recorded_commands(args.parts, args.out, args.config)
    with Claims(args.out).folder():
        for line in join_folders(args.parts, args.out):
            print(f"left out: {one_line(line)}", file=sys.stderr)
    missing = [line for command in commands for line in command.complete()]
    for line in dict.fromkeys(missing):
        print(f"missing: {one_line(line)}", file=sys.stderr)
    print(f"joined in {args.out}; tables and figures: python -m analysis {args.out}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
