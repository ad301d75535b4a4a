"""Regenerate every table, every figure and the report of a results folder from its records."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from analysis.comparison import mitigations, pairs, trainings
from analysis.exposure_bias import chains, delta_t, norms, quality_correlation, response, variance, x0_error
from analysis.normality import error_normality, error_shape
from analysis.output.entries import Output
from analysis.output.style import pdf_too
from analysis.quality import acceleration, excess, main_table, samples, scores, training, tuning
from analysis.records.files import reopen
from analysis.records.load import Results, load_results
from analysis.report.html import write_report
from analysis.spectra import haar, radial

# In the order of the report.
ANALYSES = (
    main_table,
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
    delta_t,
    norms,
    x0_error,
    error_shape,
    error_normality,
    radial,
    haar,
    chains,
    response,
    quality_correlation,
)


_HALF = 13  # of them take about as long as the others


def regenerate(root: Path, pdf: bool = False, processes: int = 1) -> Results:
    """Write ``tables/``, ``figures/`` and ``report.html`` of a results folder; return what was read, and its problems.

    Args:
        root: the folder.
        pdf: draw figures as PDF, too.
        processes: that draw, 1 or 2; what they write is the same.

    Raises:
        ResultsError: nothing can be read.
    """
    results = load_results(root)
    out = Output(root)
    with pdf_too(pdf), _rare_collection():
        parts = list(_analyse(results, ANALYSES)) if processes == 1 else _analyse_in_two(results)
    for part in parts:
        out.join(part)
    out.finish()
    write_report(results, out)
    return results


@contextmanager
def _rare_collection() -> Iterator[None]:
    """Look for unreachable cycles less often: figures make many objects, and the search takes an eighth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _analyse(results: Results, analyses: Sequence[ModuleType]) -> Iterator[Output]:
    """Yield what each analysis puts into the results folder."""
    for analysis in analyses:
        out = Output(results.root)
        analysis.analyse(results, out)
        yield out


def _analyse_in_two(results: Results) -> list[Output]:
    """Return what all analyses make, the later ones of them in a process that has read what this one has."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    other = context.Process(target=_send, args=(writer, results, ANALYSES[_HALF:]))
    other.start()
    writer.close()
    try:
        mine = list(_analyse(results, ANALYSES[:_HALF]))
        theirs, problems = reader.recv()
    except EOFError:  # it ended before its time: what stopped it is met here, or was its own
        theirs, problems = list(_analyse(results, ANALYSES[_HALF:])), []
    finally:
        other.terminate()
        other.join()
    for problem in problems:
        results.problem(problem)
    return mine + theirs


def _send(writer: Connection, results: Results, analyses: Sequence[ModuleType]) -> None:
    """Analyse, and send what was made; an error or a signal ends the process without a word."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit())
    with suppress(Exception):
        reopen(results.records)
        writer.send((list(_analyse(results, analyses)), results.problems))
