"""Regenerate every table, every figure and the report of a results folder from its records."""

from __future__ import annotations

from pathlib import Path

from analysis.comparison import mitigations, pairs, trainings
from analysis.exposure_bias import chains, norms, quality_correlation, response, variance, x0_error
from analysis.exposure_bias import delta_t as delta
from analysis.normality import error_normality as normality
from analysis.normality import error_shape
from analysis.output.entries import Output
from analysis.quality import acceleration, excess, samples, scores, training, tuning
from analysis.quality import main_table as quality
from analysis.records.load import Results, load_results
from analysis.report.html import write_report
from analysis.spectra import haar
from analysis.spectra import radial as spectra

# In the order of the report.
ANALYSES = (
    quality,
    excess,
    scores,
    samples,
    pairs,
    trainings,
    mitigations,
    tuning,
    acceleration,
    training,
    variance,
    delta,
    norms,
    x0_error,
    error_shape,
    normality,
    spectra,
    haar,
    chains,
    response,
    quality_correlation,
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
