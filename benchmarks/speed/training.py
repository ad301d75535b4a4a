"""Time per training image of each objective beside plain DDPM's.

Every objective trains the same random network on the same images; a call is a few optimiser steps, all of a recipe's
work. All start half-way through, where scheduled sampling replaces its mean share of the inputs. The first row holds
plain DDPM against itself: what its ratio is off 1 by is the measurement's error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.data import load, to_unit
from bench.models.train.batches import Batches
from bench.models.train.recipes import DIGITS_NETWORK, RECIPES, Recipe
from bench.models.train.trainer import Trainer
from benchmarks.comparison import Comparison, Setting, compare

_BASELINE = "adm"
_ITERATIONS = 2  # optimiser steps a call


def training(setting: Setting) -> Iterator[Comparison]:
    """Compare every recipe on the digits with the baseline; a ratio of .5 says that it takes twice as long."""
    baseline = _steps(RECIPES[_BASELINE], setting)
    for name, recipe in RECIPES.items():
        if recipe.dataset == "digits":
            images = _ITERATIONS * recipe.batch
            yield compare(
                "training", f"{name}, {recipe.objective}", _BASELINE, _steps(recipe, setting), baseline, setting,
                pairs=5 * setting.pairs, images=images,
            )  # fmt: skip


def _steps(recipe: Recipe, setting: Setting) -> Callable[[], None]:
    """Return a function that takes the next optimiser steps of a recipe."""
    trainer = Trainer(recipe, dict(DIGITS_NETWORK), setting.device)
    trainer.iteration = recipe.iterations // 2
    batches = Batches(to_unit(load(recipe.dataset).part("train")), recipe.batch, recipe.seed)

    def run() -> None:
        for _ in range(_ITERATIONS):
            trainer.step(*batches.at(trainer.iteration))

    return run
