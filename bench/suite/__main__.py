"""Commands on results folders: ``python -m bench.suite merge PART... --out DIR``."""

from __future__ import annotations

from bench.runtime.errors import OneLineParser, one_line
from bench.runtime.signals import end_at_once, exit_with

if __name__ == "__main__":
    end_at_once()  # the imports below take seconds

import argparse
import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from bench.files.writing import read_json
from bench.suite.cli import answered, choose, prepare
from bench.suite.config.flags import make_parser
from bench.suite.execution.launch import complete
from bench.suite.processes.locks import Claims
from bench.suite.processes.ranks import Team
from bench.suite.settings import ConfigError
from bench.suite.store.merge import join_folders, refuse_mixed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 where every cell is complete, 1 where units are missing."""
    args = _parser().parse_args(argv)
    return answered(lambda: (_merge(args), None), args.out)[0]


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


def _merge(args: argparse.Namespace) -> int:
    refuse_mixed(args.parts, args.out)
    commands = recorded_commands(args.parts, args.out, args.config)
    with Claims(args.out).folder():
        for line in join_folders(args.parts, args.out):
            print(f"left out: {one_line(line)}", file=sys.stderr)
    missing: list[str] = []
    for made, arguments in commands:
        run = prepare(made, arguments, Team())
        lacking = complete(run)
        if not lacking:
            choose(run, quiet=True)
        missing += lacking
    for line in dict.fromkeys(missing):
        print(f"missing: {one_line(line)}", file=sys.stderr)
    print(f"joined in {args.out}; tables and figures: python -m analysis {args.out}")
    return 1 if missing else 0


def recorded_commands(
    parts: Sequence[Path], out: Path, configs: Sequence[Path]
) -> list[tuple[argparse.Namespace, list[str]]]:
    """Return the commands that made the parts, one for each configuration and batch size.

    Args:
        parts: results folders.
        out: the folder that is to hold them.
        configs: the configuration files, which the user must name again.

    Returns:
        Each command parsed for the folder of all parts, and its arguments as they were given.

    Raises:
        ConfigError: a part does not say, or needs a configuration file that was not named.
    """
    commands: dict[tuple[str, str], tuple[argparse.Namespace, list[str]]] = {}
    for part in parts:
        record = read_json(part / "run.json") or {}
        key, arguments = record.get("hash"), record.get("arguments")
        args = _parsed(arguments)
        if not isinstance(key, str) or not isinstance(arguments, list) or args is None:
            raise ConfigError(f"{part}/run.json does not say how it was made; run the command again with this --out")
        if args.config and not configs:
            raise ConfigError(f"{part} was made with --config {args.config[0]}; name it to merge, too")
        args.out, args.config, args.shard, args.progress = out, list(configs), None, False
        commands.setdefault((key, str(record.get("batch_size"))), (args, arguments))
    return list(commands.values())


def _parsed(arguments: object) -> argparse.Namespace | None:
    """Return the recorded arguments of a run parsed, None where they are none."""
    if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
        return None
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            args = make_parser().parse_args(arguments)
    except SystemExit:
        return None
    return None if args.list_models or args.dry_run else args


if __name__ == "__main__":
    exit_with(main)
