"""A copy of a results folder that is small enough for git: everything the analyses read, nothing they do not.

Of every cell stay its scores, the terms of its distances, at most 20 levels of the per-step table and 8 of the moments,
rounded where no small difference of large numbers is taken, and of exact samplers everything, with six digits.
Of the first seed, at the most steps of the first sampler, stay 16 samples a model, the single errors in half precision
at the levels that figures show, and the tests of normality at all levels. All records are one file,
``records.zip``, whose sha256 stands in ``run.json``; the logs of trainings lie beside it.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.normality.error_normality import TESTS, tested_levels
from analysis.output.selection import shown
from analysis.quality.training import training_logs
from analysis.records.checks import checksum
from analysis.records.files import ARCHIVE, CHECKSUM, RUN, Place, file_hash, read_bytes, read_json, read_table
from analysis.records.load import (
    LEVEL_ARRAYS,
    MOMENT_ARRAYS,
    CellRecord,
    Results,
    ResultsError,
    is_analysed,
    load_results,
)

_STEP_LEVELS = 20
_BAND_LEVELS = 8
_SAMPLES = 16
_REFERENCE = 2500  # reference images whose spread stands for that of all: known to 3 %, and a small part of an error
_BITS, _COARSE = 9, 6  # of a rounded number's mantissa: it is off by 1 part in 1024 or 128 at most
_ERRORS = ("forced-train/error/mean", "forced-train/error/second")
_EXPERIMENTS = ("chains", "response", "slopes", "tuning")  # copied as they are
_CHECKSUMS = ("sha256", "checksum")
_DATE = (1980, 1, 1, 0, 0, 0)  # of every member, so that equal records make equal archives

Arrays = dict[str, NDArray[Any]]


def publish(source: Path, target: Path) -> Results:
    """Write the small copy of ``source`` to a new folder ``target`` and return what was read; damaged cells stay out.

    Raises:
        ResultsError: nothing can be read, or the target is not new.
    """
    results = load_results(source)
    if target.exists() and any(target.iterdir()):
        raise ResultsError(f"{target} is not empty; name a new folder for the copy")
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target / ARCHIVE, "w") as archive:
        for name, content in sorted(_records(results)):
            archive.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_LZMA)
    for recipe, path in training_logs(source).items():
        (target / "training" / recipe).mkdir(parents=True)
        shutil.copy(path, target / "training" / recipe / path.name)
    # The run's account, if it has one, with the sha256 of the archive.
    text = json.dumps({**results.run, CHECKSUM: file_hash(target / ARCHIVE)}, indent=1)
    (target / RUN).write_text(text + "\n")
    return results


def _records(results: Results) -> Iterator[tuple[str, bytes]]:
    """Yield every file of the copy with its name in the archive."""
    sampler = results.cells[0].cell["sampler"]
    cells = [record.cell for record in results.cells if record.cell["sampler"] == sampler]
    pictured = {"sampler": sampler, "seed": min(c["seed"] for c in cells), "steps": max(c["steps"] for c in cells)}

    def copy(record: CellRecord) -> tuple[str, dict[str, bytes]]:
        is_pictured = all(record.cell[name] == value for name, value in pictured.items())
        try:
            return record.folder.name, _cell_files(record, is_pictured)
        except (KeyError, IndexError) as error:
            raise ResultsError(f"{record.folder} is damaged (no {error})") from None

    for folder, files in results.each(copy):
        yield from ((f"cells/{folder}/{name}", content) for name, content in files.items())
    for place in results.folder("exact"):
        yield from ((f"exact/{place.name}/{name}", content) for name, content in _exact_files(place).items())
    for experiment in _EXPERIMENTS:
        yield from _tree(results.folder(experiment), experiment)


def _tree(places: list[Any], folder: str) -> Iterator[tuple[str, bytes]]:
    """Yield all files below some places, hidden ones left out."""
    for place in places:
        if place.is_dir():
            yield from _tree([child for child in place.iterdir() if child.name[0] != "."], f"{folder}/{place.name}")
        else:
            yield f"{folder}/{place.name}", read_bytes(place)


def _cell_files(record: CellRecord, pictured: bool) -> dict[str, bytes]:
    """Return what stays of a cell, by file name."""
    files: dict[str, bytes] = {}
    if (steps := record.steps()) is not None:
        files["steps.csv"] = _few_steps(steps).to_csv(index=False, float_format="%.5g").encode()
    if (terms := record.array("kernel.npy")) is not None:
        buffer = io.BytesIO()
        np.save(buffer, terms.astype(np.float32))  # their small differences are read: not rounded
        files["kernel.npy"] = buffer.getvalue()
    if (influence := record.arrays("influence.npz")) is not None:
        files["influence.npz"] = _npz(_few_terms(influence))
    if (moments := record.arrays("moments.npz", is_analysed)) is not None:
        files["moments.npz"] = _npz(_few_moments(moments))
    if pictured:
        files |= _pictures(record)
    return files | {"metrics.json": _facts_of(files, record.facts)}


def _exact_files(place: Place) -> dict[str, bytes]:
    """Return what stays of an exact sampler's record, its table with six digits, or nothing if unfinished."""
    path = place / "exact.json"
    if not path.is_file():
        return {}
    try:
        facts = read_json(path)
        files = {name: read_bytes(place / name) for name in facts["files"]}
        table = read_table(place / "record.csv")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{place} is damaged ({error}); delete it and run again") from None
    files["record.csv"] = table.to_csv(index=False, float_format="%.6g").encode()
    return files | {path.name: _facts_of(files, facts)}


def _facts_of(files: Mapping[str, bytes], facts: Mapping[str, Any]) -> bytes:
    """Return the file that completes a record, for the files of its copy."""
    described = {name: value for name, value in facts.items() if name not in _CHECKSUMS}  # of what is not copied
    described |= {"files": {name: len(content) for name, content in files.items()}, "published": True}
    return (json.dumps(described | {"checksum": checksum(described)}, indent=1) + "\n").encode()


def _rounded(array: NDArray[Any], bits: int = _BITS) -> NDArray[Any]:
    """Return floats as float32 with ``bits`` of the 23 bits of their mantissa, since they pack better."""
    if array.dtype.kind != "f":
        return array
    dropped = 23 - bits
    words = array.astype(np.float32).view(np.uint32)
    half = np.uint32(1 << dropped >> 1)
    rounded: NDArray[Any] = ((words + half) >> np.uint32(dropped) << np.uint32(dropped)).view(np.float32)
    return rounded


def _pictures(record: CellRecord) -> dict[str, bytes]:
    """Return a few samples, the single errors at the levels that figures show, and the tests at all levels."""
    files: dict[str, bytes] = {}
    if (samples := record.arrays("samples.npz")) is not None:
        names = ["arr_0", *(name for name in samples if name == "arr_1")]  # which are labels
        files["samples.npz"] = _npz({name: samples[name][:_SAMPLES] for name in names})
    if (errors := record.arrays("errors.npz")) is not None:
        levels = shown(range(len(errors["i"])))
        few = {name: array[levels] if name in ("errors", "i", "t") else array for name, array in errors.items()}
        files["errors.npz"] = _npz({**few, "errors": few["errors"].astype(np.float16)})
        if (tests := tested_levels(record)) is not None:
            files[TESTS] = tests.to_csv(index=False, float_format="%.12g").encode()  # since they are averaged
    return files


def _few_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Keep levels spread evenly, those at which states were recorded."""
    recorded = sorted(steps.loc[steps["quantity"] == "var_marginal", "i"].unique())
    levels = set(shown(recorded, _STEP_LEVELS))
    levels |= {i + 1 for i in levels}  # a state at i - 1 was reached by the call at i
    return steps[steps["i"].isin(levels)].drop(columns=["model", "sampler", "steps", "seed"])


def _few_moments(moments: Mapping[str, NDArray[Any]]) -> Arrays:
    """Keep band powers and moments of x0_hat's error at levels spread evenly, and the data's, in single precision."""
    levels = shown(range(len(moments["i"])), _BAND_LEVELS)
    few = {name: array[levels] if name in LEVEL_ARRAYS else array for name, array in moments.items()}
    few |= {name: array.astype(np.float32) for name, array in few.items() if name.startswith("data/")}
    arms = {name: array[levels].astype(np.float32) for name, array in few.items() if name.startswith(MOMENT_ARRAYS)}
    # Most of the file, and read as means over all pixels alone.
    arms |= {name: _rounded(array, _COARSE) for name, array in arms.items() if name.startswith(_ERRORS)}
    floors = {name: array for name, array in moments.items() if name.startswith("recorded/")}  # a number a level each
    return few | arms | floors | ({"recorded/i": moments.get("recorded/i", moments["i"])} if floors else {})


def _few_terms(influence: Mapping[str, NDArray[Any]]) -> Arrays:
    """Round the terms of a cell's distances, and keep every k-th of the reference's, with the number that there were.

    The moments, of which a distance is computed again, stay as they are. Of the reference's terms, most of the file,
    only a variance is taken.
    """
    few, n = dict(influence), len(influence.get("kernel_reference", ()))
    if n > _REFERENCE:
        few["pooled_n"] = np.array(n)
    for name in few.keys() & {"frechet_reference", "kernel_reference"}:
        few[name] = _rounded(few[name][:: -(-len(few[name]) // _REFERENCE) or 1], _COARSE)
    bits = {"mean": 23, "covariance": 23}
    return {name: _rounded(array, bits.get(name, _BITS)) for name, array in few.items()}


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return an npz file that is not compressed, for the archive is."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
