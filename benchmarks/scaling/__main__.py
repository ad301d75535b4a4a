"""Rules for a uniform divisor against an exhaustive sweep: ``python -m benchmarks.scaling --models adm-ip``.

Three seeds that no run may use: one for the sweep, one for the rules, one for the evaluation of what they found. The
sweep is 15 divisors; its answer is the vertex of the parabola through the seven points about the lowest. A gain is the
Frechet distance at b = 1 less that at the answer. The gains of the sweep and of the rule ``fit`` are measured on the
evaluation's seed; those of the other rules, which saw neither of the two seeds, are read off the sweep's curve, linear
between its points and level beyond its ends. Standard errors are the jackknife's over 16 groups of images, all divisors
of a group left out together, so that the shared noise is taken into account.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.data import to_unit
from bench.suite.tuning.epsilon_scaling import FEWEST, Fitted, fit
from benchmarks.scaling.rules import CANDIDATES, Meter
from benchmarks.scaling.walks import Setting, Walks, Yardstick

Mask = NDArray[np.bool_]
Distance = Callable[[float, Mask], float]  # of a divisor, with some of the images
SWEEP_SEED, RULE_SEED, EVALUATION_SEED = 1_000_201, 1_000_101, 1_000_301
_POINTS, _GROUPS = 15, 16
_SHARE = 0.095  # of the sweep's network calls that the rule 'fit' may make
# First divisor and step of the sweep; all contain 1.
_GRIDS: Mapping[str, tuple[float, float]] = {
    "learned": (0.925, 0.0125),
    "fixed-small": (0.92, 0.02),
    "fixed-large": (0.76, 0.02),
    "": (0.93, 0.01),
}


@dataclass(frozen=True)
class Outcome:
    """One row: what a rule found and what it is worth. Gains are in Frechet distance, errors one standard error."""

    model: str
    sampler: str
    variance: str
    steps: int
    rule: str
    b: float
    distance_at_1: float
    gain: float
    gain_error: float
    sweep_share: float  # gain over the sweep's
    sweep_share_error: float
    calls: int
    calls_share: float  # of the sweep's
    images: int  # a divisor of the sweep
    evaluated_on: str
    evaluation_images: int


def grid(variance: str) -> list[float]:
    """Return the sweep's divisors."""
    first, step = _GRIDS[variance]
    return [round(first + step * k, 4) for k in range(_POINTS)]


def lowest(divisors: Sequence[float], distances: Sequence[float]) -> float:
    """Return the minimum of the parabola through the seven points about the lowest, within them."""
    start = min(max(int(np.argmin(distances)) - 3, 0), len(divisors) - 7)
    near, values = np.array(divisors[start : start + 7]), distances[start : start + 7]
    square, slope, _ = np.polyfit(near - 1, values, 2)
    vertex = 1 - slope / (2 * square) if square > 0 else divisors[int(np.argmin(distances))]
    return round(float(np.clip(vertex, near[0], near[-1])), 4)


def _distance(walks: Walks, images: int) -> Distance:
    """Return distances of what was walked."""
    return lambda b, kept: walks.yardstick.distance(walks.walked(b, images).features[kept])


def _read_off(divisors: Sequence[float], distance: Distance) -> Distance:
    """Return distances between the divisors of a sweep."""

    def between(b: float, kept: Mask) -> float:
        right = int(np.clip(np.searchsorted(divisors, b), 1, len(divisors) - 1))
        near = divisors[right - 1 : right + 1]
        return float(np.interp(b, near, [distance(x, kept) for x in near]))

    return between


def _gains(distance: Distance, images: int, divisors: Sequence[float]) -> tuple[NDArray[np.float64], ...]:
    """Return gains over b = 1, [divisors], and the jackknife's left-out ones, [groups, divisors]."""
    group = np.arange(images) % _GROUPS

    def gains(kept: Mask) -> NDArray[np.float64]:
        plain = distance(1.0, kept)
        return np.array([plain - distance(b, kept) for b in divisors])

    return gains(group >= 0), np.stack([gains(group != k) for k in range(_GROUPS)])


def _error(left_out: NDArray[np.float64]) -> float:
    return float(np.sqrt((_GROUPS - 1) * left_out.var()))


def fitted(walks: Walks, images: int) -> Fitted:
    """Run the rule ``fit``."""
    yardstick = walks.yardstick
    spread = float(np.sqrt(to_unit(yardstick.train).numpy().var(axis=0).mean()))

    def sampled(b: float, start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        walked = walks.walked(b, stop).part(start, stop)
        return walked.final, walked.features

    return fit(sampled, *yardstick.reference, spread, images)


def compare(
    setting: Setting,
    yardstick: Yardstick,
    images: int,
    evaluation: int,
    rules: Sequence[str],
    folder: Path | None = None,
    compiled: bool = False,
) -> Iterator[Outcome]:
    """Yield the outcome of the sweep, then of each rule.

    Args:
        setting: what is walked.
        yardstick: data and features.
        images: a divisor of the sweep.
        evaluation: images of the evaluation.
        rules: ``fit`` or names of :data:`CANDIDATES`.
        folder: where walks are remembered.
        compiled: compile the network.
    """
    seeds = (SWEEP_SEED, RULE_SEED, EVALUATION_SEED)
    sweep, own, fresh = (Walks(yardstick, setting, seed, folder, compiled) for seed in seeds)
    divisors, everything = grid(setting.variance), np.ones(images, dtype=bool)
    curve = _distance(sweep, images)
    best = lowest(divisors, [curve(b, everything) for b in divisors])
    cost = _POINTS * images * sweep.nfe
    places = {"evaluation": (_distance(fresh, evaluation), evaluation), "sweep": (_read_off(divisors, curve), images)}

    def outcome(rule: str, b: float, calls: int, place: str) -> Outcome:
        distance, count = places[place]
        (of_rule, of_sweep), left_out = _gains(distance, count, (b, best))
        share = _error(left_out[:, 0] / left_out[:, 1]) if b != best else 0.0
        plain = distance(1.0, np.ones(count, dtype=bool))
        names = (setting.model, setting.sampler, setting.variance, setting.steps, rule, b)
        worth = (plain, of_rule, _error(left_out[:, 0]), of_rule / of_sweep, share)
        return Outcome(*names, *worth, calls, calls / cost, images, place, count)

    yield outcome("sweep", best, cost, "evaluation")
    for rule in rules:
        if rule == "fit":
            found = fitted(own, max(int(_SHARE * _POINTS * images), FEWEST))
            yield outcome(rule, found.b, found.images * own.nfe, "evaluation")
        else:
            meter = Meter(own)
            b = CANDIDATES[rule](meter)
            yield outcome(rule, b, meter.calls, "sweep")


def _settings(args: argparse.Namespace) -> Iterator[Setting]:
    for model, sampler in product(args.models.split(","), args.samplers.split(",")):
        variances = args.variance.split(",") if sampler == "ddpm" else [""]
        for variance, steps in product(variances, args.steps.split(",")):
            yield Setting(model, sampler, variance, int(steps))


def _line(row: Outcome) -> str:
    where = f"{row.model} {row.sampler} {row.variance} {row.steps} {row.rule}".replace("  ", " ")
    gain = f"gain {row.gain:.4f} +- {row.gain_error:.4f} of {row.distance_at_1:.4f}"
    share = f"share {row.sweep_share:.2f} +- {row.sweep_share_error:.2f}"
    return f"{where}: b {row.b:.4f}, {gain}, {share}, calls {row.calls_share:.3f} of the sweep's"


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line a setting and rule, and append it to a CSV file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=main.__doc__)
    parser.add_argument("--models", default="adm-ip,ddpm-y,adm-gp,adm-wd", help="default %(default)s")
    parser.add_argument("--samplers", default="ddpm", help="ddpm, ddim or, of edm, euler and heun")
    parser.add_argument("--variance", default="fixed-small,learned", help="of ddpm (default %(default)s)")
    parser.add_argument("--steps", default="10,20,50", help="default %(default)s")
    parser.add_argument("--rules", default=",".join(["fit", *CANDIDATES]), help="default %(default)s")
    parser.add_argument("--images", type=int, default=1024, help="a divisor of the sweep (default %(default)s)")
    parser.add_argument("--evaluation", type=int, default=2048, help="images a divisor (default %(default)s)")
    parser.add_argument("--cache", type=Path, help="folder of walks, so that a second run goes on with the first")
    parser.add_argument("--compile", action="store_true", help="compile the network: faster, rounds otherwise")
    parser.add_argument("--out", type=Path, default=Path("scaling_rules.csv"), help="default %(default)s")
    args = parser.parse_args(argv)
    if args.cache is not None:
        args.cache.mkdir(parents=True, exist_ok=True)
    yardstick = Yardstick()
    with args.out.open("a", newline="") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow([field.name for field in fields(Outcome)])
        for setting in _settings(args):
            rules = args.rules.split(",")
            for row in compare(setting, yardstick, args.images, args.evaluation, rules, args.cache, args.compile):
                values = asdict(row).values()
                writer.writerow([f"{value:.5g}" if isinstance(value, float) else value for value in values])
                file.flush()
                print(_line(row), flush=True)


if __name__ == "__main__":
    main()
