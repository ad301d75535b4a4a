"""Where a published number may stand beside ours: dataset, metric and protocol must agree.

A Frechet distance depends on the reference, the number of samples, the features and even on how pixels are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


# Our name of the reference by the papers' name of the dataset, where the papers name one set of images and no other:
# a whole training set, or a file of OpenAI's statistics. LSUN's and CelebA's are 50,000 images drawn at random.
_REFERENCES: Mapping[str, str] = {
    "CIFAR10-32": "cifar10-train (50000)",
    "ImageNet-32": "imagenet32-train (1281167)",
    "FFHQ-128": "ffhq128-train (70000)",
    "ImageNet-64": "VIRTUAL_imagenet64_labeled.npz",
    "ImageNet-128": "VIRTUAL_imagenet128_labeled.npz",
}
_GUIDANCE: Mapping[str, float] = {"ImageNet-128": 0.5}
# Tables of Ning et al. 2023 and 2024 on ADM, all with guided-diffusion's scripts and evaluator.
_SAMPLER = "ddpm"
_ADM_TABLES = ("ddpm_ip_table2", "ddpm_ip_table3", "ddpm_ip_table7", "adm_es")


def _protocol(row: pd.Series) -> Protocol | None:
    """Return how a row of the papers' ADM tables was computed, None where no dataset of ours can be the same.

    50,000 samples by the ancestral sampler with learned variance, clipped, pixels floored (``.to(uint8)``).
    """
    dataset = str(row["dataset"])
    if dataset not in _REFERENCES:
        return None
    return Protocol(
        _REFERENCES[dataset], str(row["metric"]).lower(), 50_000, _SAMPLER, "learned", "floor", True, "plain",
        row.get("conditioning", "uncond") == "cond", _GUIDANCE.get(dataset, 0.0),
    )  # fmt: skip


def comparable(ours: Protocol, published: Protocol | None) -> bool:
    """Tell whether a published number may stand beside ours: everything that moves a Frechet distance must agree.

    Our digits never are: no paper has them, and features of another network give another distance.
    """
    return published is not None and ours == published


def published_rows(dataset: str) -> list[tuple[dict[str, object], Protocol]]:
    """Return the papers' rows of a dataset of ours, whatever its reference, with their protocols.

    Args:
        dataset: its name in a run, such as ``cifar10`` or ``cifar10-jpeg``.
    """
    plain = dataset.split("-")[0].lower()
    rows: list[tuple[dict[str, object], Protocol]] = []
    for name in _ADM_TABLES:
        for row in load_published(name).to_dict("records"):
            protocol = _protocol(pd.Series(row))
            # cifar10 is CIFAR10-32, imagenet64 is ImageNet-64.
            theirs = str(row["dataset"]).lower()
            if protocol is not None and plain and plain in (theirs.replace("-", ""), theirs.split("-")[0]):
                rows.append(({str(key): value for key, value in row.items()}, protocol))
    return rows


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

    Columns model, sampler, steps, value, source; empty in most folders.
    """
    ours = our_protocols(results, metric)
    counts, chosen = {record.cell["steps"] for record in results.cells}, []
    for name in _ADM_TABLES:
        table = load_published(name).assign(sampler=_SAMPLER)
        fits = [any(comparable(one, _protocol(row)) for one in ours) for _, row in table.iterrows()]
        chosen.append(table.loc[fits, ["model", "sampler", "steps", "value", "source"]])
    # The papers repeat a few numbers from table to table, some under another name (DDPM is ADM).
    rows = pd.concat(chosen, ignore_index=True).replace({"model": {"DDPM": "ADM", "DDPM-IP": "ADM-IP"}})
    return rows[rows["steps"].isin(counts)].drop_duplicates(["model", "steps", "value"], ignore_index=True)


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
