"""Regenerate every table, every figure and the report of a results folder from its records."""

from __future__ import annotations

from pathlib import Path

from analysis import (
    acceleration,
    chains,
    delta,
    diagnostics,
    error_shape,
    error_spread,
    haar,
    infinity,
    mitigations,
    normality,
    norms,
    pairs,
    published,
    published_delta,
    quality,
    response,
    samples,
    scores,
    seeds,
    spectra,
    training,
    tuning,
    variance,
    x0_error,
)
from analysis.load import Results, load_results
from analysis.output import Output
from analysis.report import write_report

__all__ = ["ANALYSES", "regenerate"]

# In the order of the report.
ANALYSES = (
    quality,
    scores,
    infinity,
    samples,
    pairs,
    mitigations,
    tuning,
    seeds,
    acceleration,
    training,
    variance,
    delta,
    published_delta,
    norms,
    x0_error,
    error_spread,
    error_shape,
    normality,
    spectra,
    haar,
    chains,
    response,
    diagnostics,
    published,
)


def regenerate(root: Path) -> Results:
    """Write ``tables/``, ``figures/`` and ``report.html`` of a results folder; return what was read, and its problems.

    Raises:
        ResultsError: nothing can be read.
    """
    results = load_results(root)
    out = Output(root)
    for analysis in ANALYSES:
        analysis.analyse(results, out)
    out.finish()
    write_report(results, out)
    return results
