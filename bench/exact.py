"""What an exact denoiser of Gaussian data does with few steps, without any network: ``python -m bench.exact``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.data import DATASETS, load
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM, Ancestral, Solver
from bench.measure.instruments.floors import walk_ratios
from bench.measure.instruments.gaussian import LinearGaussian
from bench.measure.quality.embedded_statistics import WITH_STATISTICS, unseen
from bench.runtime.errors import OneLineParser, UserError
from bench.runtime.signals import exit_with
from bench.suite.cells.reference import Reference

_SCHEDULE, _T = "cosine", 1000
_SOLVERS: dict[str, Solver] = {
    "ddpm, learned": Ancestral("learned"),
    "ddpm, fixed-small": Ancestral("fixed-small"),
    "ddpm, fixed-large": Ancestral("fixed-large"),
    "ddim": DDIM(),
}


def law_of(dataset: str, data_dir: Path | None) -> LinearGaussian:
    """Return the Gaussian with the mean and covariance of a dataset's training images.

    Without ``data_dir`` CIFAR-10's is that of the statistics that the package keeps: of 32x32 pixels its eigenvalues.

    Raises:
        UserError: the data is not there, or its images are too large for a covariance.
    """
    data = unseen(dataset) if data_dir is None and dataset in WITH_STATISTICS else load(dataset, data_dir)
    law = Reference(data, None).gaussian(_SCHEDULE, _T)
    if law is None:
        raise UserError(f"the images of {dataset} have too many values for a covariance; use smaller ones")
    return law


def gaps(law: LinearGaussian, steps: int, solver: Solver) -> tuple[float, float, float]:
    """Return what a free-running walk has over real noised data, each as a ratio.

    Returns:
        The norm of eps, its geometric mean over all levels but the least noisy; the norm of eps at that level; the
        variance of the finished images.
    """
    ratios = walk_ratios(law, levels(_SCHEDULE, _T, steps), solver)
    eps = ratios["eps_ratio"]
    return math.exp(np.log(eps[1:]).mean()), float(eps[0]), float(ratios["variance_ratio"][0])


def main(argv: Sequence[str] | None = None) -> int:
    """Print norms and end variance of an exact denoiser of Gaussian data over those of real data; cosine, T = 1000."""
    parser = OneLineParser(prog="python -m bench.exact", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--dataset", choices=DATASETS, default="digits", help="(default %(default)s)")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="its images; the learned variance needs them")
    parser.add_argument("--steps", type=_steps, nargs="+", default=[10, 20, 50, 100], metavar="N")
    args = parser.parse_args(argv)
    law = law_of(args.dataset, args.data_dir)
    print("| sampler | steps | norm of eps but at the least noisy level, % above 1 | at that level | end variance |")
    print("|---" * 5 + "|")
    for name, solver in _SOLVERS.items():
        if name.endswith("learned") and law.vectors is None:
            print(f"| {name} | | needs the images: --data-dir | | |")
            continue
        for steps in args.steps:
            norm, last, variance = gaps(law, steps, solver)
            print(f"| {name} | {steps} | {100 * (norm - 1):+.2f} | {last:.2f} | {variance:.2f} |", flush=True)
    return 0


def _steps(text: str) -> int:
    steps = int(text)
    if not 2 <= steps <= _T:
        raise argparse.ArgumentTypeError(f"{text} steps: take 2 to {_T}")
    return steps


if __name__ == "__main__":
    exit_with(main)
