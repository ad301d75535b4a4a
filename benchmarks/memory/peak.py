"""Peak memory of a run against that of the papers' procedure, each in a process of its own, at two sizes.

A stand-in network that costs nothing serves both, so that what is measured is what the procedures keep.
``python -m benchmarks.memory.peak ours|stored N SIZE STEPS`` runs one of them and prints its peak in MiB.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, paired, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import Ancestral
from bench.diffusion.types import Level, Prediction
from bench.models.denoisers.parameterization import as_prediction
from benchmarks.comparison import Comparison, Setting, ratios
from benchmarks.memory.stored_states import StoredStates

_STEPS = 20
_BATCH = 128
_ROOT = Path(__file__).parents[2]
_ADAPTER = """\
def load():
    return lambda x, t, labels: 0.9 * x
"""
_CONFIG = """\
[models.stand-in]
adapter = "stand_in.py:load"
in_channels = 3
image_size = {size}

[datasets.random]
path = "random.npz"
"""


def memory(setting: Setting) -> Iterator[Comparison]:
    """Compare the peaks at both sizes, and by how much they grow from one to the other."""
    few, many = setting.counts
    what, peer = f"{setting.size}x{setting.size}x3, {_STEPS} steps", "the papers' stored states"
    peaks = [(_peak("ours", count, setting.size), _peak("stored", count, setting.size)) for count in setting.counts]
    for count, pair in zip(setting.counts, peaks, strict=True):
        yield ratios("memory", f"peak, {count} samples, {what}", peer, [pair], setting, unit="MiB")
    ours, stored = (max(more - less, 0.1) for less, more in zip(*peaks, strict=True))
    images = (many - few) * 3 * setting.size**2 / 2**20
    name = f"growth, {few} to {many} samples ({images:.1f} MiB are the images themselves), {what}"
    yield ratios("memory", name, peer, [(ours, stored)], setting, unit="MiB")


def _peak(who: str, count: int, size: int) -> float:
    command = [sys.executable, "-m", "benchmarks.memory.peak", who, str(count), str(size), str(_STEPS)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
    return float(done.stdout.splitlines()[-1])


def _ours(count: int, size: int, steps: int, folder: Path) -> None:
    """Run the suite with its instruments."""
    from bench.suite.cli import run

    (folder / "stand_in.py").write_text(_ADAPTER)
    (folder / "stand_in.toml").write_text(_CONFIG.format(size=size))
    pictures = np.random.default_rng(0).integers(0, 256, (256, size, size, 3), dtype=np.uint8)
    np.savez(folder / "random.npz", arr_0=pictures)
    files = f"--config {folder}/stand_in.toml --data-dir {folder} --out {folder}/run --quiet"
    what = f"--models stand-in --dataset random --features none --batch-size {_BATCH}"
    code, _ = run(f"{files} {what} --samples {count} --steps {steps}".split())
    if code:
        raise SystemExit(code)


def _stand_in(x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
    return as_prediction("eps", 0.9 * x, x, level)


def _stored(count: int, size: int, steps: int) -> None:
    """Keep every state's distance from its real image, then take the spread of each pixel."""
    path, noise, keeper = levels("cosine", 1000, steps), Noise(0), StoredStates()
    for start in range(0, count, _BATCH):
        draws = Draws(noise, torch.arange(start, min(start + _BATCH, count)))
        x0 = torch.rand(len(draws.samples), 3, size, size) * 2 - 1
        for step in walk(_stand_in, path, paired(path[0], draws, x0), Ancestral("fixed-small"), draws):
            keeper.add(step.i, step.x_next - step.level_next.alpha * x0)
    keeper.stds()


def _peak_mib() -> float:
    """Return this process's peak; the system's account of a child begins with its parent's, Linux's own does not."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(argv: Sequence[str]) -> None:
    """Run one procedure and print its peak."""
    who, *numbers = argv
    count, size, steps = map(int, numbers)
    if who == "ours":
        with tempfile.TemporaryDirectory() as folder:
            _ours(count, size, steps, Path(folder))
    else:
        _stored(count, size, steps)
    print(f"{_peak_mib():.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
