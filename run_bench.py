"""Measure exposure bias and sample quality: ``python run_bench.py --models adm,adm-ip --steps 80,100,300,1000``."""

from __future__ import annotations

from bench.runtime.signals import Signals, end_at_once, exit_code, say_interrupted

if __name__ == "__main__":
    end_at_once()  # the imports below take seconds

import sys
from collections.abc import Sequence

from analysis.__main__ import main as analyse
from bench.suite.cli import run
from bench.suite.processes.locks import Claims


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite, then turn its records into tables and figures; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with Signals():
            code, out = run(arguments)
            if out is None:
                return code
            with Claims(out).drawing():
                return max(code, analyse([str(out), *(["--quiet"] if "--quiet" in arguments else [])]))
    except KeyboardInterrupt as stop:
        say_interrupted()
        return exit_code(stop)


if __name__ == "__main__":
    sys.exit(main())
