"""Curves of ``--tune``: the distance over the values of a constant, and the value that was chosen.

``tuning/`` of a results folder holds ``<model>-<sampler>-<steps>-<parameter>.csv``, a row a value and seed, and
``chosen.csv``, a row a curve: the value taken. All values of a curve see the same noise under
one seed, so a value is held against the best one by the differences over the seeds that both have.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.output.entries import Output
from analysis.output.style import colours, panels, save
from analysis.records.files import LARGEST, MOST_COUNTED, Place, read_table
from analysis.records.load import Results

_SECTION = "Tuning"
_CHOSEN = "chosen.csv"
_CURVE = ["model", "sampler", "steps", "parameter"]
_TEXTS = dict.fromkeys(("model", "sampler", "parameter", "metric"), str)
_COLUMNS = [*_CURVE, "value", "seed", "n", "metric", "distance"]
_WHOLE = ("steps", "seed", "n")
_CURVE_COLOUR, _CHOSEN_COLOUR = colours(["curve", "chosen"]).values()


def read_curves(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the measured rows of all sound curves, and the chosen values; what is unsound becomes a problem."""
    places = {place.name: place for place in results.folder("tuning") if place.name.endswith(".csv")}
    chosen = places.pop(_CHOSEN, None)
    tables = []
    for path in places.values():
        try:
            tables.append(_read_curve(path))
        except (OSError, ValueError) as error:
            results.problem(f"{path} is damaged and left out ({error}); delete it and run --tune again")
    curves = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=_COLUMNS)
    return curves, _read_chosen(results, chosen, curves)


def _read_curve(path: Place) -> pd.DataFrame:
    table = _checked(path, _COLUMNS)
    name = "-".join(str(part) for part in table[_CURVE].iloc[0])
    if name != path.stem:
        raise ValueError(f"it is the record of {name}")
    if (table[_CURVE] != table[_CURVE].iloc[0]).any(axis=None):
        raise ValueError("it holds several curves")
    if table.duplicated(["value", "seed", "metric"]).any():
        raise ValueError("it has the same row twice")
    if table["distance"].isna().all():
        raise ValueError("it has no distances")
    return table


def _read_chosen(results: Results, path: Place | None, curves: pd.DataFrame) -> pd.DataFrame:
    """Return the chosen values of the curves, and say what is missing on either side."""
    nothing = pd.DataFrame(columns=[*_CURVE, "value"])
    if path is None:
        if len(curves):
            results.problem(f"tuning/{_CHOSEN} is missing, so that no value is marked; run --tune again to finish it")
        return nothing
    try:
        table = _checked(path, [*_CURVE, "value"])
        if table.duplicated(_CURVE).any():
            raise ValueError("it has the same row twice")
    except (OSError, ValueError) as error:
        results.problem(f"{path} is damaged and left out ({error}); delete it and run --tune again")
        return nothing
    measured = set(curves[_CURVE].itertuples(index=False, name=None))
    has_curve = [key in measured for key in table[_CURVE].itertuples(index=False, name=None)]
    for row in table[~np.array(has_curve)].to_dict("records"):
        name = "-".join(str(row[part]) for part in _CURVE)
        results.problem(f"{path} names {name}, of which there is no sound curve; run --tune again")
    return table[has_curve]


def _checked(path: Place, columns: list[str]) -> pd.DataFrame:
    """Return a table whose columns are there, with printable texts and finite numbers; a distance may be empty.

    Raises:
        OSError, ValueError: saying what is wrong.
    """
    table = read_table(path, dtype=_TEXTS, keep_default_na=False, na_values={"distance": ["", "nan"]})
    missing = [name for name in columns if name not in table]
    if missing or not len(table):
        raise ValueError(f"it has no column {missing[0]!r}" if missing else "it has no rows")
    return pd.DataFrame({name: _column(table[name], name) for name in columns})


def _column(column: pd.Series, name: str) -> pd.Series:
    """Return a column as texts, whole numbers or numbers, or raise ValueError with its first unsound row."""
    sound = column.map(lambda text: bool(text) and str(text).isprintable())
    if name not in _TEXTS:
        column, empty = pd.to_numeric(column, errors="coerce").astype(float), column.isna()
        sound = column.abs() < LARGEST
        if name in _WHOLE:
            sound &= (column >= (name != "seed")) & (column % 1 == 0) & (column <= MOST_COUNTED)
        sound |= (name == "distance") & empty
    if not sound.all():
        raise ValueError(f"row {int(np.flatnonzero(~sound)[0]) + 2} has no sound {name}")
    return column.astype(int) if name in _WHOLE else column


def tuning_table(curves: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return one row a value of a curve, in ascending order.

    ``distance`` is the mean over seeds and ``sd`` their standard deviation; ``difference`` that from the value with
    the lowest mean over the seeds both have, with its standard error (empty for one seed); ``chosen`` the value chosen.
    """
    order = ["model", "sampler", "parameter", "metric", "steps"]
    measured = curves[curves["distance"].notna()].sort_values(order, kind="stable")
    picked = dict(zip(chosen[_CURVE].itertuples(index=False, name=None), chosen["value"], strict=True))
    rows: list[dict[str, Any]] = []
    for key, curve in measured.groupby([*_CURVE, "metric"], sort=False):
        assert isinstance(key, tuple)
        place = dict(zip([*_CURVE, "metric"], key, strict=True))
        wide = curve.pivot(index="seed", columns="value", values="distance")
        best = wide.mean().idxmin()
        for value in wide.columns:
            distances, apart = wide[value].dropna(), (wide[value] - wide[best]).dropna()
            error = apart.std() / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
            rows.append(
                {
                    **place, "value": value, "seeds": len(distances),
                    "n": curve.loc[curve["value"] == value, "n"].iloc[0],
                    "distance": distances.mean(), "sd": distances.std(),
                    "difference": apart.mean(), "difference_error": error,
                    "best": "yes" if value == best else "no", "chosen": picked.get(key[:4], math.nan),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def draw_tuning(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Distance over a constant's values, a panel a curve; band: two standard errors of the difference from the best."""
    curves = [curve for _, curve in table.groupby([*_CURVE, "metric"], sort=False)]
    columns = min(len(curves), next((number for number in (3, 4, 2) if len(curves) % number == 0), 3))
    with panels(-(-len(curves) // columns), columns) as (figure, axes):
        figure.set_figheight(0.7 + 1.9 * len(axes))
        for position, (axis, curve) in enumerate(zip(axes.flat, curves, strict=False)):
            _draw(axis, curve)
            if position % columns == 0 or table["metric"].nunique() > 1:
                axis.set_ylabel(curve["metric"].iloc[0])
        for axis in axes.flat[len(curves) :]:
            axis.set_visible(False)
        _key(figure, table)
        return save(figure, folder, "tuning")


def _draw(axis: Axes, curve: pd.DataFrame) -> None:
    first = curve.iloc[0]
    value, distance, error = (curve[name] for name in ("value", "distance", "difference_error"))
    axis.plot(value, distance, color=_CURVE_COLOUR, marker="o", markersize=2.5)
    if error.notna().any():
        low, high = distance - 2 * error, distance + 2 * error
        axis.fill_between(value, low, high, color=_CURVE_COLOUR, alpha=0.18, linewidth=0)
    best = curve[curve["best"] == "yes"]
    axis.plot(best["value"], best["distance"], color=_CURVE_COLOUR, marker="o", markerfacecolor="white", markersize=5)
    title = f"{first['model']}\n{first['sampler']}, {first['steps']} steps"
    if not math.isnan(first["chosen"]):
        axis.axvline(first["chosen"], color=_CHOSEN_COLOUR, linestyle="--")
        title += f": {first['parameter']} = {first['chosen']:.5g}"
    axis.set_title(title)
    axis.set_xlabel(first["parameter"])
    axis.xaxis.set_major_locator(MaxNLocator(4))


def _key(figure: Figure, table: pd.DataFrame) -> None:
    """Explain marks and lines, of those that occur."""
    mark: dict[str, Any] = {"color": _CURVE_COLOUR, "marker": "o"}
    handles = [
        Line2D([], [], **mark, markersize=2.5, label="mean over seeds"),
        Line2D([], [], **mark, markerfacecolor="white", linestyle="", label="lowest"),
    ]
    if table["chosen"].notna().any():
        handles.append(Line2D([], [], color=_CHOSEN_COLOUR, linestyle="--", label="the value taken"))
    columns = len(handles) if figure.get_figwidth() > 4 else 2
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)


def analyse(results: Results, out: Output) -> None:
    """Write and draw the curves, where constants were tuned."""
    curves, chosen = read_curves(results)
    if not len(curves):
        return
    table = tuning_table(curves, chosen)
    sizes, seeds = ("/".join(str(n) for n in sorted(table[name].unique())) for name in ("n", "seeds"))
    metrics = ", ".join(table["metric"].unique())
    caption = (
        f"{metrics} over the values of a constant: mean over seeds, lower is better. Band: two standard errors of the"
        " difference from the value with the lowest mean (open circle, where it is 0), paired over the seeds that both"
        " have, since all values see the same noise; how far the curve as a whole may lie higher or lower is no part of"
        " it, and one seed has no band. Dashed: the value taken, the best one or the minimum of a parabola around"
        f" it. The lowest of many means is lower than what it will be on other seeds. N = {sizes} samples a seed,"
        f" {seeds} seeds a value."
    )
    out.figure(_SECTION, draw_tuning(table, out.figures), "Tuned constants", caption)
    out.table(_SECTION, "tuning", table, "Every value of the tuned constants", caption)
