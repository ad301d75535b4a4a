"""``python -m analysis RESULTS_DIR``: regenerate tables and figures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.load import ResultsError
from analysis.regenerate import regenerate

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; code 2 with one line for an unreadable folder, 1 where some cells were left out."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Regenerate tables and figures.")
    parser.add_argument("results", type=Path, help="a results folder")
    parser.add_argument("--quiet", action="store_true", help="print problems only")
    args = parser.parse_args(argv)
    try:
        results = regenerate(args.results)
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    for problem in results.problems:
        print(f"warning: {problem}", file=sys.stderr)
    table = args.results / "tables" / "fid_vs_steps.md"
    if not args.quiet:
        print((table.read_text() if table.exists() else "") + f"\ntables and figures in {args.results}")
    return 1 if results.problems else 0


if __name__ == "__main__":
    sys.exit(main())
