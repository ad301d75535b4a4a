"""Regenerate every table and figure of a results folder from its records."""

from __future__ import annotations

from pathlib import Path

from analysis import normality, norms, pairs, quality, samples, spectra, variance, x0_error
from analysis.load import Results, load_results
from analysis.output import Output

__all__ = ["ANALYSES", "regenerate"]

# In the order of the report.
ANALYSES = (quality, samples, pairs, variance, norms, x0_error, normality, spectra)


def regenerate(root: Path) -> Results:
    """Write ``tables/`` and ``figures/`` of a results folder and return what was read, with its problems.

    Raises:
        ResultsError: nothing can be read.
    """
    results = load_results(root)
    out = Output(root)
    for analysis in ANALYSES:
        analysis.analyse(results, out)
    out.finish()
    return results
