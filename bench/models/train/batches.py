"""What a training sees at each iteration: which images, in which order, at which indices and learning rate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.diffusion.noise import Purpose, uniform_words
from bench.models.train.recipes import Recipe

_HISTORY = 10  # losses remembered of each index
_UNIFORM = 0.001  # share of draws from all indices alike


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
    ``labels`` are the images' classes, int64 [N].
    """

    def __init__(
        self, images: Tensor, batch: int, seed: int, part: Part | None = None, labels: Tensor | None = None
    ) -> None:
        self.images, self.batch, self.seed, self.labels = images, batch, seed, labels
        self.part = part or Part(0, batch, batch)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def at(self, iteration: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return an iteration's images float32 [len(part), C, H, W], running numbers and labels, int64 [len(part)]."""
        first = iteration * self.batch  # running numbers count the images shown since the start
        numbers = torch.arange(first + self.part.start, first + self.part.stop)
        chosen = [self._lookup(int(number)) for number in numbers]
        return self.images[chosen], numbers, None if self.labels is None else self.labels[chosen]

    def _lookup(self, number: int) -> int:
        epoch, position = divmod(number, len(self.images))  # batches go on across the ends of epochs
        if epoch != self._epoch:
            members = torch.arange(len(self.images))
            # Sorting random words is a permutation; it is the same on every device and in every process.
            words = uniform_words(self.seed, members, Purpose.TRAIN_ORDER, epoch, 1)
            self._epoch, self._order = epoch, words[:, 0, 0].argsort(stable=True)
        return int(self._order[position])


class LossSecondMoment:
    """Draws index t in proportion to the root of the mean square of its last ten losses, and weighs its loss to match.

    Nichol & Dhariwal 2021, section 3.3; ``LossSecondMomentResampler`` of guided-diffusion.

    Until every index has ten losses all are equally likely. The expectation of the weighted loss is the mean over
    indices, whatever the history.

    Attributes:
        losses: float32 [T, 10], each row the losses of an index in the order they came, oldest first once it is full.
        counts: int64 [T], how many of them there are.
    """

    def __init__(self, T: int, device: torch.device | str = "cpu") -> None:
        self.losses = torch.zeros(T, _HISTORY, device=device)
        self.counts = torch.zeros(T, dtype=torch.int64, device=device)

    def probabilities(self) -> Tensor:
        """Return the probability of each index, float64 [T] on the host."""
        T = len(self.counts)
        if bool((self.counts < _HISTORY).any()):
            return torch.full((T,), 1 / T, dtype=torch.float64)
        size = self.losses.cpu().double().square().mean(1).sqrt()
        return (1 - _UNIFORM) * size / size.sum() + _UNIFORM / T

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices int64 [B] and the weights of their losses, float32 [B].

        Args:
            uniform: float64 [B] in [0, 1); the index is the quantile there, so that equal probabilities give the index
                ``floor(T u)``.
        """
        p = self.probabilities()
        t = torch.searchsorted(p.cumsum(0), uniform.cpu().double(), right=True).clamp(max=len(p) - 1)
        return t.to(uniform.device), (1 / (len(p) * p[t])).float().to(uniform.device)

    def add(self, t: Tensor, losses: Tensor) -> None:
        """Remember the unweighted losses [B] of indices t [B], one after another."""
        for index, loss in zip(t.tolist(), losses.tolist(), strict=True):
            count = int(self.counts[index])
            if count < _HISTORY:
                self.losses[index, count] = loss
                self.counts[index] += 1
            else:
                self.losses[index] = torch.cat([self.losses[index, 1:], self.losses.new_tensor([loss])])

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed training needs."""
        return {"losses": self.losses, "counts": self.counts}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is none.
        """
        losses, counts = state["losses"], state["counts"]
        fits = losses.shape == self.losses.shape and counts.shape == self.counts.shape and counts.dtype == torch.int64
        if not (fits and bool(losses.isfinite().all()) and bool(((counts >= 0) & (counts <= _HISTORY)).all())):
            raise ValueError("no history of losses")
        self.losses.copy_(losses)
        self.counts.copy_(counts)


def learning_rate(recipe: Recipe, iteration: int) -> float:
    """Return the rate of an iteration: linear warm-up, then linear decay to a hundredth, or none."""
    rising = min(1.0, (iteration + 1) / recipe.warmup)
    if recipe.decay == "constant":
        return recipe.learning_rate * rising
    falling = 1.0 - 0.99 * iteration / recipe.iterations
    return recipe.learning_rate * rising * falling
