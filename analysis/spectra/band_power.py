"""Power in frequency bands along sampling, pooled over seeds, with standard errors: ring spectra and Haar sub-bands.

Both are mean squares of orthonormal coefficients, so both have the closed form ``alpha^2 S_data + sigma^2`` for real
noised data, and white unit noise gives 1 in every band. The state a free-running sampler reaches is compared with that
closed form; its x0_hat, which is rightly smoother than the data, only with the x0_hat of teacher-forced steps at the
same level. Ratios are natural logarithms: below 0 power is missing.

Free-running samples of several seeds are more samples. Teacher-forced images are the same at every seed, only their
noise differs; where x0_hat hardly depends on the noise a second seed adds nothing, so the standard error of the forced
mean is that of one seed's images: an upper bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.output.selection import EXACT, models_of
from analysis.output.style import EXACT_KEY, LineRow, exact_band, label_panels, line_key, line_panels, reference
from analysis.records.experiments import read_exact_spectra
from analysis.records.load import CellRecord, Results, ResultsError

_KEYS = ["model", "sampler", "steps", "i", "t", "band"]
_PLACE = [name for name in _KEYS if name != "t"]
_ARMS = {"state": "free/{}_state", "x0_hat": "free/{}_x0", "forced": "forced-train/{}_x0"}

BAND_NOTE = (
    "Dashed and grey: exact denoisers of Gaussian data and of other stand-ins for the data, where they were walked. "
    "Shaded: two standard errors of the first model; those of the others are alike. All models share noise and images,"
    " so differences between them are surer than the band. "
)

LABELS = {"state": r"$x_t$: log(sampled / true)", "x0_hat": r"$\hat{x}_0$: log(free / forced)"}

CSV_LEVELS = 12  # a walk: the reference run has hundreds of walks, and git holds their table

Floats = NDArray[np.float64]


def band_table(results: Results, kind: str) -> pd.DataFrame:
    """Return one row a model, sampler, step count, level and band; state quantities are those the step at i reached.

    ``state_log_ratio`` = log(mean power of the state / (alpha^2 S_data + sigma^2)); ``x0_hat_log_ratio`` = log(mean
    power of x0_hat free running / teacher forced). With s = sqrt((second - mean^2) / (N - 1)), a mean power's standard
    error over N images, that of the first is s / mean, that of the second the root of the sum of two such squares.
    ``n`` counts samples over all seeds, ``n_forced`` the teacher-forced images, the same at every seed.
    ``state_exact_<law>``, ``x0_hat_exact_<law>``: the log ratios of exact denoisers on the same levels, the latter free
    running over teacher forced as well.

    Args:
        results: the results folder.
        kind: ``spectrum`` or ``haar``; bands are numbered as recorded.
    """
    cells = results.each(lambda record: _cell(record, kind))
    if not cells:
        return pd.DataFrame()
    pooled = _pooled(pd.concat(cells, ignore_index=True))
    table = pooled[_KEYS].assign(n=pooled["state_count"].astype(int))
    table["n_forced"] = (pooled["forced_count"] / pooled["seeds"]).astype(int)
    scale = {name: _relative_error(pooled, name) for name in _ARMS}
    table["state"] = pooled["state_mean"]
    table["state_log_ratio"] = _log_ratio(pooled["state_mean"], pooled["truth"])
    table["state_log_ratio_se"] = scale["state"]
    table["x0_hat"] = pooled["x0_hat_mean"]
    table["x0_hat_log_ratio"] = _log_ratio(pooled["x0_hat_mean"], pooled["forced_mean"])
    table["x0_hat_log_ratio_se"] = np.hypot(scale["x0_hat"], scale["forced"])
    exact = _exact(results, kind)
    if exact.empty:
        return table
    table = table.assign(truth=pooled["truth"]).merge(exact, on=_PLACE, how="left")
    for law in EXACT:
        if f"{law}_state" in table:
            table[f"state_exact_{law}"] = _log_ratio(table[f"{law}_state"], table["truth"])
            table[f"x0_hat_exact_{law}"] = _log_ratio(table[f"{law}_x0"], table[f"{law}-forced_x0"])
    return table[[name for name in table if name not in exact.columns.difference(_PLACE) and name != "truth"]]


def _exact(results: Results, kind: str) -> pd.DataFrame:
    """Return the band energies of the exact denoisers on each model's levels, a column ``<arm>_<source>``."""
    exact, tables = read_exact_spectra(results.folder("exact"), results.problem), []
    first = {(r.cell["model"], r.cell["sampler"], r.cell["steps"]): r.cell for r in reversed(results.cells)}
    for (model, sampler, steps), cell in first.items():
        for settings, arrays in exact:
            if any(cell.get(name) != value for name, value in settings.items()):
                continue
            names = [name for name in arrays if name.split("/")[-1].startswith(f"{kind}_")]
            columns = {name.replace(f"/{kind}", ""): arrays[name].ravel() for name in names}
            bands = arrays[names[0]].shape[1] if names else 0
            i, band = np.repeat(arrays["i"], bands), np.tile(np.arange(bands), len(arrays["i"]))
            place = {"model": model, "sampler": sampler, "steps": steps, "i": i, "band": band}
            tables.append(pd.DataFrame(place | columns))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _cell(record: CellRecord, kind: str) -> pd.DataFrame | None:
    """Return a cell's counts, means and second moments, one row a level and band; None where nothing was measured."""
    arrays = record.moments
    i, data = (arrays.get(name) for name in ("i", f"data/{kind}"))
    if i is None or data is None or not i.size:
        return None
    levels, bands = i.size, data.size
    forced = any(name.startswith("forced-train/") for name in arrays)

    def checked(name: str, *shape: int) -> Floats:
        return _checked(record, arrays.get(name), name, shape)

    alpha, sigma = (checked(name, levels)[:, None] for name in ("alpha_next", "sigma_next"))
    truth = alpha**2 * checked(f"data/{kind}", bands) + sigma**2  # of real noised data
    columns = {
        "i": np.repeat(checked("i", levels).astype(int), bands),
        "t": np.repeat(checked("t", levels), bands),
        "band": np.tile(np.arange(bands), levels),
        "truth": truth.ravel(),
    }
    for arm, pattern in _ARMS.items():
        name = pattern.format(kind)
        if arm == "forced" and not forced:
            columns |= {f"forced_{moment}": np.zeros(levels * bands) for moment in ("count", "mean", "second")}
            continue
        columns[f"{arm}_count"] = np.repeat(checked(f"{name}/count", levels), bands)
        for moment in ("mean", "second"):
            columns[f"{arm}_{moment}"] = checked(f"{name}/{moment}", levels, bands).ravel()
    return pd.DataFrame(columns).assign(**record.key())


def _checked(record: CellRecord, array: NDArray[Any] | None, name: str, shape: tuple[int, ...]) -> Floats:
    """Return an array of ``moments.npz`` that must have a shape and finite values of 0 or more."""
    sound = array is not None and array.shape == shape and array.dtype.kind in "iuf"
    if array is None or not sound or not np.isfinite(array).all() or (array < 0).any():
        expected = f"{name} is not {' x '.join(map(str, shape))} finite numbers of 0 or more"
        raise ResultsError(f"{record.folder / 'moments.npz'} is damaged ({expected}); delete the cell and run again")
    return np.asarray(array, dtype=np.float64)


def _pooled(cells: pd.DataFrame) -> pd.DataFrame:
    """Pool counts and moments over seeds, each image with the same weight."""
    sums = cells[[*_KEYS, "truth"]].assign(seeds=1)
    for arm in _ARMS:
        count = cells[f"{arm}_count"]
        sums[f"{arm}_count"] = count
        for moment in ("mean", "second"):
            sums[f"{arm}_{moment}"] = count * cells[f"{arm}_{moment}"]
    pooled = sums.groupby(_KEYS, sort=False, observed=True).sum().reset_index()
    pooled["truth"] /= pooled["seeds"]
    for arm in _ARMS:
        count = pooled[f"{arm}_count"].clip(lower=1)
        for moment in ("mean", "second"):
            pooled[f"{arm}_{moment}"] /= count
    return pooled


def _relative_error(pooled: pd.DataFrame, arm: str) -> pd.Series:
    """Return a mean power's standard error over the power, which is that of its logarithm; NaN below two images."""
    mean, second, n = (pooled[f"{arm}_{name}"] for name in ("mean", "second", "count"))
    variance = (second - mean**2).clip(lower=0) * n / (n - 1).where(n > 1)
    independent = n / pooled["seeds"] if arm == "forced" else n  # forced images are the same at every seed
    return (variance / independent.where(n > 1)) ** 0.5 / mean.where(mean > 0)


def _log_ratio(value: pd.Series, truth: pd.Series) -> pd.Series:
    """Return log(value / truth), NaN where a band is empty."""
    return pd.Series(np.log(value.where(value > 0) / truth.where(truth > 0)))


def measured(table: pd.DataFrame) -> dict[str, str]:
    """Return the quantities that have a reference, with their labels: x0_hat has none without real images."""
    return {quantity: label for quantity, label in LABELS.items() if table[f"{quantity}_log_ratio"].notna().any()}


@contextmanager
def ratio_panels(
    table: pd.DataFrame, chosen: Mapping[str, pd.Series], along: str
) -> Iterator[tuple[Figure, list[LineRow]]]:
    """Open a figure of log ratios along a column, a row a quantity.

    Args:
        table: of ``band_table``.
        chosen: which of its rows a panel shows, by the panel's title.
        along: the column of the horizontal axis.
    """
    labels = measured(table)
    with line_panels(models_of(table), len(chosen), list(labels), main="state") as (figure, rows):
        for row in rows:
            for axis, part in zip(row.axes, chosen.values(), strict=True):
                ratio_lines(row, axis, table[part], row.quantity, along)
            row.axes[0].set_ylabel(labels[row.quantity].replace(": ", ":\n"))  # one line runs into the next row's
        label_panels(rows, chosen)
        line_key(figure, rows, exact_key(table))
        yield figure, rows


def ratio_lines(row: LineRow, axis: Axes, table: pd.DataFrame, quantity: str, along: str) -> None:
    """Draw the log ratios of a row's models along a column, and the band of two standard errors of the baseline.

    The models' bands are alike, for they share N, noise and images, and would hide each other.

    Args:
        row: the models and their colours.
        axis: where.
        table: of ``band_table``, one row a model and place along the column.
        quantity: ``state`` or ``x0_hat``.
        along: the column of the horizontal axis.
    """
    table = table.sort_values(along, kind="stable")
    error = table[f"{quantity}_log_ratio_se"].where(table["model"] == list(row.paint)[-1])
    row.bands(axis, (table.assign(t=table[along], value=table[f"{quantity}_log_ratio"], error=error), "-"))
    exact = table.drop_duplicates(along)
    laws = {f"exact_{law}": exact[f"{quantity}_exact_{law}"] for law in EXACT if f"{quantity}_exact_{law}" in exact}
    if laws:
        exact_band(axis, pd.DataFrame({"t": exact[along], **laws}))
    reference(axis, 0)


def exact_key(table: pd.DataFrame) -> Mapping[str, tuple[Any, str]]:
    """Return the entry of a legend for the exact denoisers, where there are any."""
    return EXACT_KEY if any("_exact_" in str(name) for name in table) else {}
