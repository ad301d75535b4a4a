"""Which model is a remedy, of which baseline, and what it changes: the sampling alone, or the weights.

A model is plain where none of its cells corrects the walk. The baseline of a model is the plain one of the same
weights; where there is none but itself, the plain one with the shortest name that, with a hyphen, begins the model's
name (``adm`` of ``adm-ip``). A plain model without either is nobody's remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.comparison.trainings import training_of
from analysis.records.load import Results, one_line

_SHORT = 4  # entries of a constant that is a list; longer ones are counted


@dataclass(frozen=True)
class Remedy:
    """A model, the one it is held against, and its kind: ``sampling`` (the same weights) or ``training``."""

    model: str
    baseline: str
    kind: str


def find_remedies(results: Results) -> list[Remedy]:
    """Return every remedy that has a baseline in the folder, in the order of the run.

    Models whose description does not fit their network have no part.
    """
    cells: dict[str, list[Mapping[str, Any]]] = {}
    for record in results.cells:
        if record.cell["model"] not in results.misfits:
            cells.setdefault(str(record.cell["model"]), []).append(record.cell)
    weights = {model: records[0].get("weights") for model, records in cells.items()}
    plain = [model for model, records in cells.items() if not any(corrects(cell) for cell in records)]
    remedies = []
    for model in cells:
        if "@" in model:  # a value that --tune tried, on noise that no comparison may use
            continue
        baseline = _baseline(model, plain, weights)
        if baseline is not None:
            same = weights[model] is not None and weights[model] == weights[baseline]
            remedies.append(Remedy(model, baseline, "sampling" if same else "training"))
    return remedies


def _baseline(model: str, plain: Sequence[str], weights: Mapping[str, Any]) -> str | None:
    same = [name for name in plain if weights[name] is not None and weights[name] == weights[model]]
    if same and min(same, key=len) != model:  # of several, as with a neutral constant, the others are its remedies
        return min(same, key=len)
    recipe, number = training_of(model)
    plain_trainings = {name: training_of(name) for name in plain}
    begin = [name for name, (r, n) in plain_trainings.items() if n == number and recipe.startswith(f"{r}-")]
    return min(begin, key=len, default=None)


def corrects(cell: Mapping[str, Any]) -> bool:
    """Tell whether a cell's walk is not the sampler's own."""
    return bool(cell.get("remedies")) or _scaling(cell) != (1.0, 0.0)


def _scaling(cell: Mapping[str, Any]) -> tuple[Any, Any]:
    return cell.get("eps_scale", 1.0), cell.get("eps_slope", 0.0)


def corrections(cell: Mapping[str, Any]) -> str:
    """Return what corrects a cell's walk, in the order it acts, e.g. ``epsilon-scaling(b=1.014)``; empty for none."""
    listed = cell.get("remedies")
    if not listed:
        b, k = _scaling(cell)
        listed = [{"kind": "epsilon-scaling", "b": b} | ({"k": k} if k else {})] if (b, k) != (1.0, 0.0) else []
    return one_line(", ".join(map(_correction, listed if isinstance(listed, list) else [listed])))


def _correction(entry: object) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    constants = ", ".join(f"{name}={_constant(value)}" for name, value in entry.items() if name != "kind")
    return f"{entry.get('kind')}({constants})" if constants else str(entry.get("kind"))


def _constant(value: object) -> str:
    if isinstance(value, list) and len(value) > _SHORT:
        return f"[{len(value)} values]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
