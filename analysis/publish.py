"""A copy of a results folder that is small enough for git: everything the analyses read, nothing they do not.

Kept of every cell: its scores, the kernel terms, at most 20 levels of the per-step table and 8 of the moments. Kept of
the first seed alone, at the most steps of each sampler: the first 16 samples and the single errors in half precision.
The copy says of itself that it is one, so that no run takes it for complete.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.load import CellRecord, Results, ResultsError, load_results
from analysis.select import shown

__all__ = ["publish"]

_STEP_LEVELS = 20
_BAND_LEVELS = 8
_SAMPLES = 16
_EXTRAS = ("chains", "response")
_ANALYSED = ("/spectrum_", "/haar_", "forced-train/error/")
_ROWS = ("i", "t", "alpha_next", "sigma_next")  # of moments.npz, one entry a level

Arrays = dict[str, NDArray[Any]]


def publish(source: Path, target: Path) -> Results:
    """Write the small copy of ``source`` to a new folder ``target`` and return what was read.

    Raises:
        ResultsError: nothing can be read, or the target is not new.
    """
    results = load_results(source)
    if target.exists() and any(target.iterdir()):
        raise ResultsError(f"{target} is not empty; name a new folder for the copy")
    seeds = {record.cell["sampler"]: record.cell["seed"] for record in reversed(results.cells)}
    most = {
        record.cell["sampler"]: record.cell["steps"] for record in sorted(results.cells, key=lambda r: r.cell["steps"])
    }
    for record in results.cells:
        sampler = record.cell["sampler"]
        first = record.cell["seed"] == seeds[sampler]
        _copy_cell(record, target / "cells" / record.folder.name, first, record.cell["steps"] == most[sampler])
    for extra in _EXTRAS:
        if (source / extra).is_dir():
            shutil.copytree(source / extra, target / extra, ignore=shutil.ignore_patterns(".*"))
    if (source / "run.json").is_file():
        shutil.copy(source / "run.json", target / "run.json")
    return results


def _copy_cell(record: CellRecord, folder: Path, first: bool, most: bool) -> None:
    folder.mkdir(parents=True)
    steps = record.steps()
    if steps is not None:
        _small_steps(steps).to_csv(folder / "steps.csv.gz", index=False, float_format="%.6g")
    terms = record.array("kernel.npy")
    if terms is not None:
        np.save(folder / "kernel.npy", terms.astype(np.float32))
    moments = record.arrays("moments.npz")
    if moments is not None:
        _write(folder / "moments.npz", _small_moments(moments))
    if first and most:
        _copy_pictures(record, folder)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    facts = {**record.facts, "files": files, "published": True}
    (folder / "metrics.json").write_text(json.dumps(facts, indent=1) + "\n")


def _copy_pictures(record: CellRecord, folder: Path) -> None:
    samples, errors = record.arrays("samples.npz"), record.arrays("errors.npz")
    if samples is not None:
        _write(folder / "samples.npz", {"arr_0": samples["arr_0"][:_SAMPLES]})
    if errors is not None:
        _write(folder / "errors.npz", {**errors, "errors": errors["errors"].astype(np.float16)})


def _small_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Keep levels spread evenly, those at which states were recorded."""
    recorded = sorted(steps.loc[steps["quantity"] == "var_marginal", "i"].unique())
    kept = set(shown(recorded, _STEP_LEVELS))
    kept |= {i + 1 for i in kept}  # a state at i - 1 was reached by the call at i
    return steps[steps["i"].isin(kept)].drop(columns=["model", "sampler", "steps", "seed"])


def _small_moments(moments: Mapping[str, NDArray[Any]]) -> Arrays:
    """Keep band powers and moments of x0_hat's error at levels spread evenly, in single precision; the data's own."""
    levels = shown(list(range(len(moments["i"]))), _BAND_LEVELS)
    small: Arrays = {}
    for name, array in moments.items():
        analysed = any(part in name for part in _ANALYSED)
        if name in _ROWS or analysed:
            small[name] = array[levels].astype(np.float32) if analysed else array[levels]
        elif name.startswith("data/"):
            small[name] = array
    return small


def _write(path: Path, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    path.write_bytes(buffer.getvalue())
