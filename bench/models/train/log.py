"""The log of a training: ``loss.csv``, a progress bar, and TensorBoard scalars if asked for."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from bench.files.writing import write_bytes
from bench.models.train.recipes import Recipe
from bench.runtime.errors import CheckpointError, UserError
from bench.runtime.progress import progress_bar
from bench.runtime.tensorboard import open_writer

LOG_EVERY = 50  # iterations
LOSSES = ("mse", "bound", "penalty")


class DivergedError(UserError):
    """A loss is no finite number any more; the message names the last iteration of its window."""


@dataclass(frozen=True)
class Window:
    """One row of the log: the iterations since the last one.

    Attributes:
        iteration: optimiser steps taken.
        images: images trained on.
        losses: means over the window, by :data:`LOSSES`.
        learning_rate: that of its last iteration.
        images_per_second: of all processes together, since the window began or the training was resumed.
    """

    iteration: int
    images: int
    losses: tuple[float, ...]
    learning_rate: float
    images_per_second: float


class TrainingLog:
    """Shows and writes windows. A context manager.

    Rows after ``iteration`` are dropped at the start: an interrupted training may have logged more often than it saved.

    Args:
        path: of ``loss.csv``.
        recipe: that of the training.
        iteration: where the training goes on.
        quiet: whether to show no progress bar.
        tensorboard: folder of scalars against images trained on, None for none.

    Raises:
        CheckpointError: ``path`` is no log.
        TensorBoardError: TensorBoard is not installed, or its folder cannot be written.
    """

    def __init__(self, path: Path, recipe: Recipe, iteration: int, quiet: bool, tensorboard: Path | None) -> None:
        self._path = path
        _rewind(path, iteration)
        first = iteration * recipe.batch + 1  # scalars from here on are of an interrupted training
        self._writer = None if tensorboard is None else open_writer(tensorboard, first)
        self._bar = progress_bar(shown=not quiet, total=recipe.iterations, initial=iteration, desc=recipe.name)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def add(self, window: Window) -> None:
        """Append a window.

        Raises:
            DivergedError: one of its losses is not finite; nothing is written.
        """
        if not all(map(math.isfinite, window.losses)):
            which = ", ".join(n for n, loss in zip(LOSSES, window.losses, strict=True) if not math.isfinite(loss))
            at = f"at iteration {window.iteration} or just before"
            raise DivergedError(f"the loss ({which}) is no finite number {at}; nothing from there on is saved")
        fresh = not self._path.exists()
        with self._path.open("a", newline="") as file:
            rows = csv.writer(file)
            if fresh:
                rows.writerow(["iteration", "images", *LOSSES])
            rows.writerow([window.iteration, window.images, *window.losses])
        if self._writer is not None:
            scalars = dict(zip(LOSSES, window.losses, strict=True))
            scalars |= {"learning_rate": window.learning_rate, "images_per_second": window.images_per_second}
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, window.images)
        self._bar.update(window.iteration - self._bar.n)
        self._bar.set_postfix_str(f"mse={window.losses[0]:.4f}", refresh=False)


def _rewind(path: Path, iteration: int) -> None:
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)  # the header and rows
    try:
        # A process that was killed while it wrote left a row without its end.
        rows = [line for line in lines[1:] if int(line.split(b",")[0]) <= iteration and line.endswith(b"\n")]
    except ValueError:
        raise CheckpointError(f"{path} is no log of a training; delete it or choose another --out") from None
    write_bytes(path, b"".join(lines[:1] + rows))
