"""One style for all figures: column width, colours that colour-blind readers can tell apart, PNG and, if asked, PDF."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: works without a display

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image

from analysis.output.selection import EXACT
from analysis.output.writing import replacing

# Okabe & Ito 2008, without black (kept for exact references) and yellow (too pale on white).
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#8B5E3C")
_MARKERS = "osD^vPX*<>pd"  # hexagons and octagons are too alike
_MOST_LINES = 4  # models in one panel
_LETTERS, _HANDLE = 19, 7  # of a legend: letters an inch, and those a handle takes
_TICKS_A_SIDE = 4  # intervals between them, at most
_CLEAR = 1.6  # ratio of step counts whose labels do not touch
ARM_LINES = {"free": "-", "forced-train": "--", "forced-heldout": ":", "paired": "-."}

# Gaussian data with the network's own variance, in the model's colour.
RECORDED: dict[str, Any] = {"linestyle": (0, (6, 1.5, 1, 1.5, 1, 1.5)), "linewidth": 0.9}
RECORDED_KEY = {"Gaussian data, network's variance": (RECORDED["linestyle"], "0.35")}
EXACT_KEY = {"exact denoisers (dashed: Gaussian data)": ("--", "black")}

# EDM levels: records name one by a ``t`` from 0 at sigma .002 to 999 at sigma 80, linear in sigma^(1/7) (Karras et al.
# 2022, eq. 5). It is a place on an axis and no training index, so figures print sigma.
_EDM_SAMPLERS = ("euler", "heun")
_RHO = 7.0
_LOW, _HIGH = 0.002 ** (1 / _RHO), 80.0 ** (1 / _RHO)
_LAST = 999.0
_TICKS = (50.0, 5.0, 0.5, 0.02)  # about evenly spaced on that scale, clear of the ends where panels meet

_SETTINGS: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.titley": 1.0,  # where it is anyway; else each drawing looks for it anew
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": ".15",
    "grid.color": ".8",
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.alpha": 0.3,
    "pdf.fonttype": 42,
    "figure.dpi": 150,  # of the layout too, so that PNG has the texts' sizes from it
    "savefig.dpi": 150,
}


def colours(names: Sequence[str]) -> dict[str, str]:
    """Give each name a colour, the same for the same sequence of names."""
    return {name: _PALETTE[position % len(_PALETTE)] for position, name in enumerate(names)}


def markers(names: Sequence[str]) -> dict[str, str]:
    """Give each name a shape of its own: where shapes run out, the name's number."""
    return {name: _MARKERS[k] if k < len(_MARKERS) else f"${k + 1}$" for k, name in enumerate(names)}


@contextmanager
def panels(rows: int, columns: int, **settings: Any) -> Iterator[tuple[Figure, Any]]:
    """Open a figure of rows x columns panels, 3.4 inches wide for one column and 7 for more."""
    with plt.rc_context(_SETTINGS):
        size = (3.4 if columns == 1 else 7.0, 0.5 + (1.9 if rows < 3 else 1.35) * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **settings)
        for axis in axes.flat:
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_locator(MaxNLocator(_TICKS_A_SIDE, steps=[1, 2, 2.5, 5, 10]))
        try:
            yield figure, axes
        finally:
            plt.close(figure)


@dataclass(frozen=True)
class LineRow:
    """A row of panels: the quantity it shows, and its models with their colours, the baseline last and so on top.

    Each line is thinner than those below it, so that of lines that coincide all are visible.
    """

    axes: list[Axes]
    quantity: str
    paint: Mapping[str, str]

    def width(self, model: str) -> float:
        """Return the line width of a model: the baseline, drawn last, has the thinnest line."""
        below = len(self.paint) - 1 - list(self.paint).index(model)
        return 1.1 + 0.5 * below

    def band(self, axis: Axes, model: str, table: pd.DataFrame, style: str = "-") -> None:
        """Draw a model's value along t with its band of two standard errors."""
        band(axis, table, self.paint[model], style, self.width(model))

    def bands(self, axis: Axes, *tables: tuple[pd.DataFrame, str]) -> None:
        """Draw what tables say of each model of the row, with their line styles, along t with its band."""
        for model in self.paint:
            for table, style in tables:
                self.band(axis, model, table[table["model"] == model], style)

    def line(self, axis: Axes, model: str, x: pd.Series | pd.Index, y: pd.Series) -> None:
        """Draw a model's values without a band."""
        axis.plot(x, y, color=self.paint[model], linewidth=self.width(model))


@contextmanager
def line_panels(
    models: Sequence[str], columns: int, quantities: Sequence[str] = ("",), main: str = "", **settings: Any
) -> Iterator[tuple[Figure, list[LineRow]]]:
    """Open a figure of lines, a row a quantity; more than four models get small panels of the main quantity alone.

    The first model is the baseline: each row has it and at most three others, so that no two lines look alike.
    """
    baseline, *others = models
    number = max(1, -(-len(others) // (_MOST_LINES - 1)))
    groups = [others[k * len(others) // number : (k + 1) * len(others) // number] for k in range(number)]
    paints = [
        dict(zip([*group, baseline], [*_PALETTE[1 : len(group) + 1], _PALETTE[0]], strict=True)) for group in groups
    ]
    several = len(groups) > 1
    shown = [main or quantities[-1]] if several else list(quantities)
    settings = {"sharex": True, "sharey": True if several else "row"} | settings
    with panels(len(groups) * len(shown), columns, **settings) as (figure, axes):
        places = [(quantity, paint) for paint in paints for quantity in shown]
        yield figure, [LineRow(list(row), *place) for row, place in zip(axes, places, strict=True)]


def line_key(figure: Figure, rows: Sequence[LineRow], styles: Mapping[str, tuple[Any, str]]) -> None:
    """Explain models and line styles above the panels; models beside their row where rows differ in them."""
    paints = [{model: row.paint[model] for model in reversed(list(row.paint))} for row in rows]
    if all(paint == paints[0] for paint in paints):
        key(figure, paints[0], styles)
        return
    for row, paint in zip(rows, paints, strict=True):
        handles = [Line2D([], [], color=colour, label=model) for model, colour in paint.items()]
        row.axes[-1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.05), frameon=False)
    key(figure, {}, styles)


def points(
    row: LineRow, axis: Axes, model: str, x: Sequence[float], y: Sequence[float], spread: Sequence[float]
) -> None:
    """Draw a model's values as marked points on a line, with bars where their spread is known."""
    bars = np.asarray(spread, dtype=float)
    axis.errorbar(
        x, y, yerr=np.nan_to_num(bars) if np.isfinite(bars).any() else None, color=row.paint[model],
        marker=markers(list(row.paint))[model], markersize=3.5, capsize=1.5, linewidth=row.width(model),
        elinewidth=0.8,
    )  # fmt: skip


def label_panels(rows: Sequence[LineRow], titles: Iterable[str] = (), along: str = "") -> None:
    """Title the columns, and name the horizontal axis below the lowest panels."""
    for axis, title in zip(rows[0].axes, titles, strict=False):
        axis.set_title(title)
    for axis in rows[-1].axes:
        axis.set_xlabel(along)


def label_levels(rows: Sequence[LineRow], counts: Sequence[int], sampler: str = "") -> None:
    """Title the columns with their step counts, and name the axis of levels, along which the noise falls."""
    label_panels(rows, [f"{count} steps" for count in counts], level_symbol(sampler))
    noisy_left(rows[0].axes[0], sampler)


def label_walk(rows: Sequence[LineRow], titles: Iterable[str], sampler: str, steps: int) -> None:
    """Title the columns, and name the axis of the levels of one walk, along which the noise falls."""
    label_panels(rows, titles, f"{level_symbol(sampler)} (levels of {steps} steps)")
    noisy_left(rows[0].axes[0], sampler)


def reference(axis: Axes, value: float) -> None:
    """Draw a horizontal line that means "nothing amiss", unlike any curve."""
    axis.axhline(value, color="0.5", linewidth=0.8, zorder=0)


def exact_band(axis: Axes, table: pd.DataFrame, less: float | pd.Series = 0.0) -> None:
    """Draw what exact denoisers show along t: Gaussian data dashed, the range over all stand-ins as a band."""
    columns = [f"exact_{law}" for law in EXACT if f"exact_{law}" in table]
    values = table[columns].sub(less, axis=0)
    table = table.drop_duplicates("t").sort_values("t")
    values = values.loc[table.index]
    if not columns or values.isna().all(axis=None):
        return
    axis.fill_between(table["t"], values.min(axis=1), values.max(axis=1), color="black", alpha=0.15, linewidth=0)
    if "exact_gaussian" in columns:
        axis.plot(table["t"], values["exact_gaussian"], color="black", linestyle="--")


def step_axis(axis: Axes, steps: Sequence[int]) -> None:
    """Make a logarithmic axis of step counts with a tick at each, and a label where it is clear of the next."""
    labelled = [max(steps)]
    for count in sorted(steps, reverse=True):
        if labelled[-1] / count >= _CLEAR:
            labelled.append(count)
    axis.set_xscale("log")
    axis.set_xticks(list(steps), [str(count) if count in labelled else "" for count in steps])
    axis.minorticks_off()


def dodged(steps: Sequence[int], position: int, number: int) -> list[float]:
    """Return step counts moved aside on a logarithmic axis, so that the error bars of ``number`` models lie apart."""
    return [count * 1.035 ** (position - (number - 1) / 2) for count in steps]


def pdf_too(wanted: bool) -> AbstractContextManager[None]:
    """Within, figures are saved as PDF too: for papers, and it takes as long again as everything else."""
    return plt.rc_context({"savefig.format": "pdf" if wanted else "png"})


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as ``<name>.png``, and within :func:`pdf_too` as ``<name>.pdf``; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    _spell_names(figure)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)  # once for all formats
        if any(axis.images for axis in figure.axes):
            engine.execute(figure)  # the first pass does not know the shape of pictures
    figure.set_layout_engine(None)  # else each format would draw twice
    paths = [folder / f"{name}.{suffix}" for suffix in dict.fromkeys(("png", matplotlib.rcParams["savefig.format"]))]
    for path in paths:
        with replacing(path) as partial:
            if path.suffix == ".png":
                _save_png(figure, partial)
            else:
                figure.savefig(partial, metadata={"CreationDate": None})
    return paths


def _save_png(figure: Figure, path: Path) -> None:
    """Write a PNG, with 128 colours where it holds no pictures: two fifths of the size, alike to the eye."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    colour = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    if not any(axis.images for axis in figure.axes):
        colour = colour.quantize(128, dither=Image.Dither.NONE)
    colour.save(path)


def _spell_names(figure: Figure) -> None:
    """Draw as they are the texts that only look like formulas, as the name of a model may."""
    parser = MathTextParser("path")
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        try:
            for line in text.get_text().split("\n"):  # as they are drawn
                if is_math_text(line):
                    parser.parse(line)
        except ValueError:
            text.set_parse_math(False)


def band(axis: Axes, table: pd.DataFrame, colour: str, style: str, width: float = 1.2) -> None:
    """Draw a value along t with a band of two standard errors."""
    axis.plot(table["t"], table["value"], color=colour, linestyle=style, linewidth=width)
    low, high = table["value"] - 2 * table["error"], table["value"] + 2 * table["error"]
    if np.isfinite(low).any():
        axis.fill_between(table["t"], low, high, color=colour, alpha=0.18, linewidth=0)


def key(figure: Figure, paint: dict[str, str], styles: Mapping[str, tuple[Any, str]]) -> None:
    """Explain colours (models) and line styles (label to style and colour) above the panels."""
    handles = [Line2D([], [], color=colour, label=name) for name, colour in paint.items()]
    handles += [Line2D([], [], color=colour, linestyle=style, label=name) for name, (style, colour) in styles.items()]
    if not handles:
        return
    width = max(len(str(handle.get_label())) for handle in handles) + _HANDLE
    columns = max(1, int(_LETTERS * figure.get_figwidth() / width))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), columns), frameon=False)


def is_edm(sampler: str) -> bool:
    """Tell whether a sampler, as records name it, walks on EDM levels."""
    return sampler in _EDM_SAMPLERS or sampler.endswith("(edm)")


def sigma_at(t: float) -> float:
    """Return the noise level at a place ``t`` on EDM's scale, 0 (sigma .002) to 999 (sigma 80)."""
    return float((_LOW + t / _LAST * (_HIGH - _LOW)) ** _RHO)


def level_symbol(sampler: str) -> str:
    """Return the letter of a horizontal axis of levels."""
    return r"$\sigma$" if is_edm(sampler) else "t"


def level_name(t: float, sampler: str) -> str:
    """Return a level as titles give it, e.g. ``t = 646`` or ``sigma = 7.9``."""
    return rf"$\sigma$ = {sigma_at(t):.2g}" if is_edm(sampler) else f"t = {t:.0f}"


def noisy_left(axis: Axes, sampler: str = "") -> None:
    """Let the noise fall from left to right, as sampling does; an axis of EDM levels gets sigma at its ticks.

    Args:
        axis: its horizontal axis is ``t`` of the records; panels that share it follow.
        sampler: of the walk; none where t is a training index.
    """
    if not axis.xaxis_inverted():
        axis.invert_xaxis()
    if is_edm(sampler):
        places = [_LAST * (sigma ** (1 / _RHO) - _LOW) / (_HIGH - _LOW) for sigma in _TICKS]
        axis.set_xticks(places, [f"{sigma:g}" for sigma in _TICKS])
