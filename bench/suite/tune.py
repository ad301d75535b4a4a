"""The documented sweep behind ``scaling.toml``: ``python -m bench.suite.tune --steps 10,20,50``.

For each sampler and step count the Frechet distance to the training images is measured over a grid of constants, all on
the same noise, on seeds from a range that ``run_bench.py`` refuses. A parabola through the grid gives the constant:
its vertex if that is a minimum inside the grid, else the best grid point. ``adm-es`` sweeps a uniform divisor b.
``adm-es-linear`` then sweeps the rise span = k * (steps - 1) with the mean divisor held at the uniform optimum, so
that its b is (uniform b) - span / 2, as in the paper's tables.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from bench.data import load, quantize
from bench.diffusion.corrections import EpsilonScaling
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import DDIM, Ancestral, Draws, Solver, prior, walk
from bench.diffusion.schedules import levels
from bench.diffusion.types import Denoiser, Level
from bench.measure.features import Extractor, open_extractor
from bench.measure.frechet import feature_moments, frechet_distance
from bench.models.checkpoints import load_network
from bench.models.denoisers import EpsDenoiser
from bench.suite.config import RESERVED_SEEDS, ConfigError, parse_steps, positive
from bench.suite.registry import load_registry

__all__ = ["Sweep", "main", "vertex"]

_UNIFORM = (0.98, 1.0, 1.02, 1.04, 1.06)
_SPANS = (-0.04, 0.0, 0.04, 0.08)
_BATCH = 128


def vertex(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the minimum of the parabola fitted to (x, y), or the best point where it has none inside the grid."""
    curve = np.polyfit(x, y, 2)
    lowest = -curve[1] / (2 * curve[0]) if curve[0] > 0 else float("nan")
    return float(lowest) if min(x) <= lowest <= max(x) else float(x[int(np.argmin(y))])


class Sweep:
    """Frechet distances of a model on the digits under scaling constants, on reserved seeds.

    Args:
        denoiser: the unscaled model.
        schedule: its noise schedule.
        T: its training length.
        samples: images a grid point.
    """

    def __init__(self, denoiser: Denoiser, schedule: str, T: int, samples: int) -> None:
        self.denoiser, self.schedule, self.T, self.samples = denoiser, schedule, T, samples
        self.data = load("digits")
        extractor = open_extractor("digits")
        assert extractor is not None  # 'digits' is always there
        self.extractor: Extractor = extractor
        self.reference = feature_moments(extractor.extract(self.data.part("train"))[0])

    def distance(self, solver: Solver, steps: int, b: float, span: float) -> float:
        """Return the Frechet distance with divisor b + span * i / (steps - 1)."""
        path = levels(self.schedule, self.T, steps)
        correction = EpsilonScaling(path, b, span / max(steps - 1, 1))
        features = []
        for start in range(0, self.samples, _BATCH):
            numbers = torch.arange(start, min(start + _BATCH, self.samples))
            features.append(self._features(solver, path, correction, Draws(Noise(RESERVED_SEEDS), numbers)))
        return frechet_distance(*feature_moments(np.concatenate(features)), *self.reference)

    def _features(
        self, solver: Solver, path: Sequence[Level], correction: EpsilonScaling, draws: Draws
    ) -> NDArray[np.float32]:
        x = prior(path[0], draws, self.data.shape)
        for step in walk(self.denoiser, path, x, solver, draws, correction=correction):
            x = step.x_next
        return self.extractor.extract(quantize(x))[0]


Record = Callable[[Sequence[object]], None]


def _sweep(sweep: Sweep, sampler: str, counts: Sequence[int], record: Record) -> dict[str, list[tuple[float, float]]]:
    """Return (b, span) by step count for the uniform and the linear model."""
    solver: Solver = Ancestral("learned") if sampler == "ddpm" else DDIM()
    found: dict[str, list[tuple[float, float]]] = {"adm-es": [], "adm-es-linear": []}
    for steps in tqdm(counts, desc=sampler):
        uniform = [sweep.distance(solver, steps, b, 0.0) for b in _UNIFORM]
        for b, value in zip(_UNIFORM, uniform, strict=True):
            record(["adm-es", sampler, steps, b, 0.0, sweep.samples, f"{value:.5f}"])
        best = round(vertex(_UNIFORM, uniform), 4)
        found["adm-es"].append((best, 0.0))
        linear = [sweep.distance(solver, steps, best - span / 2, span) for span in _SPANS]
        for span, value in zip(_SPANS, linear, strict=True):
            record(["adm-es-linear", sampler, steps, round(best - span / 2, 4), span, sweep.samples, f"{value:.5f}"])
        span = round(vertex(_SPANS, linear), 4)
        found["adm-es-linear"].append((round(best - span / 2, 4), span))
    return found


def _toml(model: str, sampler: str, counts: Sequence[int], constants: Sequence[tuple[float, float]]) -> str:
    b, span = zip(*constants, strict=True)
    return f"[digits.{model}.{sampler}]\nsteps = {list(counts)}\nb = {list(b)}\nspan = {list(span)}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep, write every measured point as CSV, and print the tables for ``scaling.toml``."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.suite.tune", description="Tune epsilon scaling on the digits."
    )
    parser.add_argument("--base", default="adm", help="the unscaled model (default %(default)s)")
    parser.add_argument("--sampler", default="ddpm", choices=("ddpm", "ddim"))
    parser.add_argument("--steps", default="10,20,50", help="step counts (default %(default)s)")
    parser.add_argument("--samples", type=int, default=2688, help="images a grid point (default %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("tuning.csv"), help="every measured point (default %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        counts = parse_steps(args.steps)
        positive("--samples", args.samples)
        model = load_registry(None, "digits").model(args.base)
        if max(counts) > model.description.T:
            raise ConfigError(f"--steps: {max(counts)} is not between 1 and {model.description.T}, the training length")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    denoiser = EpsDenoiser(load_network(model.weights, model.description))
    sweep = Sweep(denoiser, model.description.schedule, model.description.T, args.samples)
    with args.out.open("a", newline="") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(["model", "sampler", "steps", "b", "span", "n", "fd_digits"])
        found = _sweep(sweep, args.sampler, counts, lambda row: writer.writerow(row) and file.flush())
    for name, constants in found.items():
        print(_toml(name, args.sampler, counts, constants))
    return 0


if __name__ == "__main__":
    sys.exit(main())
