"""Regenerate every table and figure of a results folder from its records."""

from __future__ import annotations

from pathlib import Path

from analysis.figures import draw_eps_norm, draw_quality, draw_samples, draw_variance_gap, draw_x0_error
from analysis.load import Results, load_results
from analysis.tables import quality_table

__all__ = ["regenerate"]


def regenerate(root: Path) -> Results:
    """Write ``tables/`` and ``figures/`` of a results folder and return what was read.

    Raises:
        ResultsError: nothing can be read, or a record that is needed is damaged.
    """
    results = load_results(root)
    tables, figures = root / "tables", root / "figures"
    tables.mkdir(exist_ok=True)
    results.metrics().to_csv(tables / "metrics.csv", index=False)
    quality = quality_table(results)
    if quality is not None:
        quality.table.to_csv(tables / "fid_vs_steps.csv", index=False)
        (tables / "fid_vs_steps.md").write_text(quality.markdown())
        (tables / "fid_vs_steps.tex").write_text(quality.latex())
        draw_quality(quality, figures)
    steps = results.steps()
    if len(steps):
        draw_eps_norm(steps, figures)
        draw_variance_gap(steps, figures)
        draw_x0_error(steps, figures)
    draw_samples(results, figures)
    return results
