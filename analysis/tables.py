"""Tables of sample quality: the long one of every score, and Frechet distance against steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.load import Results
from analysis.paired import Comparison, compare

__all__ = ["QualityTable", "first_sampler", "kernel_terms", "main_metric", "quality_table"]

Row = tuple[str, str]  # model, sampler
Terms = dict[int, NDArray[np.float64]]


@dataclass(frozen=True)
class QualityTable:
    """Frechet distance by model and steps.

    Attributes:
        metric: its name (``fid``, ``fd_digits``, ...).
        caption: reference, N, seeds and what bold means.
        table: one row a (model, sampler), columns ``<steps>`` (mean over seeds), ``<steps>_sd`` (over seeds, empty
            for one) and ``<steps>_best`` (not told from the best by the paired test).
        steps: the step counts, ascending.
        nfe: network calls a sample by step count.
    """

    metric: str
    caption: str
    table: pd.DataFrame
    steps: Sequence[int]
    nfe: Mapping[int, int]

    def entry(self, row: pd.Series, steps: int) -> str:
        """Return one entry as text, without emphasis."""
        value, spread = row[f"{steps}"], row[f"{steps}_sd"]
        if pd.isna(value):
            return "-"
        return f"{value:.3f}" if pd.isna(spread) else f"{value:.3f} ± {spread:.3f}"

    def markdown(self) -> str:
        """Return the table in Markdown, bold for every entry not told from the best."""
        header = ["model", "sampler", *(f"{steps} steps" for steps in self.steps)]
        lines = [self.caption, "", _md(header), _md(["---"] * len(header))]
        for _, row in self.table.iterrows():
            cells = [f"**{self.entry(row, s)}**" if row[f"{s}_best"] else self.entry(row, s) for s in self.steps]
            lines.append(_md([row["model"], row["sampler"], *cells]))
        lines.append(_md(["NFE", "", *(str(self.nfe[steps]) for steps in self.steps)]))
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """Return the table in LaTeX (booktabs)."""
        columns = "ll" + "r" * len(self.steps)
        lines = ["% " + self.caption, rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines += ["model & sampler & " + " & ".join(f"{steps} steps" for steps in self.steps) + r" \\", r"\midrule"]
        for _, row in self.table.iterrows():
            cells = []
            for steps in self.steps:
                text = self.entry(row, steps).replace("±", r"$\pm$")
                cells.append(rf"\textbf{{{text}}}" if row[f"{steps}_best"] else text)
            lines.append(" & ".join([_tex(row["model"]), _tex(row["sampler"]), *cells]) + r" \\")
        nfe = " & ".join(str(self.nfe[steps]) for steps in self.steps)
        return "\n".join([*lines, r"\midrule", rf"NFE & & {nfe} \\", r"\bottomrule", r"\end{tabular}"]) + "\n"


def _md(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _tex(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&").replace("#", r"\#")


def first_sampler(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Keep one sampler a figure, the ancestral one where there are several."""
    sampler = "ddpm" if (table["sampler"] == "ddpm").any() else str(table["sampler"].iloc[0])
    return table[table["sampler"] == sampler], sampler


def main_metric(metrics: pd.DataFrame) -> str | None:
    """Return the Frechet distance on pooled features that a folder was scored with, None where there is none."""
    names = [name for name in metrics["metric"].unique() if name == "fid" or str(name).startswith("fd_")]
    return str(names[0]) if names else None


def kernel_terms(results: Results) -> dict[int, dict[Row, Terms]]:
    """Return the per-sample kernel terms by steps, (model, sampler) and seed."""
    found: dict[int, dict[Row, Terms]] = {}
    for record in results.cells:
        terms = record.array("kernel.npy")
        if terms is not None:
            row = (record.cell["model"], record.cell["sampler"])
            found.setdefault(record.cell["steps"], {}).setdefault(row, {})[record.cell["seed"]] = terms
    return found


def _best(means: Mapping[Row, float], terms: Mapping[Row, Terms]) -> set[Row]:
    """Return the rows that the paired test cannot tell from the lowest mean."""
    if not means:
        return set()
    lowest = min(means, key=lambda row: means[row])
    chosen = {lowest}
    for row in means:
        comparison: Comparison | None = None
        if row in terms and lowest in terms:
            comparison = compare(terms[row], terms[lowest])
        if comparison is not None and comparison.verdict != "loss":
            chosen.add(row)
    return chosen


def _row(key: object) -> Row:
    assert isinstance(key, tuple)  # groups by two columns
    return str(key[0]), str(key[1])


def quality_table(results: Results) -> QualityTable | None:
    """Build the table of Frechet distance against steps, None where nothing was scored."""
    metrics = results.metrics()
    metric = main_metric(metrics)
    if metric is None:
        return None
    scores = metrics[(metrics["metric"] == metric)].astype({"value": float})
    steps = sorted(int(value) for value in scores["steps"].unique())
    terms = kernel_terms(results)
    rows: dict[Row, dict[str, object]] = {}
    for row in scores[["model", "sampler"]].drop_duplicates().itertuples(index=False, name=None):
        rows[row] = {"model": row[0], "sampler": row[1], "metric": metric}
    for count in steps:
        here = scores[scores["steps"] == count].groupby(["model", "sampler"])["value"].agg(["mean", "std", "count"])
        means = {_row(key): float(value) for key, value in here["mean"].items() if value == value}
        best = _best(means, terms.get(count, {}))
        for row, entry in rows.items():
            entry[f"{count}"] = means.get(row, float("nan"))
            entry[f"{count}_sd"] = here["std"].get(row)
            entry[f"{count}_best"] = len(rows) > 1 and row in best
    caption = _caption(metric, scores, len(rows))
    nfe = {int(count): int(calls) for count, calls in scores[["steps", "nfe"]].to_numpy(dtype=int)}
    return QualityTable(metric, caption, pd.DataFrame(rows.values()), steps, nfe)


def _caption(metric: str, scores: pd.DataFrame, rows: int) -> str:
    sizes = "/".join(str(n) for n in sorted(scores["n"].unique()))
    seeds = len(scores["seed"].unique())
    reference = ", ".join(sorted(scores["reference"].unique()))
    spread = f"mean ± std over {seeds} seeds" if seeds > 1 else "1 seed"
    bold = (
        " Bold: not told from the column's best by the paired kernel test (|z| < 1.96, shared seeds)."
        if rows > 1
        else ""
    )
    return f"{metric} against {reference}; N = {sizes} samples a seed, {spread}; lower is better.{bold}"
