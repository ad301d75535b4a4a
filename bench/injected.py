"""Known biases in an exact denoiser, and which instrument sees them: ``python -m bench.injected``.

The denoiser is that of the digits' training images as a finite set, which makes no error. A bias of known kind and
size is put into it at every call. Its walks share their noise with those of the unbiased denoiser, so that every
difference is the bias's. This is the best case of each instrument: a network is compared with floors on other noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import chdtri, chndtrinc, stdtr
from torch import Tensor
from torch.nn.functional import avg_pool2d

from analysis.comparison.paired_tests import (
    DETECTABLE,
    LEVEL,
    compare,
    compare_classes,
    compare_kernels,
    compare_stratified,
    holm,
    p_value,
)
from analysis.records.arrays import CellTerms
from bench.data import load, quantize, to_unit
from bench.diffusion.corrections import EpsilonScaling
from bench.diffusion.corrections.base import with_noise
from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.samplers import Draws, prior, teacher_forced, walk
from bench.diffusion.schedules import alpha_bars, levels
from bench.diffusion.solvers import Ancestral
from bench.diffusion.types import Denoiser, Level, Prediction, Step
from bench.measure.features.extractors import open_extractor
from bench.measure.instruments.exact_denoisers import FiniteSet
from bench.measure.instruments.probes import WalkProbe, spread_indices
from bench.measure.quality.compare_sets import cell_terms
from bench.measure.quality.scores import FeatureSet, score
from bench.runtime.errors import OneLineParser
from bench.runtime.signals import exit_with
from bench.suite.cells.reference import Reference
from bench.suite.registry.registry import load_registry

# What a bias of size s does.
KINDS = (
    "scale",  # eps (1 + s)
    "noise",  # x0_hat + s z, z standard normal, fresh at every call
    "time",  # eps as it would be s T training steps on, towards noise
    "low-pass",  # (1 - s) x0_hat + s (its mean over 3 x 3 pixels)
)
_LEVELS = 50  # of a walk with records of their own, at most
_SIZES = (0.01, 0.02, 0.05, 0.1)
_FEWEST = 3  # seeds of a t-test
FEWEST_SAMPLES = 130  # a seed: the test of the distance needs more than twice the number of features


class Biased:
    """An exact denoiser with a bias at every call.

    Args:
        exact: the denoiser without it.
        kind: one of :data:`KINDS`.
        size: of the bias.
        bars: alpha_bar [T] of the training process.
        seed: of the noise that kind ``noise`` draws.
    """

    def __init__(self, exact: Denoiser, kind: str, size: float, bars: NDArray[np.float64], seed: int) -> None:
        self.exact, self.kind, self.size, self.bars = exact, kind, size, bars
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Return the biased prediction of x [B, C, H, W]."""
        asked = level
        if self.kind == "time":
            t = min(int(level.t) + round(self.size * len(self.bars)), len(self.bars) - 1)
            asked = Level(t, math.sqrt(self.bars[t]), math.sqrt(1 - self.bars[t]))
        pred = self.exact(x, asked)
        if self.kind in ("scale", "time"):
            x0, eps = with_noise(pred, x, level, pred.eps * (1 + self.size) if self.kind == "scale" else pred.eps)
            return Prediction(eps, x0, pred.variance_fraction)
        if self.kind == "noise":
            change = torch.randn(x.shape, generator=self.generator).to(x)
        else:
            change = avg_pool2d(pred.x0, 3, stride=1, padding=1, count_include_pad=False) - pred.x0
        x0 = pred.x0 + self.size * change
        return Prediction((x - level.alpha * x0) / level.sigma, x0, pred.variance_fraction)


@dataclass(frozen=True)
class Walked:
    """What the instruments say of one seed's walks.

    Attributes:
        numbers: of the instruments without a test of their own, by name.
        terms: what the tests of distances need.
    """

    numbers: dict[str, float]
    terms: CellTerms


@dataclass(frozen=True)
class Finding:
    """What an instrument says of a bias.

    Attributes:
        effect: biased less unbiased.
        error: its standard error.
        p: of no effect.
        images: N in all.
    """

    effect: float
    error: float
    p: float
    images: int

    @property
    def enough(self) -> float:
        """Return the N at which this effect would be seen with a chance of 80 % at p < .05, NaN where none is."""
        return self.images * (DETECTABLE * self.error / self.effect) ** 2 if self.effect else math.nan


class Trial:
    """Walks of one step count, all on the same noise.

    Args:
        steps: of the walks.
        samples: N a seed.
        seeds: number of seeds.
    """

    def __init__(self, steps: int, samples: int, seeds: int) -> None:
        data, extractor = load("digits"), open_extractor("digits")
        assert extractor is not None  # 'digits' is always there
        about = load_registry((), "digits").model("adm").description
        self.steps, self.samples, self.seeds, self.extractor = steps, samples, seeds, extractor
        self.reference, self.images = Reference(data, extractor), to_unit(data.part("train"))
        self.bars, self.path = alpha_bars(about.schedule, about.T), levels(about.schedule, about.T, str(steps))
        self.exact = FiniteSet(self.images).trained_on(self.bars)
        self.indices, self.solver = spread_indices(steps, _LEVELS), Ancestral("learned")

    @cached_property
    def unbiased(self) -> list[Walked]:
        """Return the walks of the exact denoiser."""
        return self.walks("scale", 0.0)

    def walks(self, kind: str, size: float, b: float = 1.0) -> list[Walked]:
        """Return the walks of a biased denoiser, a seed an entry, with eps divided by ``b`` (epsilon scaling)."""
        return [self._walked(kind, size, b, seed) for seed in range(self.seeds)]

    def _walked(self, kind: str, size: float, b: float, seed: int) -> Walked:
        denoiser = Biased(self.exact, kind, size, self.bars, seed)
        draws = Draws(Noise(seed), torch.arange(self.samples))
        chosen = draws.noise.integers(draws.samples, Purpose.LABEL, 0, len(self.images))  # real images, at random
        correction = EpsilonScaling(self.path, b)
        centre = self.reference.centre.float()
        start = prior(self.path[0], draws, centre.shape)
        arms: dict[str, Iterator[Step]] = {
            "free": walk(denoiser, self.path, start, self.solver, draws, correction=correction),
            "forced-train": teacher_forced(
                denoiser, self.path, self.images[chosen], self.solver, draws, correction=correction,
                indices=set(self.indices),
            ),
        }  # fmt: skip
        rows: dict[tuple[str, str, int], float] = {}
        bands, last = dict[str, NDArray[np.float64]](), torch.empty(0)
        for arm, steps in arms.items():
            probe = WalkProbe(self.steps, self.indices, centre, arm != "free")
            for step in steps:
                probe.update(step)
                last = step.x_next if arm == "free" else last
            state = probe.state()
            for row in WalkProbe.result(arm, state, self.indices, self.path, self.reference.statistics):
                rows[arm, row.quantity, row.i] = row.value
            bands |= {f"{arm}/{source}": state[f"spectrum_{source}/mean"] for source in ("state", "x0")}
        (features, spatial), statistics = self.extractor.extract(quantize(last)), self.reference.features()
        scores = score(FeatureSet(features, spatial), statistics, self.extractor, "digits")
        by_name = {entry.metric: entry.value for entry in scores if entry.value is not None}
        coverage = {kind: by_name[self.extractor.metrics[kind]] for kind in ("precision", "recall")}
        numbers = _numbers(rows, bands, self.indices) | coverage
        return Walked(numbers, cell_terms(features, statistics, self.extractor))


def _numbers(
    rows: Mapping[tuple[str, str, int], float], bands: Mapping[str, NDArray[np.float64]], indices: Sequence[int]
) -> dict[str, float]:
    """Return the signed instruments of single walks, those of :mod:`analysis.exposure_bias.quality_correlation`."""

    def mean(value: Callable[[int], float]) -> float:
        return float(np.mean([value(i) for i in indices]))

    fine = slice(bands["free/state"].shape[1] // 2, None)  # the upper half of the radial frequencies
    powers = {name: np.log(power[:, fine].mean(axis=1)) for name, power in bands.items()}  # [levels]
    return {
        "eps norm, free / forced": mean(
            lambda i: math.log(rows["free", "eps_norm", i] / rows["forced-train", "eps_norm", i])
        ),
        "x0_hat error": mean(lambda i: math.log(rows["forced-train", "x0_rmse", i])),
        "variance at the end": rows["free", "variance_ratio", -1],
        "variance on the way": mean(lambda i: rows["free", "variance_ratio", i - 1]),  # a state stands one level on
        "excess_std": mean(lambda i: rows["free", "excess_std", i - 1]),
        "delta_t": rows["free", "delta_t", indices[1] - 1],
        "spectrum at the end": float(powers["free/state"][0]),
        "spectrum of x0_hat, free / forced": float((powers["free/x0"] - powers["forced-train/x0"]).mean()),
    }


def findings(biased: Sequence[Walked], unbiased: Sequence[Walked], samples: int) -> dict[str, Finding]:
    """Return what each instrument says, by its name.

    Distances have the suite's paired tests, class proportions Stuart and Maxwell's; all others a t-test of the
    differences over seeds.

    Args:
        biased: walks, a seed an entry.
        unbiased: those of the same seeds.
        samples: N a seed.
    """
    first, second = (dict(enumerate(w.terms for w in walks)) for walks in (biased, unbiased))
    images = samples * len(biased)
    tests = {
        "Frechet distance": compare(first, second),
        "at equal class shares": compare_stratified(first, second),
        "kernel distance": compare_kernels([(first[seed], second[seed]) for seed in first]),
    }
    results = {
        name: Finding(test.delta, test.error, float(p_value(test.z)), images)
        for name, test in tests.items()
        if test is not None
    }
    classes = compare_classes(first, second)
    if classes is not None:
        # The excess of a noncentral chi2 over its degrees of freedom grows with N: it estimates the noncentrality. The
        # one that is seen with a chance of 80 % has the place of (DETECTABLE error)^2.
        freedom = max(classes.freedom, 1)
        excess = math.sqrt(max(classes.statistic - freedom, 0.0))
        needed = math.sqrt(float(chndtrinc(chdtri(freedom, 0.05), freedom, 0.2)))
        results["class proportions"] = Finding(excess, needed / DETECTABLE, classes.p, images)
    for name in biased[0].numbers:
        differences = np.array([a.numbers[name] - b.numbers[name] for a, b in zip(biased, unbiased, strict=True)])
        results[name] = _of_seeds(differences, images)
    return results


def _of_seeds(differences: NDArray[np.float64], images: int) -> Finding:
    """Return the t-test of differences by seed."""
    n, effect = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    p = 2 * float(stdtr(n - 1, -abs(effect) / error)) if error > 0 else 1.0
    return Finding(effect, error, p, images)


def seen_from(surveyed: Mapping[tuple[str, float], Mapping[str, Finding]], kind: str, instrument: str) -> str:
    """Return the smallest size from which on an instrument sees a bias, after Holm's correction over all tests.

    The text is that size, the direction (+ where the measure rises), and the N that suffices for it; or a dash, and the
    N that would suffice for the largest size.
    """
    keys = [(bias, name) for bias, by_name in surveyed.items() for name in by_name]
    adjusted = dict(zip(keys, holm([surveyed[bias][name].p for bias, name in keys]), strict=True))
    sizes = [size for at, size in surveyed if at == kind]
    seen = [s for s in sizes if all(adjusted[(kind, u), instrument] < LEVEL for u in sizes if u >= s)]
    size = min(seen, default=max(sizes))
    finding = surveyed[kind, size][instrument]
    needed = f"N {_rounded(finding.enough)}" if finding.enough < _HOPELESS else "no N"
    if not seen:
        return f"- ({_share(size)}: {needed})"
    return f"{_share(size)} {'+' if finding.effect > 0 else '-'} ({needed})"


def _share(size: float) -> str:
    return f"{100 * size:g} %"


def _rounded(number: float) -> str:
    """Return a number of images with two digits."""
    return f"{float(f'{number:.2g}'):,.0f}" if number >= 10 else "< 10"


def repairs(trial: Trial, size: float) -> Iterator[list[str]]:
    """Yield what epsilon scaling leaves of each bias: rows of kind, divisor, and three instruments before and after.

    The divisor is the published one, the mean over levels of the model's own norm of eps, free running over teacher
    forced; for a scaled eps also the one that undoes it.
    """
    for kind in KINDS:
        plain = trial.walks(kind, size)
        norms = float(np.mean([walked.numbers[_NORM] for walked in plain]))
        divisors = {"own norms": math.exp(norms)} | ({"the bias": 1 + size} if kind == "scale" else {})
        before = findings(plain, trial.unbiased, trial.samples)
        for name, b in divisors.items():
            after = findings(trial.walks(kind, size, b), trial.unbiased, trial.samples)
            cells = [f"{_told(before[measure])} / {_told(after[measure])}" for measure in _REPAIRED]
            yield [f"{kind} {_share(size)}", f"{b:.4f} ({name})", *cells]


def _told(finding: Finding) -> str:
    return f"{finding.effect:+.3f} ± {finding.error:.3f}"


_NORM = "eps norm, free / forced"
_REPAIRED = ("Frechet distance", "variance at the end", "spectrum at the end")
_HOPELESS = 1e7  # images: nobody draws so many


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _print(trial: Trial, sizes: Sequence[float]) -> None:
    """Print both tables of one step count in Markdown."""
    surveyed = {
        (kind, size): findings(trial.walks(kind, size), trial.unbiased, trial.samples)
        for kind in KINDS
        for size in sizes
    }
    names = list(dict.fromkeys(name for by_name in surveyed.values() for name in by_name))
    print(f"\n{trial.steps} steps, {trial.seeds} x {trial.samples} images:\n")
    print(_line(["instrument", *KINDS]) + "\n" + _line(["---"] * (1 + len(KINDS))))
    for name in names:
        print(_line([name, *(seen_from(surveyed, kind, name) for kind in KINDS)]), flush=True)
    print("\n" + _line(["bias", "divisor", *_REPAIRED]) + "\n" + _line(["---"] * (2 + len(_REPAIRED))))
    for row in repairs(trial, max(sizes)):
        print(_line(row), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print, for each step count, which instrument sees which bias from which size on, and what scaling repairs."""
    parser = OneLineParser(prog="python -m bench.injected", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20], metavar="N", help="(default 10 20)")
    parser.add_argument("--samples", type=int, default=256, metavar="N", help="a seed (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=10, metavar="S", help="(default %(default)s)")
    parser.add_argument("--sizes", type=float, nargs="+", default=_SIZES, metavar="S", help="(default .01 .02 .05 .1)")
    args = parser.parse_args(argv)
    for flag, values, low, high in (
        ("--steps", args.steps, 2, 1000),
        ("--samples", [args.samples], FEWEST_SAMPLES, 10**6),
        ("--seeds", [args.seeds], _FEWEST, 10**4),
        ("--sizes", args.sizes, 0.001, 0.5),
    ):
        if not all(low <= value <= high for value in values):
            parser.error(f"{flag} must lie between {low} and {high:,}")
    for steps in args.steps:
        _print(Trial(steps, args.samples, args.seeds), args.sizes)
    return 0


if __name__ == "__main__":
    exit_with(main)
