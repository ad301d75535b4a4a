"""One style for all figures: column width, colours that colour-blind readers can tell apart, PNG and PDF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: works without a display

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text

# Okabe & Ito 2008, without black (kept for exact references) and yellow (too pale on white).
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#8B5E3C")
MARKERS = "osD^vPX*"
ARM_LINES = {"free": "-", "forced-train": "--", "forced-heldout": ":", "paired": "-."}

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
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


def colours(names: Sequence[str]) -> dict[str, str]:
    """Give each name a colour, the same for the same sequence of names."""
    return {name: _PALETTE[position % len(_PALETTE)] for position, name in enumerate(names)}


@contextmanager
def panels(rows: int, columns: int, **settings: Any) -> Iterator[tuple[Figure, Any]]:
    """Open a figure of rows x columns panels, 3.4 inches wide for one column and 7 for more."""
    with sns.axes_style("ticks"), plt.rc_context(_SETTINGS):
        width = 3.4 if columns == 1 else 7.0
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, 0.5 + 1.9 * rows), squeeze=False, layout="constrained", **settings
        )
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def step_axis(axis: Axes, steps: Sequence[int]) -> None:
    """Make a logarithmic axis of step counts with a tick at each."""
    axis.set_xscale("log")
    axis.set_xticks(list(steps), [str(count) for count in steps])
    axis.minorticks_off()
    axis.set_xlabel("sampling steps")


def save(figure: Figure, folder: Path, name: str, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write a figure as ``<name>.png`` and ``<name>.pdf``; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    _spell_names(figure)
    paths = [folder / f"{name}.{suffix}" for suffix in formats]
    for path in paths:
        figure.savefig(path, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    return paths


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


def key(figure: Figure, paint: dict[str, str], styles: dict[str, tuple[Any, str]]) -> None:
    """Explain colours (models) and line styles (label to style and colour) above the panels."""
    handles = [Line2D([], [], color=colour, label=name) for name, colour in paint.items()]
    handles += [Line2D([], [], color=colour, linestyle=style, label=name) for name, (style, colour) in styles.items()]
    columns = 5 if figure.get_figwidth() > 4 else 2
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), columns), frameon=False)


def is_edm(sampler: str) -> bool:
    """Tell whether a sampler walks on EDM levels."""
    return sampler in _EDM_SAMPLERS


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
