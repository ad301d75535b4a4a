"""How published numbers were computed, and where one may stand beside ours: dataset, metric and protocol must agree.

A Frechet distance depends on the reference, the number of samples, the features and even on how pixels are rounded.
``protocols.toml`` holds what papers and repositories state of each table.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.published.tables import load_published
from analysis.records.load import Results, ResultsError


@dataclass(frozen=True)
class Protocol:
    """How a Frechet distance was computed.

    Attributes:
        reference: dataset, part and number of the reference images, as our scores name them.
        metric: ``fid``, ``sfid``, ...: only the published Inception weights give these names.
        n: generated images.
        sampler: ``ddpm`` or ``ddim``.
        variance: of the ancestral sampler.
        quantize: how samples became 8-bit.
        clip: whether x0_hat was clipped.
        spacing: which training steps were visited.
        conditional: whether the network was given class labels; None where the records no longer show it.
        guidance: strength of the classifier's guidance, 0 without.
        precision: of network calls.
    """

    reference: str
    metric: str
    n: int
    sampler: str
    variance: str | None
    quantize: str
    clip: bool
    spacing: str
    conditional: bool | None = False
    guidance: float = 0.0
    precision: str = "fp32"


_FIELDS = [field.name for field in fields(Protocol) if field.name != "precision"]
# Tables whose rows are drawn beside a run: the ancestral sampler at a number of steps.
_DRAWN = ("ddpm_ip_table2", "ddpm_ip_table3", "ddpm_ip_table7", "adm_es")
_MODELS = {"DDPM": "ADM", "DDPM-IP": "ADM-IP"}  # names of one model in different tables
# What rows of a table say of themselves: column, setting, and the setting's value where that is another word.
_COLUMNS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("sampler", "sampler", {"DDIM": "ddim", "DDPM": "ddpm"}),
    ("solver", "sampler", {}),
    ("sampling", "sampler", {"deterministic Euler": "euler"}),
    ("spacing", "spacing", {}),
    ("eta", "eta", {}),
)
_STEPS = ("steps", "num_steps_flag", "sampling_steps")  # columns that count them


@cache
def _protocols() -> Mapping[str, Mapping[str, Any]]:
    """Return the stated settings by table of ``analysis/published``."""
    groups = tomllib.loads((Path(__file__).parent / "protocols.toml").read_text())
    return {table: group for group in groups.values() for table in group["tables"]}


def stated(table: str, row: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings that are stated of a row of a published table; ``metric`` always is."""
    settings: dict[str, object] = {"metric": str(row["metric"]).lower()}
    for name, value in _protocols().get(table, {}).items():
        if isinstance(value, Mapping):
            value = value.get(str(row["dataset"]), value.get("other"))
        if name != "tables" and value is not None:
            settings[name] = value
    for column, name, words in _COLUMNS:
        if not pd.isna(row.get(column)):
            value = row[column]
            settings[name] = words.get(value, value) if isinstance(value, str) else float(value)
    if "conditioning" in row:
        settings["conditional"] = row["conditioning"] == "cond"
    return settings


@dataclass(frozen=True)
class PublishedRow:
    """A published number: model, length of its training if stated, sampling steps, value, source, settings."""

    model: str
    training: str
    steps: int
    metric: str
    value: float
    source: str
    settings: Mapping[str, object]


def published_rows(dataset: str) -> list[PublishedRow]:
    """Return the papers' rows of a dataset of ours, whatever its reference; numbers that papers repeat are there once.

    Args:
        dataset: its name in a run, such as ``cifar10`` or ``cifar10-jpeg``.
    """
    plain = _normal(re.sub("-(jpeg|webp)$", "", dataset.lower()))
    rows: dict[tuple[object, ...], PublishedRow] = {}
    for table in _protocols():
        for values in load_published(table).to_dict("records"):
            entry = {str(key): value for key, value in values.items()}
            # CIFAR10-32 is cifar10; ImageNet-64 is imagenet64.
            if plain and _normal(entry["dataset"]).removesuffix("32" if plain == "cifar10" else "") == plain:
                row = _row(table, entry)
                sampler = row.settings.get("sampler")
                rows.setdefault((row.model, row.training, row.steps, row.metric, row.value, sampler), row)
    return list(rows.values())


def _normal(name: object) -> str:
    return re.sub("[^a-z0-9]", "", str(name).lower())


def _row(table: str, entry: Mapping[str, Any]) -> PublishedRow:
    """Return a row of a published table."""
    name = str(entry.get("model", entry.get("backbone")))
    more = [f"gamma {entry['gamma']}"] if entry.get("gamma") else []
    if "sampler" in entry and str(entry["sampler"]) not in ("DDIM", "DDPM"):  # a remedy of the sampler
        more.append(str(entry["sampler"]))
    iterations = entry.get("training_iterations_thousand", entry.get("training_iterations"))
    training = "" if iterations is None else f"{str(iterations).removesuffix('K')}k iterations"
    steps = next(entry[column] for column in _STEPS if column in entry)
    return PublishedRow(
        ", ".join([_MODELS.get(name, name), *more]), training, int(str(steps).split()[0]), str(entry["metric"]),
        float(entry["value"]), str(entry["source"]), stated(table, entry),
    )  # fmt: skip


def our_protocols(results: Results, metric: str) -> list[Protocol]:
    """Return the distinct protocols of a folder's scores of one metric."""
    labelled = _labelled(results)
    every = (
        _ours(record.cell, score, labelled.get(record.cell["model"]))
        for record in results.cells
        for score in record.facts["scores"]
        if score["metric"] == metric
    )
    return list(dict.fromkeys(every))


def overlay(results: Results, metric: str) -> pd.DataFrame:
    """Return the published rows that may be drawn among the folder's own, at step counts that it has.

    Everything that moves a Frechet distance must be stated, and be as it is here. Our digits have no such row: no paper
    has them, and features of another network give another distance.

    Columns model, sampler, steps, value, source; empty in most folders.
    """
    ours, counts = our_protocols(results, metric), {record.cell["steps"] for record in results.cells}
    rows = []
    for table in _DRAWN:
        for row in load_published(table).to_dict("records"):
            settings = stated(table, {str(key): value for key, value in row.items()})
            # What is not stated equals nothing of ours.
            theirs = Protocol(**{name: settings.get(name, ...) for name in _FIELDS})  # type: ignore[arg-type]
            if row["steps"] in counts and theirs in ours:
                name = _MODELS.get(row["model"], row["model"])
                rows.append((name, theirs.sampler, row["steps"], row["value"], row["source"]))
    drawn = pd.DataFrame(rows, columns=["model", "sampler", "steps", "value", "source"])
    # The papers repeat a few numbers from table to table, some under another name.
    return drawn.drop_duplicates(["model", "steps", "value"], ignore_index=True)


def _labelled(results: Results) -> dict[str, bool]:
    """Tell of each model whose samples are there whether it drew them by class, which their file's index shows."""
    labelled = {}
    for record in results.cells:
        try:
            names = record.array_names("samples.npz")
        except ResultsError:  # whoever draws the samples will say so
            continue
        if names is not None:
            labelled[str(record.cell["model"])] = "arr_1" in names
    return labelled


def _ours(cell: Mapping[str, object], score: Mapping[str, object], conditional: bool | None) -> Protocol:
    """Return how a score of ours was computed; a set of images held out nothing of is its own training part."""
    return Protocol(
        str(score["reference"]).replace("-all (", "-train ("), str(score["metric"]), int(str(score["n"])),
        str(cell["sampler"]), None if cell.get("variance") is None else str(cell["variance"]),
        str(cell.get("quantize")), bool(cell.get("clip")), str(cell.get("spacing")), conditional,
        float(str(cell.get("classifier_scale", 0.0))), str(cell.get("precision", "fp32")),
    )  # fmt: skip
