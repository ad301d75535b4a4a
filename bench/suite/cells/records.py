"""The records of a cell: its shards are merged one at a time, in plan order, so memory does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.diffusion.types import Level
from bench.measure.instruments.floors import walk_ratios
from bench.measure.instruments.probes import WalkProbe
from bench.measure.instruments.step_table import PixelStatistics, Row, to_table
from bench.suite.cells.reference import Reference
from bench.suite.plan import Cell, Instruments

Arrays = dict[str, NDArray[Any]]
ARMS = ("free", "forced-train", "forced-heldout", "paired")
_PARTS = ("train", "heldout")


class Walked(Protocol):
    """What was recorded: a cell, or a loop that somebody else ran."""

    @property
    def remembers_class(self) -> bool:
        """Tell whether a paired walk shares the class of its x0."""

    def levels(self) -> Sequence[Level]:
        """Return the levels, noisiest first, the last one that which the walk ends at."""

    def calls(self) -> Mapping[tuple[int, int], Level]:
        """Return the level of each network call by (i, stage)."""


class DataStatistics(Protocol):
    """What records need of the data: a :class:`bench.suite.cells.reference.Reference` has it."""

    @property
    def statistics(self) -> PixelStatistics:
        """Return mean and variance per pixel."""

    @property
    def spectrum(self) -> NDArray[np.float64]:
        """Return the mean radial spectrum."""

    @property
    def haar(self) -> NDArray[np.float64]:
        """Return the mean Haar energies."""


class Records:
    """The merged records of a cell or recorded loop.

    Args:
        cell: whose.
        instruments: the levels and images that were measured.
        reference: the data's statistics.
    """

    def __init__(self, cell: Walked, instruments: Instruments, reference: DataStatistics) -> None:
        self.cell, self.instruments, self.reference = cell, instruments, reference
        self._arms: dict[str, Arrays] = {}
        self._errors: dict[str, list[NDArray[Any]]] = {part: [] for part in _PARTS}

    def add(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Merge one shard; shards come in plan order."""
        for arm in ARMS:
            part = {key.removeprefix(f"{arm}/"): value for key, value in arrays.items() if key.startswith(f"{arm}/")}
            if part:
                self._arms[arm] = WalkProbe.merge(self._arms[arm], part) if arm in self._arms else part
        for name, parts in self._errors.items():
            if f"errors/{name}" in arrays:
                parts.append(arrays[f"errors/{name}"])

    def moments(self) -> Arrays:
        """Return ``<arm>/<quantity>/count|mean|second``, the levels of the rows, and the data's own moments.

        ``i``, ``t``: solver indices and training indices the network saw; ``alpha_next``, ``sigma_next``: the level
        each row's state reached; ``data/mean|variance|spectrum|haar``: the training images'. With a learned variance
        also ``forced-train/fraction``, half precision, and ``recorded/eps_ratio|variance_ratio``, the floors that it
        gives, see :meth:`_recorded`.
        """
        levels, indices, calls = self.cell.levels(), self.instruments.indices, self.cell.calls()
        called = [calls[i, 0] for i in indices]
        reached = [levels[len(levels) - 1 - i] for i in indices]
        data = self.reference.statistics
        return {
            "i": np.array(indices),
            "t": np.array([level.t for level in called]),
            "alpha_next": np.array([level.alpha for level in reached]),
            "sigma_next": np.array([level.sigma for level in reached]),
            "data/mean": data.mean,
            "data/variance": data.variance,
            "data/spectrum": self.reference.spectrum,
            "data/haar": self.reference.haar,
            **{
                f"{arm}/{name}": value
                for arm, record in self._measured()
                for name, value in record.items()
                if not name.startswith("fraction/")
            },
            **self._recorded(),
        }

    def _recorded(self) -> Arrays:
        """Return the network's mean v per pixel, and what an exact denoiser of Gaussian data does with it.

        Ratios are of sums over pixels, free running over real noised data, one a row. They are absent where the data's
        covariance is not at hand.
        """
        record, cell, reference = self._arms.get("forced-train", {}), self.cell, self.reference
        if not isinstance(cell, Cell) or not isinstance(reference, Reference):  # a recorded loop
            return {}
        if "fraction/mean" not in record or not record["fraction/count"].all():
            return {}
        fraction, path = record["fraction/mean"].astype(np.float16), cell.levels()
        arrays: Arrays = {"forced-train/fraction": fraction}
        law = reference.gaussian(cell.model.description.schedule, cell.model.description.T)
        if law is None or law.vectors is None:
            return arrays
        indices = list(self.instruments.indices)  # ascending, and so is t
        t = np.array([path[len(path) - 2 - i].t for i in indices], dtype=float)
        v = fraction.reshape(len(t), -1).astype(np.float64)
        first = min(1, len(t) - 1)  # the step at i = 0 adds no noise, and v means nothing there
        law = law.recorded(t[first:], v[first:])
        ratios = walk_ratios(law, path, cell.solver())
        return arrays | {f"recorded/{name}": values[indices] for name, values in ratios.items()}

    def _measured(self) -> Iterator[tuple[str, Arrays]]:
        return ((arm, record) for arm, record in self._arms.items() if record["scalars/count"].any())

    def errors(self) -> Arrays:
        """Return the errors [levels, images, C, H, W], training images first, with their indices and parts."""
        calls = self.cell.calls()
        joined = [array for part in _PARTS for array in self._errors[part]]
        parts = [part for part in _PARTS for array in self._errors[part] for _ in range(array.shape[1])]
        return {
            "errors": np.concatenate(joined, axis=1),
            "i": np.array(self.instruments.error_indices),
            "t": np.array([calls[i, 0].t for i in self.instruments.error_indices]),
            "part": np.array(parts),
        }

    def table(self) -> pd.DataFrame:
        """Return the per-step table of the measured arms."""
        levels, calls, rows = self.cell.levels(), self.cell.calls(), list[Row]()
        for arm, record in self._measured():
            forgets = arm != "paired" or not self.cell.remembers_class
            data = self.reference.statistics
            rows += WalkProbe.result(arm, record, self.instruments.indices, levels, data, None, forgets, calls)
        return to_table(rows)
