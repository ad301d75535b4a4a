"""A copy of a results folder that is small enough for git: everything the analyses read, nothing they do not.

Kept of every cell: its scores, the kernel terms, at most 20 levels of the per-step table and 8 of the moments. Kept of
the first seed, at the most steps of the first sampler: 16 samples a model and the single errors in half precision. The
copy says of itself that it is one, so that no run takes it for complete.
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

from analysis.output.selection import shown
from analysis.records.load import CellRecord, Results, ResultsError, load_results

_STEP_LEVELS = 20
_BAND_LEVELS = 8
_SAMPLES = 16
_EXTRAS = ("chains", "response", "training", "tuning")
_CHECKSUMS = ("sha256", "checksum")
_ANALYSED = (
    "free/spectrum_", "free/haar_", "forced-train/spectrum_x0", "forced-train/haar_x0", "forced-train/error/",
)  # fmt: skip
_ROWS = ("i", "t", "alpha_next", "sigma_next")  # of moments.npz, one entry a level

Arrays = dict[str, NDArray[Any]]


def publish(source: Path, target: Path) -> Results:
    """Write the small copy of ``source`` to a new folder ``target`` and return what was read; damaged cells stay out.

    Raises:
        ResultsError: nothing can be read, or the target is not new.
    """
    results = load_results(source)
    if target.exists() and any(target.iterdir()):
        raise ResultsError(f"{target} is not empty; name a new folder for the copy")
    sampler = results.cells[0].cell["sampler"]
    own = [record.cell for record in results.cells if record.cell["sampler"] == sampler]
    shown_seed, most = min(cell["seed"] for cell in own), max(cell["steps"] for cell in own)

    def copy(record: CellRecord) -> None:
        folder = target / "cells" / record.folder.name
        pictured = [record.cell[name] for name in ("sampler", "seed", "steps")] == [sampler, shown_seed, most]
        try:
            _copy_cell(record, folder, pictured)
        except (ResultsError, KeyError, IndexError) as error:
            shutil.rmtree(folder)
            why = str(error) if isinstance(error, ResultsError) else f"{record.folder} is damaged (no {error})"
            raise ResultsError(why) from None

    results.each(copy)
    for extra in _EXTRAS:
        if (source / extra).is_dir():
            shutil.copytree(source / extra, target / extra, ignore=shutil.ignore_patterns(".*"))
    if (source / "run.json").is_file():
        shutil.copy(source / "run.json", target / "run.json")
    return results


def _copy_cell(record: CellRecord, folder: Path, pictured: bool) -> None:
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
    if pictured:
        _copy_pictures(record, folder)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    kept = {name: value for name, value in record.facts.items() if name not in _CHECKSUMS}  # of what is not copied
    facts = {**kept, "files": files, "published": True}
    (folder / "metrics.json").write_text(json.dumps(facts, indent=1) + "\n")


def _copy_pictures(record: CellRecord, folder: Path) -> None:
    samples, errors = record.arrays("samples.npz"), record.arrays("errors.npz")
    if samples is not None:
        labels = {"arr_1": samples["arr_1"][:_SAMPLES]} if "arr_1" in samples else {}
        _write(folder / "samples.npz", {"arr_0": samples["arr_0"][:_SAMPLES], **labels})
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
        analysed = name.startswith(_ANALYSED)
        if name in _ROWS or analysed:
            small[name] = array[levels].astype(np.float32) if analysed else array[levels]
        elif name.startswith("data/"):
            small[name] = array
    return small


def _write(path: Path, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    path.write_bytes(buffer.getvalue())
