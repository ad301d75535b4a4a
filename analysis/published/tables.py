"""The papers' numbers, carried in the package with their source, and the page of the documentation that shows them.

``python -m analysis.published docs`` writes that page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.output.text import markdown, without_constants

_FOLDER = Path(__file__).parent
_INTRODUCTION = """# Published numbers

Copied from the papers and their repositories, not measured here; the source stands beside them. Features are
Inception's and, where the source says so, N is 50,000: a Frechet distance on other data, features or N is another
number. A run draws them beside its own only where dataset, metric and protocol agree ([reproduce.md](reproduce.md)).
The files are in `analysis/published`, which also holds tables too long for a page: {long}.

## delta_t

![published delta_t and its floor](figures/published_delta_t.png)

{delta}
"""

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
_LONG = ("ts_dpm", "dcw_tables", "fid_vs_iterations", "delta_t_cifar10_20step")  # for machines, as CSV alone


def load_published(name: str, as_printed: bool = False) -> pd.DataFrame:
    """Return a table of the papers, each row with its ``source``; ``as_printed`` keeps every digit, as text."""
    return pd.read_csv(_FOLDER / f"{name}.csv", dtype=str if as_printed else None)


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


def page(delta_caption: str) -> str:
    """Return the page of all tables in Markdown."""
    files = ", ".join(f"[{name}](../analysis/published/{name}.csv)" for name in _LONG)
    parts = [_INTRODUCTION.format(long=files, delta=delta_caption)]
    for name, (title, text) in TABLES.items():
        table = load_published(name, as_printed=True)
        table, repeated = without_constants(wide_table(table) if "steps" in table else table)
        parts.append(f"## {title}\n\n{' '.join(filter(None, (text, repeated)))}\n\n{markdown(table)}")
    return "\n".join(parts)
