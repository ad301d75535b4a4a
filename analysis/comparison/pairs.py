"""Every pair of models at every step count: the paired kernel difference, its z, and win, tie or loss."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparison.significance import CRITICAL, compare, kernel_terms
from analysis.output.entries import Output
from analysis.output.selection import first_sampler, step_counts
from analysis.output.style import panels, save
from analysis.records.load import Results

__all__ = ["analyse", "counts_table", "draw_pairs", "pairs_table"]

_SECTION = "Comparison"
_DARK = 2.5  # z from which a cell is too dark for black letters


def pairs_table(results: Results) -> pd.DataFrame:
    """Return one row an ordered pair (model over other, same sampler and steps) with shared seeds."""
    rows = []
    for steps, terms in sorted(kernel_terms(results).items()):
        for first, second in permutations(terms, 2):
            (model, sampler), (other, other_sampler) = first, second
            comparison = compare(terms[first], terms[second])
            if comparison is not None and sampler == other_sampler:
                found = {"delta": comparison.delta, "error": comparison.error, "z": comparison.z}
                rows.append(
                    {"steps": steps, "sampler": sampler, "model": model, "other": other, **found}
                    | {"seeds": comparison.seeds, "verdict": comparison.verdict}
                )
    return pd.DataFrame(rows)


def counts_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return wins/ties/losses of each model over each other one, counted over step counts, and over all of them."""
    rows = []
    for sampler, here in table.groupby("sampler", sort=False):
        models = list(dict.fromkeys(here["model"]))
        for model, own in here.groupby("model", sort=False):
            against = {other: _count(own[own["other"] == other]["verdict"]) for other in models if other != model}
            rows.append({"model": model, "sampler": sampler, **against, "all": _count(own["verdict"])})
    columns = ["model", "sampler", *dict.fromkeys(table["model"]), "all"]
    return pd.DataFrame(rows, columns=columns)


def _count(verdicts: pd.Series) -> str:
    return "/".join(str(int((verdicts == verdict).sum())) for verdict in ("win", "tie", "loss"))


def draw_pairs(table: pd.DataFrame, folder: Path) -> list[Path]:
    """A matrix of z a step count: blue where the row's model is closer to the data; a mark where |z| passes 1.96."""
    table, sampler = first_sampler(table)
    models = list(dict.fromkeys(table["model"]))
    counts = step_counts(table)
    with panels(1, len(counts), sharey=True) as (figure, axes):
        figure.set_size_inches(7.0, 1.0 + 0.3 * len(models))
        for axis, steps in zip(axes[0], counts, strict=True):
            here = table[table["steps"] == steps]
            grid = here.pivot(index="model", columns="other", values="z").reindex(index=models, columns=models)
            image = axis.imshow(grid, cmap="RdBu_r", vmin=-4, vmax=4, aspect="auto")
            for row, column in np.argwhere(np.abs(grid.to_numpy()) >= CRITICAL):
                z = float(grid.iloc[row, column])
                colour = "white" if abs(z) > _DARK else "black"
                axis.text(column, row, "w" if z < 0 else "l", ha="center", va="center", fontsize=6, color=colour)
            axis.set_xticks(range(len(models)), models, rotation=90)
            axis.set_yticks(range(len(models)), models)
            axis.set_title(f"{steps} steps")
            axis.grid(False)
        figure.colorbar(image, ax=axes[0], label="z (row - column)", extend="both")
        figure.suptitle(f"Paired kernel test, {sampler}: w = row is closer to the data, l = column is", fontsize=8)
        return save(figure, folder, "win_tie_loss")


def analyse(results: Results, out: Output) -> None:
    """Write and draw every pairwise comparison."""
    table = pairs_table(results)
    if len(table):
        caption = (
            "Paired difference of squared kernel distances on shared seeds, in standard errors (z): w where the row's"
            " model is closer to the data with |z| > 1.96, l where the column's is. " + results.account() + "."
        )
        account = results.account()
        counted = (
            "Wins/ties/losses of the row's model over the column's, a comparison a step count, by the paired"
            " difference of squared kernel distances on shared seeds: a win where the row's model is closer to the"
            " data with |z| > 1.96, so that of 40 comparisons of equal models about one is lost and one won by"
            f" chance. {account}."
        )
        out.table(_SECTION, "win_tie_loss_counts", counts_table(table), "Wins, ties and losses", counted)
        out.table(_SECTION, "pairs", table, "Every pair of models", caption)
        out.figure(_SECTION, draw_pairs(table, out.figures), "Which model is better", caption)
