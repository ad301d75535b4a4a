"""The documented sweep behind ``scaling.toml``: ``python -m bench.suite.tune --sampler ddpm``.

For each sampler and step count the Frechet distance to the training images is measured over a grid of constants, all on
the same noise, on seeds from a range that ``run_bench.py`` refuses. A parabola through the grid gives the constant:
its vertex if that is a minimum inside the grid, else the best grid point. ``adm-es`` sweeps a uniform divisor b.
``adm-es-linear`` then sweeps the rise span = k * (steps - 1) with the mean divisor held at the uniform optimum, so
that its b is (uniform b) - span / 2, as in the paper's tables. Of an EDM model the uniform divisor alone is swept, as
in EDM-ES.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from bench.command_line import OneLineParser
from bench.data import load, quantize
from bench.diffusion.corrections import EpsilonScaling
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, walk
from bench.diffusion.types import Denoiser, Level
from bench.measure.features import Extractor, open_extractor
from bench.measure.frechet import feature_moments, frechet_distance
from bench.models.formats import denoiser_of, open_network
from bench.suite.config import EDM_SAMPLERS, RESERVED_SEEDS, SAMPLERS, ConfigError, SamplerConfig, parse_steps, positive
from bench.suite.model import Model
from bench.suite.plan import Cell
from bench.suite.registry import load_registry

__all__ = ["Sweep", "main", "vertex"]

_UNIFORM = (0.98, 1.0, 1.02, 1.04, 1.06)
_SPANS = (-0.04, 0.0, 0.04, 0.08)
_BATCH = 128
_STEPS = {"ddpm": "10,20,50", "ddim": "10,20,50", "heun": "7,11,18", "euler": "13,21,35"}


def vertex(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the minimum of the parabola fitted to (x, y), or the best point where it has none inside the grid."""
    curve = np.polyfit(x, y, 2)
    lowest = -curve[1] / (2 * curve[0]) if curve[0] > 0 else float("nan")
    return float(lowest) if min(x) <= lowest <= max(x) else float(x[int(np.argmin(y))])


class Sweep:
    """Frechet distances of a model on the digits under scaling constants, on reserved seeds.

    Args:
        model: the unscaled model.
        sampler: ddpm, ddim, euler or heun.
        samples: images a grid point.
    """

    def __init__(self, model: Model, sampler: str, samples: int) -> None:
        self.model, self.samples, self.data = model, samples, load("digits")
        self.config = SamplerConfig(
            sampler, variance="learned" if sampler == "ddpm" else None, clip=sampler not in EDM_SAMPLERS
        )
        network = open_network(model.weights, model.description)
        self.denoiser: Denoiser = denoiser_of(network, model.description, torch.device("cpu"))
        extractor = open_extractor("digits")
        assert extractor is not None  # 'digits' is always there
        self.extractor: Extractor = extractor
        self.reference = feature_moments(extractor.extract(self.data.part("train"))[0])

    def cell(self, steps: int) -> Cell:
        """Return what gives a walk of this many steps its levels and update rule."""
        return Cell(self.model, self.config, steps, RESERVED_SEEDS, self.samples, (), "", (0, 0), "")

    def distance(self, steps: int, b: float, span: float) -> float:
        """Return the Frechet distance with divisor b + span * i / (steps - 1)."""
        cell = self.cell(steps)
        correction = EpsilonScaling(cell.levels(), b, span / max(steps - 1, 1))
        features = []
        for start in range(0, self.samples, _BATCH):
            numbers = torch.arange(start, min(start + _BATCH, self.samples))
            features.append(self._features(cell, correction, Draws(Noise(cell.seed), numbers)))
        return frechet_distance(*feature_moments(np.concatenate(features)), *self.reference)

    def _features(self, cell: Cell, correction: EpsilonScaling, draws: Draws) -> NDArray[np.float32]:
        path: Sequence[Level] = cell.levels()
        x = prior(path[0], draws, self.data.shape)
        for step in walk(self.denoiser, path, x, cell.solver(), draws, clip=cell.config.clip, correction=correction):
            x = step.x_next
        return self.extractor.extract(quantize(x))[0]


Record = Callable[[Sequence[object]], None]


def _uniform(sweep: Sweep, name: str, steps: int, grid: Sequence[float], record: Record) -> float:
    """Return the best uniform divisor of a step count."""
    values = [sweep.distance(steps, b, 0.0) for b in grid]
    for b, value in zip(grid, values, strict=True):
        record([name, sweep.config.sampler, steps, b, 0.0, sweep.samples, f"{value:.5f}"])
    return round(vertex(grid, values), 4)


def _linear(sweep: Sweep, name: str, steps: int, mean: float, record: Record) -> tuple[float, float]:
    """Return the best (b, span) of divisors with a mean."""
    values = [sweep.distance(steps, mean - span / 2, span) for span in _SPANS]
    for span, value in zip(_SPANS, values, strict=True):
        b = round(mean - span / 2, 4)
        record([name, sweep.config.sampler, steps, b, span, sweep.samples, f"{value:.5f}"])
    span = round(vertex(_SPANS, values), 4)
    return round(mean - span / 2, 4), span


def _sweep(sweep: Sweep, counts: Sequence[int], record: Record) -> dict[str, list[tuple[float, float]]]:
    """Return (b, span) by step count for the uniform and, unless it is an EDM model's, the linear scaling."""
    is_edm = sweep.model.description.is_edm
    base = sweep.model.name
    found: dict[str, list[tuple[float, float]]] = {f"{base}-es": []}
    if not is_edm:
        found[f"{base}-es-linear"] = []
    for steps in tqdm(counts, desc=sweep.config.sampler):
        best = _uniform(sweep, f"{base}-es", steps, _UNIFORM, record)
        found[f"{base}-es"].append((best, 0.0))
        if not is_edm:
            found[f"{base}-es-linear"].append(_linear(sweep, f"{base}-es-linear", steps, best, record))
    return found


def _toml(model: str, sampler: str, counts: Sequence[int], constants: Sequence[tuple[float, float]]) -> str:
    b, span = zip(*constants, strict=True)
    return f"[digits.{model}.{sampler}]\nsteps = {list(counts)}\nb = {list(b)}\nspan = {list(span)}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep, write every measured point as CSV, and print the tables for ``scaling.toml``."""
    parser = OneLineParser(prog="python -m bench.suite.tune", description="Tune epsilon scaling on the digits.")
    parser.add_argument("--base", help="the unscaled model (default adm, or edm for heun and euler)")
    parser.add_argument("--sampler", default="ddpm", choices=SAMPLERS)
    parser.add_argument("--steps", help="step counts (default 10,20,50; heun 7,11,18; euler 13,21,35)")
    parser.add_argument("--samples", type=int, default=2688, help="images a grid point (default %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("tuning.csv"), help="every measured point (default %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        counts = parse_steps(args.steps or _STEPS[args.sampler])
        positive("--samples", args.samples)
        model = load_registry(None, "digits").model(args.base or ("edm" if args.sampler in EDM_SAMPLERS else "adm"))
        if model.description.is_edm != (args.sampler in EDM_SAMPLERS):
            raise ConfigError(f"--sampler {args.sampler} does not go with model {model.name!r}; choose another --base")
        if args.sampler not in EDM_SAMPLERS and max(counts) > model.description.T:
            raise ConfigError(f"--steps: {max(counts)} is not between 1 and {model.description.T}, the training length")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with args.out.open("a", newline="") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(["model", "sampler", "steps", "b", "span", "n", "fd_digits"])
        sweep = Sweep(model, args.sampler, args.samples)
        found = _sweep(sweep, counts, lambda row: writer.writerow(row) and file.flush())
    for name, constants in found.items():
        print(_toml(name, args.sampler, counts, constants))
    return 0


if __name__ == "__main__":
    sys.exit(main())
