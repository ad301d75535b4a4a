"""Every score against the number of steps: Frechet and kernel distances, precision, recall, memorisation."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.output.entries import Output
from analysis.output.selection import first_sampler, models_of
from analysis.output.style import dodged, label_panels, line_key, line_panels, points, save, step_axis
from analysis.records.load import Results, score_name

_SECTION = "Quality"
_COVERAGE = ("precision", "recall")


def score_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over seeds of every score, and how many seeds have it."""
    scores = metrics.astype({"value": float})
    keys = ["metric", "sampler", "model", "steps"]
    grouped = scores.groupby(keys, sort=False)
    table = grouped.agg(
        mean=("value", "mean"), sd=("value", "std"), seeds=("value", "count"), n=("n", "first"),
        reference=("reference", "first"),
    )  # fmt: skip
    return table.reset_index().sort_values(["metric", "sampler", "steps"], kind="stable", ignore_index=True)


def _columns(table: pd.DataFrame) -> dict[str, str]:
    """Return the metrics that precision and recall go by in this folder, e.g. ``precision_digits``."""
    names = [str(name) for name in table["metric"].unique()]
    columns = {kind: score_name(names, kind) for kind in _COVERAGE}
    return {kind: name for kind, name in columns.items() if name is not None}


def draw_coverage(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Precision and recall against steps, a line a model; bars are the std over seeds."""
    table, _ = first_sampler(table)
    steps, names = sorted(int(count) for count in table["steps"].unique()), _columns(table)
    with line_panels(models_of(table), len(names), sharey=True) as (figure, rows):
        for row in rows:
            for axis, name in zip(row.axes, names.values(), strict=True):
                for position, model in enumerate(row.paint):
                    line = table[(table["metric"] == name) & (table["model"] == model)].sort_values("steps")
                    x = dodged(line["steps"].tolist(), position, len(row.paint))
                    points(row, axis, model, x, line["mean"].tolist(), line["sd"].tolist())
                step_axis(axis, steps)
            row.axes[0].set_ylabel("share\n(higher is better)")
        label_panels(rows, names, "sampling steps")
        line_key(figure, rows, {})
        return save(figure, folder, "precision_recall")


def analyse(results: Results, out: Output) -> None:
    """Write every score, and draw precision and recall."""
    table = score_table(results.metrics)
    if not len(table):
        return
    inception = score_name((str(name) for name in table["metric"].unique()), "is")
    caption = (
        "Mean and standard deviation over seeds of every score. Distances: lower is better; precision and recall (k"
        f" = 3 neighbours in feature space, all samples){f' and {inception}' if inception else ''}: higher is better;"
        " nn_ratio: mean nearest-pixel distance to training over held-out images, below 1 for a model that memorises."
        f" {results.account()}."
    )
    out.table(_SECTION, "scores", table, "Every score", caption)
    _, sampler = first_sampler(table)
    drawn = _columns(table[table["mean"].notna()])
    if len(drawn) == len(_COVERAGE):
        out.figure(
            _SECTION, draw_coverage(table, out.figures), "Precision and recall",
            f"Precision (share of samples within the data's manifold) and recall (the reverse), k = 3, {sampler}. Their"
            f" level depends on N; compare models at the same N only. Bars: std over seeds. {results.account()}.",
        )  # fmt: skip
