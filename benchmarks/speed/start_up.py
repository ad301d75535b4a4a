"""How long commands take to start, and a run to say its first words: ``python -m benchmarks.speed.start_up``.

Prints the least of some repetitions, in seconds of the clock and of the processors; the two agree on an idle machine.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_REPETITIONS = 3
_RUN = ("--models", "adm", "--steps", "2", "--samples", "8", "--no-probes", "--features", "none")
COMMANDS: Sequence[Sequence[str]] = (("--help",), ("--list-models",), ("--steps", "ten"), (*_RUN, "--dry-run"), _RUN)


def measure(arguments: Sequence[str]) -> tuple[float, float, float]:
    """Return (seconds to the first line, seconds to the end, seconds of the processors) of a command of the suite."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-u", "run_bench.py", *arguments, "--out", f"{folder}/run"]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            first = time.perf_counter() - started
            process.stdout.read()
        ended, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return first, ended, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a row for each command."""
    print("| run_bench.py | first line (s) | end (s) | processors (s) |\n|---|---|---|---|")
    for arguments in COMMANDS:
        best = map(min, zip(*(measure(arguments) for _ in range(_REPETITIONS)), strict=True))
        print(f"| {' '.join(arguments)} | {' | '.join(f'{seconds:.2f}' for seconds in best)} |")


if __name__ == "__main__":
    main()
