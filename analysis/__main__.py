"""``python -m analysis RESULTS_DIR``: regenerate tables, figures and the report."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; code 2 with one line for an unreadable folder, 1 where some cells were left out."""
    about = "Regenerate tables, figures and the report."
    parser = argparse.ArgumentParser(prog="python -m analysis", description=about)
    parser.add_argument("results", type=Path, help="a results folder")
    parser.add_argument("--quiet", action="store_true", help="print problems only")
    parser.add_argument("--pdf", action="store_true", help="figures as PDF, too")
    parser.add_argument("--publish", type=Path, metavar="DIR", help="write a copy small enough for git here, and that")
    args = parser.parse_args(argv)

    from analysis.publish import publish  # slow to import: --help goes without
    from analysis.records.load import ResultsError
    from analysis.regenerate import regenerate
    from analysis.report.terminal import terminal_summary

    root = args.publish or args.results
    try:
        lost = publish(args.results, root).problems if args.publish else []
        if not args.quiet and sys.stderr.isatty():  # a mistake is one line in a file
            print("drawing tables and figures", file=sys.stderr)
        results = regenerate(root, args.pdf, _processes())
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"error: cannot write {error.filename or root}: {error.strerror or error}", file=sys.stderr)
        return 2
    problems = [*lost, *results.problems]
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if not args.quiet:
        summary = terminal_summary(results, shutil.get_terminal_size().columns)
        print(f"{summary}\n\ntables, figures and report.html in {root}" if summary else f"tables and figures in {root}")
    return 1 if problems else 0


def _processes() -> int:
    """Return 2 where a second process can begin with what this one has read, and has a core of its own."""
    return 2 if sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1 else 1


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # where nobody reads its output, it ends without a word
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the same command draws everything again", file=sys.stderr)
        sys.exit(130)
