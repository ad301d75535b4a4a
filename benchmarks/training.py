"""Time per training image by objective, as ratios to plain DDPM measured in one run: ``python benchmarks/training.py``.

Interleaved pairs, A B A B ..., and the median of their ratios, so that a machine whose speed drifts does no harm. Every
objective trains the same random network on the same images; a call is a few optimiser steps, all of a recipe's work.
The trainer draws the perturbation under every objective, so that draws agree, and takes the gradient penalty on an
eighth of each batch. All start half-way through, where scheduled sampling replaces its mean share. The first row holds
plain DDPM against itself: what it is off 1 by is the measurement's error.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from bench.data import load, to_unit
from bench.models.train.recipes import DIGITS_NETWORK, RECIPES, Recipe
from bench.models.train.trainer import Batches, Trainer

__all__ = ["main"]

_BASELINE = "adm"


def _steps(recipe: Recipe, iterations: int) -> Callable[[], None]:
    """Return a function that takes so many optimiser steps of a recipe, going on where the last call stopped."""
    trainer = Trainer(recipe, dict(DIGITS_NETWORK), torch.device("cpu"))
    trainer.iteration = recipe.iterations // 2
    batches = Batches(to_unit(load(recipe.dataset).part("train")), recipe.batch, recipe.seed)

    def run() -> None:
        for _ in range(iterations):
            trainer.step(*batches.at(trainer.iteration))

    return run


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table: objective, and its time per training image over DDPM's, median and range."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="interleaved pairs an objective (default %(default)s)")
    parser.add_argument("--iterations", type=int, default=2, help="optimiser steps a measurement (default %(default)s)")
    args = parser.parse_args(argv)
    baseline = _steps(RECIPES[_BASELINE], args.iterations)
    baseline()  # the first call pays for what later ones find ready
    print("| recipe | objective | time per image / ddpm | range |\n| --- | --- | --- | --- |")
    for name, recipe in RECIPES.items():
        ours = _steps(recipe, args.iterations)
        ours()
        ratios = []
        for _ in range(args.pairs):
            theirs = _seconds(baseline)
            ratios.append(_seconds(ours) / theirs)
        span = f"{min(ratios):.3f}..{max(ratios):.3f}"
        print(f"| {name} | {recipe.objective} | {statistics.median(ratios):.3f} | {span} |", flush=True)


if __name__ == "__main__":
    main()
