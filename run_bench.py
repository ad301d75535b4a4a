"""Measure exposure bias and sample quality: ``python run_bench.py --models adm,adm-ip --steps 80,100,300,1000``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from analysis.__main__ import main as analyse
from bench.suite.cli import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite, then turn its records into tables and figures; return the exit code."""
    code, out = run(argv)
    return code if out is None else analyse([str(out)])


if __name__ == "__main__":
    sys.exit(main())
