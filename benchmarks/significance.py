"""Level and power of the paired tests by simulation: ``python -m benchmarks.significance``.

Features are Gaussian with a falling spectrum. Two samplers share part of their noise. Three cases have no difference
to find, so that a rejection is an error: both samplers draw from the law of the data (``perfect``), both from one other
law (``same``), and from two laws that are equally far away (``different``). In a fourth case the second sampler is
farther (``farther``), so that a rejection is right.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from analysis.comparison.paired_tests import CRITICAL, compare, compare_kernels
from analysis.records.arrays import CellTerms
from bench.measure.quality.frechet import feature_moments, frechet_distance
from bench.measure.quality.influence import frechet_terms, kernel_terms
from bench.measure.quality.statistics import FeatureMoments, ReferenceStatistics

Floats = NDArray[np.float64]
Law = tuple[float, ...]
CASES = ("perfect", "same", "different", "farther")
_STRETCH, _SHIFT = 1.12, 0.08  # of an imperfect sampler, in half of its directions


@dataclass(frozen=True)
class Setting:
    """Lines of the table that share their draws.

    Attributes:
        cases: of :data:`CASES`.
        features: d, even.
        samples: N a seed and model, above 2 d.
        seeds: numbers of seeds, a line each: the first of the draws that the largest number needs.
        reference: M images.
        correlations: of the two samplers' noise, 0 to 1 each.
    """

    cases: tuple[str, ...]
    features: int
    samples: int
    seeds: tuple[int, ...]
    reference: int
    correlations: tuple[float, ...]


def z_values(setting: Setting, repeats: int, seed: int = 0) -> Floats:
    """Return z [correlations, cases, numbers of seeds, 2, repeats] of the Frechet and of the kernel test."""
    rng = np.random.default_rng(seed)
    return np.stack([_compare(setting, rng) for _ in range(repeats)], axis=-1)


def rejection(z: Floats) -> float:
    """Return the share of |z| beyond the two-sided 5 % point."""
    return float((np.abs(z) > CRITICAL).mean())


def _compare(setting: Setting, rng: np.random.Generator) -> Floats:
    spectrum = np.repeat(np.linspace(1, 0.1, setting.features // 2), 2)  # equal pairs, so that laws can be mirrored
    images = (rng.standard_normal((setting.reference, setting.features)) * spectrum).astype(np.float32)
    reference = ReferenceStatistics("", "", FeatureMoments(*feature_moments(images), len(images)), None, images, "")
    draws = [rng.standard_normal((2, setting.samples, setting.features)) for _ in range(max(setting.seeds))]

    @cache
    def terms(law: Law, correlation: float) -> list[CellTerms]:
        """Return a model's terms by seed; its noise is correlated with that of the first model."""
        noise = (correlation * shared + np.sqrt(1 - correlation**2) * other for shared, other in draws)
        return [_terms(_distorted(unit, law) * spectrum, reference) for unit in noise]

    def line(correlation: float, case: str) -> list[tuple[float, float]]:
        first, second = (_law(case, model, setting.features) for model in (0, 1))
        sides = terms(first, 1.0), terms(second, correlation)
        return [_tests(*(side[:count] for side in sides)) for count in setting.seeds]

    return np.array([[line(correlation, case) for case in setting.cases] for correlation in setting.correlations])


def _tests(first: Sequence[CellTerms], second: Sequence[CellTerms]) -> tuple[float, float]:
    frechet = compare(dict(enumerate(first)), dict(enumerate(second)))
    kernel = compare_kernels(list(zip(first, second, strict=True)))
    assert frechet is not None  # N is above 2 d
    assert kernel is not None
    return frechet.z, kernel.z


def _law(case: str, model: int, features: int) -> Law:
    """Return how far a model of a case is from the data, in each direction."""
    directions = np.zeros(features)
    if case != "perfect":
        directions[model if case == "different" else 0 :: 2] = 1.5 if case == "farther" and model else 1.0
    return tuple(directions)


def _distorted(noise: Floats, law: Law) -> Floats:
    return noise * (1 + (_STRETCH - 1) * np.array(law)) + _SHIFT * np.array(law)


def _terms(rows: Floats, reference: ReferenceStatistics) -> CellTerms:
    features = rows.astype(np.float32)
    moments = reference.moments
    distance = frechet_distance(*feature_moments(features), moments.mean, moments.cov)
    frechet, kernel = frechet_terms(features, reference), kernel_terms(features, reference.pooled)
    assert frechet is not None  # N is above 2 d
    return CellTerms(
        distance, frechet.samples, frechet.reference, reference.n, kernel.by_sample(), kernel.within, kernel.reference,
        frechet_self=frechet.self_influence,
    )  # fmt: skip


def _share(share: float, repeats: int) -> str:
    """Return a share with its binomial error; none of them is known to 1 / repeats."""
    return f"{share:.3f} ± {max(np.sqrt(share * (1 - share) / repeats), 1 / repeats):.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table in Markdown; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.significance", description=main.__doc__)
    parser.add_argument("--repeats", type=int, default=400, metavar="N", help="a line (default %(default)s)")
    parser.add_argument("--features", type=int, nargs="+", default=[64], metavar="D")
    parser.add_argument("--samples", type=int, nargs="+", default=[256, 1000], metavar="N")
    parser.add_argument("--reference", type=int, nargs="+", default=[1442], metavar="M")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 5], metavar="S")
    parser.add_argument("--correlation", type=float, nargs="+", default=[0.0, 0.9, 0.99], metavar="R")
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="of all draws (default %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="(default: all four)")
    args = parser.parse_args(argv)
    print("| d | N | seeds | M | correlation | case | Frechet test | kernel test | repeats |\n" + "|---" * 9 + "|")
    for d, n, m in product(args.features, args.samples, args.reference):
        setting = Setting(tuple(args.cases), d, n, tuple(args.seeds), m, tuple(args.correlation))
        every = z_values(setting, args.repeats, args.seed).reshape(-1, 2, args.repeats)
        lines = product(args.correlation, args.cases, args.seeds)
        for (r, case, seeds), z in zip(lines, every, strict=True):
            frechet, kernel = (_share(rejection(one), args.repeats) for one in z)
            print(f"| {d} | {n} | {seeds} | {m} | {r} | {case} | {frechet} | {kernel} | {args.repeats} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
