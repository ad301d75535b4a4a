"""Arrays of a cell that several analyses read: errors of single images, and the terms of its distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.records.load import CellRecord, Results, ResultsError, frechet_name

_SAME_NOISE = 0.02  # differences of unit noise that was multiplied by a level in half precision
_FEWEST = 4  # images: below that neither a kurtosis nor a test says anything
Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]
Row = tuple[str, str]  # model, sampler


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
    arrays = record.arrays("errors.npz") or {}
    errors, i, t = (arrays.get(name) for name in ("errors", "i", "t"))
    if errors is None or i is None or t is None:
        return None
    sound = errors.ndim == 5 and errors.shape[:1] == i.shape == t.shape
    if not sound or not all(array.dtype.kind in "iuf" and np.isfinite(array).all() for array in (errors, i, t)):
        raise ResultsError(
            f"{record.folder / 'errors.npz'} is damaged (errors is not levels x images x C x H x W finite numbers with"
            " an i and a t for each level); delete the cell and run again"
        )
    if errors.shape[1] < _FEWEST or not errors.size:
        return None
    return SingleErrors(-errors.astype(np.float64), i.astype(np.int64), t.astype(np.float64))


@dataclass(frozen=True)
class CellTerms:
    """What the paired tests of one cell need; a part that was not computed is None.

    Attributes:
        distance: Frechet distance on pooled features, as tabled.
        frechet: its influence function [N, 2], with the moments of the even and of the odd samples.
        frechet_reference: its influence function [M, 2] over kept reference images, likewise; empty where there are
            none. The columns are equal in records that did not tell halves apart, which errs on the safe side.
        frechet_self: [N], half of what each sample's own weight adds to its influence; None in records without it.
        reference_n: number of reference images; None where nobody states it.
        kernel: [N, 2], each sample's mean kernel with the other samples and with the reference.
        within: [N, 2], the former over even and over odd partners.
        kernel_reference: [M, 2], each kept reference image's mean kernel with the even and with the odd samples.
        pooled_n: number of reference images that the kernel was taken with, where a published copy has terms of some of
            them alone.
        stratified_distance: Frechet distance at the reference's class shares, as tabled.
        stratified: the terms [N] of its error.
        classes: [N], the class that an embedded classifier sees in each sample.
        reference_classes: [K], the numbers of reference images by class.
        start: [N, 4], first numbers of the unit noise of each sample, of a recorded loop alone: the suite's own walks
            of one seed share their noise.
    """

    distance: float | None
    frechet: Floats | None = None
    frechet_reference: Floats | None = None
    reference_n: int | None = None
    kernel: Floats | None = None
    within: Floats | None = None
    kernel_reference: Floats | None = None
    pooled_n: int | None = None
    stratified_distance: float | None = None
    stratified: Floats | None = None
    classes: Floats | None = None
    reference_classes: Floats | None = None
    start: Floats | None = None
    frechet_self: Floats | None = None

    @property
    def samples(self) -> int:
        """Return N, 0 where there are no terms."""
        terms = self.frechet if self.kernel is None else self.kernel
        return 0 if terms is None else len(terms)

    def shares_noise(self, other: CellTerms) -> bool:
        """Tell whether every sample began from the noise of the other cell's, as far as half precision shows it."""
        if self.start is None or other.start is None:
            return self.start is other.start
        return self.start.shape == other.start.shape and bool(np.abs(self.start - other.start).max() < _SAME_NOISE)


Terms = Mapping[int, CellTerms]  # by seed


def cell_terms(results: Results) -> dict[int, dict[Row, dict[int, CellTerms]]]:
    """Return the terms of every cell that has any, by steps, (model, sampler) and seed."""
    terms: dict[int, dict[Row, dict[int, CellTerms]]] = {}
    for cell, one in results.each(_terms):
        terms.setdefault(cell["steps"], {}).setdefault((cell["model"], cell["sampler"]), {})[cell["seed"]] = one
    return terms


def is_noise_shared(results: Results) -> bool:
    """Tell whether the first samples of all models of a seed and step count are known to begin from the same noise."""
    for models in results.once(cell_terms).values():
        for seed in set().union(*models.values()):
            first, *others = (terms[seed] for terms in models.values() if seed in terms)
            if not all(first.shares_noise(cell) for cell in others):
                return False
    return True


def _terms(record: CellRecord) -> tuple[dict[str, Any], CellTerms] | None:
    kernel = _columns(record, "kernel.npy", record.array("kernel.npy"), 2)
    arrays = record.arrays("influence.npz") or {}
    if kernel is None and not {"frechet", "start"} & arrays.keys():
        return None
    scores = {score["metric"]: score["value"] for score in record.facts["scores"]}
    name, metric, start = "influence.npz", frechet_name(scores), arrays.get("start")
    n, pooled_n = (int(arrays[part]) if part in arrays else None for part in ("reference_n", "pooled_n"))
    terms = CellTerms(
        scores.get(metric),
        frechet=_columns(record, name, arrays.get("frechet"), 2),
        frechet_reference=_reference(record, arrays.get("frechet_reference")),
        reference_n=n,
        kernel=kernel,
        within=_columns(record, name, arrays.get("within"), 2),
        kernel_reference=_reference(record, arrays.get("kernel_reference")),
        pooled_n=pooled_n,
        stratified_distance=scores.get(f"{metric}_strat"),
        frechet_self=_columns(record, name, arrays.get("frechet_self"), 0),
        stratified=_columns(record, name, arrays.get("stratified"), 0),
        classes=_columns(record, name, arrays.get("classes"), 0),
        reference_classes=_columns(record, name, arrays.get("reference_classes"), 0),
        start=_columns(record, name, start, start.shape[1] if start is not None and start.ndim == 2 else 1),
    )
    return record.cell, terms


def _reference(record: CellRecord, array: NDArray[Any] | None) -> Floats | None:
    """Return terms of reference images, [M, 2]; those of all samples [M] stand for both halves."""
    if array is not None and array.ndim == 1:
        array = np.stack([array, array], axis=1)
    return np.empty((0, 2)) if array is not None and not array.size else _columns(record, "influence.npz", array, 2)


def _columns(record: CellRecord, file: str, array: NDArray[Any] | None, columns: int) -> Floats | None:
    """Return finite float64 numbers [n], or [n, columns] where there are some; None for none."""
    if array is None:
        return None
    shaped = array.ndim == 1 if not columns else array.ndim == 2 and array.shape[1] == columns and len(array) > 0
    if not shaped or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        what = f"{columns} finite columns" if columns else "finite numbers"
        raise ResultsError(f"{record.folder / file} does not hold {what}; delete the cell and run again")
    return array.astype(np.float64)


def recorded_ratios(results: Results) -> pd.DataFrame:
    """Return the floors that a network's own variance gives, mean over seeds; empty where none was recorded.

    Gaussian data, their exact mean of x0, and the variance that the network was seen to predict on real images.

    Columns:
        sampler, model, steps, i: a network call.
        eps_ratio: of the norm of eps, free running over real noised data.
        variance_ratio: of the state reached from there.
    """
    keys, ratios = ["sampler", "model", "steps", "i"], ["eps_ratio", "variance_ratio"]

    def read(record: CellRecord) -> pd.DataFrame | None:
        arrays = record.moments
        if not {"i", *(f"recorded/{name}" for name in ratios)} <= arrays.keys():
            return None
        levels = arrays.get("recorded/i", arrays["i"])  # a published copy has bands at fewer levels
        return pd.DataFrame({**record.key(), "i": levels, **{name: arrays[f"recorded/{name}"] for name in ratios}})

    if not (tables := results.each(read)):
        return pd.DataFrame(columns=[*keys, *ratios])
    return pd.concat(tables, ignore_index=True).groupby(keys, sort=False)[ratios].mean().reset_index()
