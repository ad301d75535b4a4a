"""Regenerate every table and figure of a results folder from its records."""

from __future__ import annotations

from pathlib import Path

from analysis.figures import draw_eps_norm, draw_quality, draw_samples, draw_variance_gap, draw_x0_error
from analysis.load import Results, load_results
from analysis.normality import draw_normality, normality_table, power_table
from analysis.pairs import draw_pairs, pairs_table
from analysis.spectra import draw_spectra, spectrum_table
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
    for stale in (*tables.glob("fid_vs_steps.*"), *figures.glob("fid_vs_steps.*")):
        stale.unlink()  # a folder scored anew without features has none
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
    _distributions(results, tables, figures)
    return results


def _distributions(results: Results, tables: Path, figures: Path) -> None:
    """Write what the single errors, the spectra and the kernel terms say."""
    normality = normality_table(results)
    if len(normality):
        power = power_table(int(normality["n"].max()))
        normality.to_csv(tables / "normality.csv", index=False)
        power.to_csv(tables / "normality_power.csv", index=False)
        draw_normality(normality, power, figures)
    spectra = spectrum_table(results)
    if len(spectra):
        spectra.to_csv(tables / "spectra.csv", index=False)
        draw_spectra(spectra, figures)
    pairs = pairs_table(results)
    if len(pairs):
        pairs.to_csv(tables / "pairs.csv", index=False)
        draw_pairs(pairs, figures)
