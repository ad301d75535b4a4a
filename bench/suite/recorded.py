"""The commands that made results folders, as ``run.json`` records them, and what is left to complete of theirs."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from bench.files.writing import read_json
from bench.suite.cli import choose, resolve
from bench.suite.config.flags import make_parser
from bench.suite.execution.launch import complete
from bench.suite.processes.ranks import Team
from bench.suite.settings import ConfigError

__all__ = ["Command", "recorded_commands"]


@dataclass(frozen=True)
class Command:
    """A command that made a part.

    Attributes:
        arguments: as they were given.
        args: the same, parsed, for the folder of all parts.
    """

    arguments: list[str]
    args: argparse.Namespace

    def complete(self) -> list[str]:
        """Complete the cells whose units are all there, without computing what is missing.

        Returns:
            A line for each cell or measurement that is not complete.

        Raises:
            ConfigError: something that the command names is not here, and all else that it may raise itself.
        """
        _, run = resolve(self.args, self.arguments, Team())
        assert run is not None  # commands that only list are refused
        missing = complete(run)
        if not missing:
            choose(run, quiet=True)
        return missing


def recorded_commands(parts: Sequence[Path], out: Path, configs: Sequence[Path]) -> list[Command]:
    """Return the commands that made the parts, one of each configuration and batch size, for the folder of all parts.

    Args:
        parts: results folders.
        out: the folder that is to hold them.
        configs: the configuration files, which the user must name again.

    Raises:
        ConfigError: a part does not say, or needs a configuration file that was not named.
    """
    found: dict[tuple[str, str], Command] = {}
    for part in parts:
        record = read_json(part / "run.json") or {}
        arguments, key = record.get("arguments"), record.get("hash")
        strange = ConfigError(f"{part}/run.json does not say how it was made; run the command again with this --out")
        if not isinstance(key, str) or not isinstance(arguments, list):
            raise strange
        if not all(isinstance(argument, str) for argument in arguments):
            raise strange
        args = _parsed(arguments)
        if args is None or args.list_models or args.dry_run:
            raise strange
        if args.config and not configs:
            raise ConfigError(f"{part} was made with --config {args.config[0]}; name it to merge, too")
        args.out, args.config, args.shard, args.progress, args.tensorboard = out, list(configs), None, False, None
        found.setdefault((key, str(record.get("batch_size"))), Command(arguments, args))
    return list(found.values())


def _parsed(arguments: list[str]) -> argparse.Namespace | None:
    """Return the arguments parsed, None where the parser would end the program."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return make_parser().parse_args(arguments)
    except SystemExit:
        return None
