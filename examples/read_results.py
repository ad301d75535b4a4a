"""A results folder in pandas: what a run or a recorded loop leaves is tables; see docs/runs.md for every column.

python examples/read_results.py results/schedulers
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd


def read_steps(root: Path) -> pd.DataFrame:
    """Return the per-step tables of all cells, with the model, step count and seed of each."""
    tables = []
    for path in sorted((root / "cells").glob("*/steps.csv")):
        cell = json.loads((path.parent / "metrics.json").read_text())["cell"]
        tables.append(pd.read_csv(path).assign(**{name: cell[name] for name in ("model", "steps", "seed")}))
    return pd.concat(tables, ignore_index=True)


def main(root: Path) -> None:
    """Print how the norm of eps drifts from that on real images, and the same of an exact denoiser."""
    steps = read_steps(root)
    norms = steps[(steps["quantity"] == "eps_norm") & (steps["stage"] == 0)]
    keys = ["model", "steps", "i", "t"]
    table = norms.pivot_table(index=keys, columns="arm", values="value")  # the mean over seeds
    table["free / forced"] = table["free"] / table["forced-train"]
    for path in sorted((root / "exact").glob("*/record.csv")):
        settings = json.loads((path.parent / "exact.json").read_text())["exact"]
        exact = (
            pd.read_csv(path)
            .query("quantity == 'eps_rms' and stage == 0")
            .pivot(index="i", columns="arm", values="value")
        )
        floor = exact["gaussian"] / exact["gaussian-forced"]
        here = table.index.get_level_values("model") == settings.get("model")
        table.loc[here, "exact"] = floor.reindex(table.index[here].get_level_values("i")).to_numpy()
    print(table.sort_index(ascending=[True, True, False, False]).round(3).to_string())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
