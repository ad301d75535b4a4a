"""The end of a run on a terminal: the table of distances in aligned columns, and the reason of every dash."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from analysis.comparison.pairs import pairs_table
from analysis.quality.main_table import QualityTable, quality_table
from analysis.records.load import Results

_GAP = "  "
_MOST_PAIRS = 10
_TESTS = {"same": "paired: the same noise", "other": "not paired: other noise"}


def terminal_summary(results: Results, width: int) -> str:
    """Return what a run prints when it is complete.

    Args:
        results: of the run.
        width: of the terminal, in characters; columns that do not fit beside each other follow below.
    """
    quality = results.once(quality_table)
    if quality is None:
        return ""
    rows = [quality.header, *quality.rows("{}*", "{} "), *quality.feet()]
    caption = textwrap.fill(quality.caption.replace("Bold:", "*:"), width)
    return "\n\n".join([caption, *_blocks(rows, width), *_loops(results), *_reasons(results, quality, width)])


def _blocks(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return aligned tables, each with the first two columns and as many of the others as fit."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = sum(widths[:2]) + len(_GAP)
    blocks: list[list[int]] = []
    room = 0
    for column in range(2, len(widths)):
        room -= widths[column] + len(_GAP)
        if room < 0:
            blocks.append([])
            room = max(width - left, 0) - widths[column] - len(_GAP)
        blocks[-1].append(column)

    def line(row: Sequence[str], columns: Sequence[int]) -> str:
        cells = [row[column].ljust(widths[column]) for column in (0, 1)]
        return _GAP.join([*cells, *(row[column].rjust(widths[column]) for column in columns)]).rstrip()

    return ["\n".join(line(row, columns) for row in rows) for columns in blocks]


def _loops(results: Results) -> list[str]:
    """Return the tests between recorded loops, a line each; a run of models has too many for a terminal."""
    pairs = results.once(pairs_table)
    if "noise" not in pairs:
        return []
    lines = [
        f"{row.model} less {row.other}, {row.steps} steps: {row.delta:+.3f} ± {row.error:.3f} (z {row.z:+.1f}, p"
        f" {row.p_holm:.3g} after Holm: {row.verdict}), {_TESTS[str(row.noise)]}"
        for row in pairs.head(_MOST_PAIRS).itertuples()
    ]
    more = len(pairs) - len(lines)
    return ["\n".join([*lines, *([f"and {more} more in tables/pairs.csv"] if more else [])])]


def _reasons(results: Results, quality: QualityTable, width: int) -> list[str]:
    """Return why entries are dashes, each reason once."""
    scores = results.metrics[results.metrics["metric"] == quality.metric]
    reasons = list(scores.loc[scores["value"].isna(), "reason"].dropna().unique())
    present = set(zip(scores["model"], scores["sampler"], scores["steps"], strict=True))
    rows = zip(quality.table["model"], quality.table["sampler"], strict=True)
    if any((*row, steps) not in present for row in rows for steps in quality.steps):
        reasons.append("not run at these steps, or left out as damaged")
    return [textwrap.fill(f"-: {reason}", width, subsequent_indent="   ") for reason in reasons if reason]
