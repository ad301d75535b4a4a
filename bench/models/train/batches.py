"""What a training sees at each iteration: which images, in which order, and at which learning rate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.diffusion.noise import Purpose, uniform_words
from bench.models.train.recipes import Recipe


@dataclass(frozen=True)
class Part:
    """The images ``start`` .. ``stop`` - 1 of a batch of ``total``."""

    start: int
    stop: int
    total: int

    def __len__(self) -> int:
        return self.stop - self.start

    def of_first(self, count: int) -> int:
        """Return how many of the batch's first ``count`` images this part holds: its first ones."""
        return min(max(count - self.start, 0), len(self))


class Batches:
    """Endless shuffled batches: epoch e is a permutation drawn from (seed, e) alone.

    ``batch`` counts the images of a whole batch, of which :meth:`at` returns ``part``, all of it where that is None.
    """

    def __init__(self, images: Tensor, batch: int, seed: int, part: Part | None = None) -> None:
        self.images, self.batch, self.seed = images, batch, seed
        self.part = part or Part(0, batch, batch)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def at(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Return (images float32 [len(part), C, H, W], their running numbers int64 [len(part)]) of an iteration."""
        first = iteration * self.batch  # running numbers count the images shown since the start
        numbers = torch.arange(first + self.part.start, first + self.part.stop)
        chosen = [self._lookup(int(number)) for number in numbers]
        return self.images[chosen], numbers

    def _lookup(self, number: int) -> int:
        epoch, position = divmod(number, len(self.images))  # batches go on across the ends of epochs
        if epoch != self._epoch:
            members = torch.arange(len(self.images))
            # Sorting random words is a permutation; it is the same on every device and in every process.
            words = uniform_words(self.seed, members, Purpose.TRAIN_ORDER, epoch, 1)
            self._epoch, self._order = epoch, words[:, 0, 0].argsort(stable=True)
        return int(self._order[position])


def learning_rate(recipe: Recipe, iteration: int) -> float:
    """Return the rate of an iteration: linear warm-up, then linear decay to a hundredth, or none."""
    rising = min(1.0, (iteration + 1) / recipe.warmup)
    if recipe.decay == "constant":
        return recipe.learning_rate * rising
    falling = 1.0 - 0.99 * iteration / recipe.iterations
    return recipe.learning_rate * rising * falling
