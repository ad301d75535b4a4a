"""The papers' numbers: carried in the package with their source, shown in tables of their own.

They stand beside ours in one figure only where dataset, metric and protocol agree (:func:`comparable`): a Frechet
distance depends on the reference, the number of samples, the features and even on how pixels are rounded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.output.entries import Output
from analysis.records.load import Results

_SECTION = "Published numbers"
_FOLDER = Path(__file__).parent


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

# Name -> (title, what it says) of the tables people read.
TABLES: Mapping[str, tuple[str, str]] = {
    "ddpm_ip_table2": ("Regularised baselines", "Gradient penalty, weight decay and input perturbation."),
    "ddpm_ip_table3": ("ADM and ADM-IP against steps", "The main table of the input-perturbation paper."),
    "ddpm_ip_table4": ("Acceleration", "Training iterations and steps at which ADM-IP reaches the baseline's best."),
    "ddpm_ip_table7": ("DDPM-y", "Input perturbation against the same input with its own noise as target."),
    "ddim_ip": (
        "DDIM and DDIM-IP",
        "Input perturbation under DDIM, by DDIM's own code and network; by which evaluator is not said.",
    ),
    "adm_es": ("Epsilon scaling", "eps / (b + k i), i = 0 the least noisy step; ADM-ES*: the linear schedule."),
    "edm_es": (
        "Epsilon scaling of EDM",
        "b divides eps; nfe counts network calls. NVIDIA's own Inception file and statistics, no churn, pixels rounded"
        " to nearest: not to two decimals comparable with a fid of ours, and so never drawn beside one.",
    ),
}
_LONG = ("ts_dpm", "dcw_tables", "fid_vs_iterations")  # for machines, as CSV alone


def load_published(name: str, as_printed: bool = False) -> pd.DataFrame:
    """Return a table of the papers, each row with its ``source``; ``as_printed`` keeps every digit, as text."""
    return pd.read_csv(_FOLDER / f"{name}.csv", dtype=str if as_printed else None)


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


def overlay(results: Results, metric: str) -> pd.DataFrame:
    """Return the published rows that may be drawn among the folder's own, at step counts that it has.

    Columns model, sampler, steps, value, source; empty in most folders.
    """
    labelled = _labelled(results)
    ours = {
        _ours(record.cell, score, labelled.get(record.cell["model"]))
        for record in results.cells
        for score in record.facts["scores"]
    }
    ours = {protocol for protocol in ours if protocol.metric == metric}
    counts, chosen = {record.cell["steps"] for record in results.cells}, []
    for name in _ADM_TABLES:
        table = load_published(name).assign(sampler=_SAMPLER)
        fits = [any(comparable(one, _protocol(row)) for one in ours) for _, row in table.iterrows()]
        chosen.append(table.loc[fits, ["model", "sampler", "steps", "value", "source"]])
    # The papers repeat a few numbers from table to table, some under another name (DDPM is ADM).
    found = pd.concat(chosen, ignore_index=True).replace({"model": {"DDPM": "ADM", "DDPM-IP": "ADM-IP"}})
    return found[found["steps"].isin(counts)].drop_duplicates(["model", "steps", "value"], ignore_index=True)


def _labelled(results: Results) -> dict[str, bool]:
    """Tell of each model whose samples are there whether it drew them by class, which their file's index shows."""
    found = {}
    for record in results.cells:
        try:
            with zipfile.ZipFile(record.folder / "samples.npz") as samples:
                found[str(record.cell["model"])] = "arr_1.npy" in samples.namelist()
        except (OSError, zipfile.BadZipFile):  # none, or damaged, which whoever draws the samples will say
            continue
    return found


def _ours(cell: Mapping[str, object], score: Mapping[str, object], conditional: bool | None) -> Protocol:
    """Return how a score of ours was computed; a set of images held out nothing of is its own training part."""
    return Protocol(
        str(score["reference"]).replace("-all (", "-train ("), str(score["metric"]), int(str(score["n"])),
        str(cell["sampler"]), None if cell.get("variance") is None else str(cell["variance"]),
        str(cell.get("quantize")), bool(cell.get("clip")), str(cell.get("spacing")), conditional,
        float(str(cell.get("classifier_scale", 0.0))), str(cell.get("precision", "fp32")),
    )  # fmt: skip


def wide_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a paper's table with a column a step count, as papers print it; rows keep their order and source."""
    counts = sorted(table["steps"].unique(), key=int)
    keys = [name for name in table.columns if name not in ("steps", "value", "source")]
    rows: dict[tuple[str, ...], dict[str, object]] = {}
    for _, row in table.iterrows():
        key = tuple(str(row[name]) for name in keys)
        entry = rows.setdefault(key, {name: row[name] for name in keys} | {"source": row["source"]})
        entry[f"{row['steps']} steps"] = row["value"]
    return pd.DataFrame(rows.values(), columns=[*keys, *(f"{count} steps" for count in counts), "source"])


def analyse(results: Results, out: Output) -> None:
    """Write the papers' tables."""
    for name, (title, text) in TABLES.items():
        table = load_published(name, as_printed=True)
        table = wide_table(table) if "steps" in table else table
        caption = (
            f"Published, not measured here: {text} Inception features and, where the source says so, 50,000 samples: a"
            " Frechet distance on other data, features or N is another number. Source in each row."
        )
        out.table(_SECTION, f"published_{name}", table, f"Published: {title}", caption)
    for name in _LONG:
        out.text(f"published_{name}.csv", load_published(name, as_printed=True).to_csv(index=False))
