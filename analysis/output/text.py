"""Tables as Markdown and LaTeX (booktabs), and parts of captions that depend on how a folder was sampled."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import pandas as pd

from analysis.records.load import Results

_SPECIAL = {character: "\\" + character for character in "_%&#$"} | {"±": r"$\pm$", "<": r"$<$", ">": r"$>$"}


def entry(value: object) -> str:
    """Return one entry as text: four significant digits for fractions, "-" where there is no value."""
    if value is None or value is pd.NA or value != value:  # NaN alone differs from itself
        return "-"
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):.4g}"
    return str(value)


def without_constants(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return a table as people read it: without empty columns and those with one entry throughout, which are named.

    Args:
        frame: any table; one of a single row has no constant columns, but perhaps empty ones.

    Returns:
        The table, and a sentence such as ``In every row: N 256, sampler ddpm.``, empty where nothing is in every row.
    """
    columns = {name: {entry(value) for value in frame[name]} for name in frame.columns}
    empty = [name for name, entries in columns.items() if entries <= {"-", ""}]
    constant = [name for name, entries in columns.items() if len(frame) > 1 and len(entries) == 1 and name not in empty]
    if len(empty) + len(constant) == frame.shape[1]:  # rows that are alike throughout
        constant = []
    repeated = ", ".join(f"{name} {entry(frame[name].iloc[0])}" for name in constant)
    return frame.drop(columns=[*empty, *constant]), f"In every row: {repeated}." if repeated else ""


def markdown_row(cells: Sequence[str]) -> str:
    """Return one row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def markdown(frame: pd.DataFrame) -> str:
    """Return a table in Markdown."""
    header = [str(column) for column in frame.columns]
    rows = [[entry(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return "\n".join(map(markdown_row, [header, ["---"] * len(header), *rows])) + "\n"


def latex_text(text: str) -> str:
    """Return text with LaTeX's special characters escaped."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def latex(frame: pd.DataFrame) -> str:
    """Return a table in LaTeX (booktabs), numbers to the right."""
    kinds = "".join("r" if pd.api.types.is_numeric_dtype(frame[column]) else "l" for column in frame.columns)
    header = " & ".join(latex_text(str(column)) for column in frame.columns)
    rows = [" & ".join(latex_text(entry(v)) for v in row) for row in frame.itertuples(index=False, name=None)]
    lines = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", header + r" \\", r"\midrule"]
    return "\n".join([*lines, *(row + r" \\" for row in rows), r"\bottomrule", r"\end{tabular}"]) + "\n"


def clips(results: Results) -> bool:
    """Tell whether x0_hat was clamped to [-1, 1]; cells of one folder agree in it."""
    return bool(results.cells[0].cell.get("clip"))


def used_x0(results: Results) -> str:
    """Return what was done to the x0_hat whose errors are shown."""
    return "x0_hat as the sampler uses it, scaled " + ("and clipped" if clips(results) else "but not clipped")


def other_causes(results: Results) -> str:
    """Return what besides few steps moves the variance off that of an exact denoiser of Gaussian data."""
    causes = ["the network"]
    causes += ["clipping"] if clips(results) else []
    causes += ["the classifier's guidance"] if any("classifier" in record.cell for record in results.cells) else []
    return ", ".join(causes) + " and data that are not Gaussian"


def recorded_words(recorded: pd.DataFrame) -> str:
    """Say what the second line of an exact denoiser is, where there is one."""
    if not len(recorded):
        return ""
    return (
        " Dash-dotted, thin: an exact denoiser of Gaussian data with the variance that each network predicted on real"
        " images."
    )
