"""Read a results folder: complete cells only, each damaged one named."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["CellRecord", "Results", "ResultsError", "load_results"]

_KEY = ["model", "sampler", "steps", "seed"]


class ResultsError(ValueError):
    """A results folder, or a cell of it, cannot be read; the message says which and why."""


@dataclass(frozen=True)
class CellRecord:
    """One complete cell: its folder, the configuration it was made with, and its scores."""

    folder: Path
    cell: dict[str, Any]
    facts: dict[str, Any]

    def key(self) -> dict[str, Any]:
        """Return model, sampler, steps and seed."""
        return {name: self.cell[name] for name in _KEY}

    def steps(self) -> pd.DataFrame | None:
        """Return the per-step table with the cell's key, None where no probes ran.

        Raises:
            ResultsError: the table is damaged.
        """
        path = self.folder / "steps.csv"
        if not path.exists():
            return None
        try:
            table = pd.read_csv(path)
            table = table.astype({"arm": str, "quantity": str, "i": int, "t": float, "value": float, "std": float})
        except (OSError, ValueError, KeyError) as error:
            raise ResultsError(f"{path} is damaged ({error}); delete the cell and run again") from None
        return table.assign(**self.key())

    def array(self, name: str, key: str | None = None) -> NDArray[Any] | None:
        """Return an npy file, or one array of an npz, or None where there is none.

        Raises:
            ResultsError: the file is damaged.
        """
        path = self.folder / name
        if not path.exists():
            return None
        try:
            content = np.load(path, allow_pickle=False)
            array: NDArray[Any] = content if key is None else content[key]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ResultsError(f"{path} is damaged ({error}); delete the cell and run again") from None
        return array


@dataclass(frozen=True)
class Results:
    """A results folder's complete cells, and a line for each cell that cannot be read."""

    root: Path
    cells: list[CellRecord]
    problems: list[str] = field(default_factory=list)

    def metrics(self) -> pd.DataFrame:
        """Return every score, long: model, sampler, steps, nfe, seed, n, reference, metric, value, reason."""
        columns = ["model", "sampler", "steps", "nfe", "seed", "n", "reference", "metric", "value", "reason"]
        rows = [
            {**record.key(), "nfe": record.facts["nfe"], **score}
            for record in self.cells
            for score in record.facts["scores"]
        ]
        return pd.DataFrame(rows, columns=columns)

    def steps(self) -> pd.DataFrame:
        """Return the per-step tables of all cells, joined; empty where no probes ran."""
        tables = [table for record in self.cells if (table := record.steps()) is not None]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def load_results(root: Path) -> Results:
    """Read every complete cell under ``root/cells``, in the order models were first run.

    Raises:
        ResultsError: there is no results folder here, or no complete cell in it.
    """
    if not (root / "cells").is_dir():
        raise ResultsError(f"{root} is not a results folder (no cells/ in it)")
    cells, problems = [], []
    for folder in sorted(path for path in (root / "cells").iterdir() if path.is_dir()):
        try:
            record = _read_cell(folder)
            cells.append(record)
        except FileNotFoundError:
            problems.append(f"{folder} is incomplete and left out; run again to finish it")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(
                f"{folder} is damaged and left out ({type(error).__name__}: {error}); delete it and run again"
            )
    if not cells:
        raise ResultsError(f"{root} holds no complete cell")
    order = _model_order(root)
    cells.sort(
        key=lambda r: (order.get(r.cell["model"], len(order)), r.cell["sampler"], r.cell["steps"], r.cell["seed"])
    )
    return Results(root, cells, problems)


def _read_cell(folder: Path) -> CellRecord:
    """Read a cell's ``metrics.json`` and check that what it lists is there; any error says that the cell is damaged."""
    facts = json.loads((folder / "metrics.json").read_text())
    record = CellRecord(folder, dict(facts["cell"]), facts)
    if not all(isinstance(record.cell[name], kind) for name, kind in zip(_KEY, (str, str, int, int), strict=True)):
        raise ValueError("model, sampler, steps or seed is of the wrong kind")
    int(facts["nfe"])
    for score in facts["scores"]:
        str(score["metric"]), str(score["reference"]), int(score["n"])
        if score["value"] is not None:
            float(score["value"])
    for name, size in facts.get("files", {}).items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise ValueError(f"{name} is missing or has been changed")
    return record


def _model_order(root: Path) -> dict[str, int]:
    """Return the order in which the run named its models."""
    try:
        models = json.loads((root / "run.json").read_text())["configuration"]["models"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: position for position, name in enumerate(models)}
