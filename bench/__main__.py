"""The installed command ``exposure-bias-bench``: a run of the suite, or another command by its name.

This file imports nothing slow, so that a signal or a mistake is answered before torch is there.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import NoReturn

from bench.runtime.signals import Signals, end_at_once, exit_code, exit_with, say_interrupted

# The module of each command; the arguments after its name go to the module's ``main``.
COMMANDS: Mapping[str, str] = {
    "analyse": "analysis.__main__",
    "measure": "bench.measure.__main__",
    "train": "bench.models.train.__main__",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; arguments without a command's name are a run's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, *rest = arguments or [""]
    if name in COMMANDS and name != "analyse":
        return _main_of(name)(rest)  # which listens to signals itself
    try:
        with Signals():
            return _main_of(name)(rest) if name in COMMANDS else run_and_analyse(arguments)
    except KeyboardInterrupt as stop:
        say_interrupted()
        return exit_code(stop)


def _main_of(command: str) -> Callable[[Sequence[str]], int]:
    main: Callable[[Sequence[str]], int] = import_module(COMMANDS[command]).main
    return main


def run_and_analyse(arguments: Sequence[str]) -> int:
    """Run the suite, then turn its records into tables and figures; return the exit code."""
    from bench.suite.cli import run

    code, out = run(arguments)
    if out is None:
        return code
    from bench.suite.processes.locks import Claims

    with Claims(out).drawing():
        return max(code, _main_of("analyse")([str(out), *(["--quiet"] if "--quiet" in arguments else [])]))


def console() -> NoReturn:
    """Run as a program: a signal ends it at once while it imports."""
    end_at_once()
    gc.set_threshold(10_000)  # of 700 objects: collections amid imports, which free nothing, take a fifth of the start
    exit_with(main)


if __name__ == "__main__":
    console()
