"""Arrays of a cell that several analyses read: errors of single images, and the terms of the kernel distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.records.load import CellRecord, Results, ResultsError

_FEWEST = 4  # images: below that neither a kurtosis nor a test says anything

Floats = NDArray[np.float64]
Row = tuple[str, str]  # model, sampler
Terms = Mapping[int, Floats]  # by seed: [N, 2], within and cross


@dataclass(frozen=True)
class SingleErrors:
    """The kept errors of a cell; the sign is that of Ning et al. 2023.

    Attributes:
        errors: x0 - x0_hat, [levels, images, C, H, W]; x0_hat as the sampler used it, that is clipped where it clips.
        i: solver indices [levels].
        t: training indices [levels].
    """

    errors: Floats
    i: NDArray[np.int64]
    t: Floats


def single_errors(record: CellRecord) -> SingleErrors | None:
    """Return a cell's kept errors, None where it has none or too few images for any statistic.

    Raises:
        ResultsError: the arrays do not fit together, or are not finite.
    """
    errors, i, t = (record.array("errors.npz", name) for name in ("errors", "i", "t"))
    if errors is None or i is None or t is None:
        return None
    numbers = all(array.dtype.kind in "iuf" for array in (errors, i, t))
    levels = errors.shape[:1]
    if not numbers or errors.ndim != 5 or not levels == i.shape == t.shape or not _finite(errors, i, t):
        raise ResultsError(
            f"{record.folder / 'errors.npz'} is damaged (errors is not levels x images x C x H x W finite numbers with"
            " an i and a t for each level); delete the cell and run again"
        )
    if errors.shape[1] < _FEWEST or not errors.size:
        return None
    return SingleErrors(-errors.astype(np.float64), i.astype(np.int64), t.astype(np.float64))


def _finite(*arrays: NDArray[np.generic]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


def kernel_terms(results: Results) -> dict[int, dict[Row, dict[int, Floats]]]:
    """Return the per-sample kernel terms by steps, (model, sampler) and seed."""
    found: dict[int, dict[Row, dict[int, Floats]]] = {}
    for cell, terms in results.each(_terms):
        found.setdefault(cell["steps"], {}).setdefault((cell["model"], cell["sampler"]), {})[cell["seed"]] = terms
    return found


def _terms(record: CellRecord) -> tuple[dict[str, Any], Floats] | None:
    terms = record.array("kernel.npy")
    if terms is None:
        return None
    sound = terms.ndim == 2 and terms.shape[1] == 2 and len(terms) > 0 and terms.dtype.kind in "iuf"
    if not sound or not np.isfinite(terms).all():
        raise ResultsError(
            f"{record.folder / 'kernel.npy'} does not hold two finite columns; delete the cell and run again"
        )
    return record.cell, terms
