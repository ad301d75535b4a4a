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

__all__ = ["ARM_LINES", "MARKERS", "band", "colours", "key", "panels", "save", "step_axis"]

# Okabe & Ito 2008, without black (kept for exact references) and yellow (too pale on white).
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#8B5E3C")
MARKERS = "osD^vPX*"
ARM_LINES = {"free": "-", "forced-train": "--", "forced-heldout": ":", "paired": "-."}
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
