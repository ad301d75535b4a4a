"""Time of one run by one process and by two, of one thread each: what ``torchrun`` brings, start-up included."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.comparison import Comparison, Setting, compare

_ROOT = Path(__file__).parents[2]
_STEPS = 20
_FLAGS = ("--models", "adm", "--steps", str(_STEPS), "--features", "none", "--quiet")


def processes(setting: Setting) -> Iterator[Comparison]:
    """Compare two processes with one on a run of the embedded baseline."""
    count = setting.counts[1]
    name = f"a run of {count} digits at {_STEPS} steps by 2 processes"
    mine, theirs = (partial(_run, processes, count) for processes in (2, 1))
    yield compare("processes", name, "by 1 process", mine, theirs, setting, pairs=1, warm=False)


def _run(processes: int, count: int) -> None:
    """Run the suite in a fresh folder, one thread a process."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        flags = (*_FLAGS, "--samples", str(count), "--out", f"{folder}/run")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, "run_bench.py", *flags]
        subprocess.run(command, check=True, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL)
