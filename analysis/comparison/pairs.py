"""Every pair of models at every step count: which is closer to the data, and by how many standard errors."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparison.significance import DETECTABLE, LEVEL, compare, compare_kernels, holm, p_value, paired_t
from analysis.output.entries import Output
from analysis.output.selection import first_sampler, models_of, step_counts
from analysis.output.style import panels, save
from analysis.records.arrays import cell_terms
from analysis.records.load import Results, coverage_name

_SECTION = "Comparison"
_LIMIT = 4.0  # of the colour scale


def pairs_table(results: Results) -> pd.DataFrame:
    """Return one row a pair of models at one sampler and step count, on the seeds they share.

    Columns:
        delta: the distance of ``model`` less that of ``other``, which the run named before it; ``distance`` names it.
        error, z, p: standard error of delta, delta over it, and the two-sided p.
        p_holm: p after Holm's correction over all rows. It gives the ``verdict``, win, loss or tie of model.
        detectable: the difference that this test would see with a chance of 80 % at p < .05, uncorrected.
        kernel_z: z of the squared kernel distance.
    """
    rows = []
    for steps, terms in sorted(cell_terms(results).items()):
        for (other, sampler), (model, model_sampler) in combinations(terms, 2):
            first, second = terms[model, model_sampler], terms[other, sampler]
            comparison = compare(first, second) if model_sampler == sampler else None
            if comparison is None:
                continue
            shared = sorted(first.keys() & second.keys())
            kernel = compare_kernels([(first[seed], second[seed]) for seed in shared])
            rows.append(
                {
                    "steps": steps, "sampler": sampler, "model": model, "other": other,
                    "distance": comparison.distance, "delta": comparison.delta, "error": comparison.error,
                    "z": comparison.z, "p": float(p_value(comparison.z)),
                    "detectable": DETECTABLE * comparison.error,
                    "kernel_z": float("nan") if kernel is None else kernel.z, "seeds": comparison.seeds,
                }
            )  # fmt: skip
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    table.insert(list(table).index("p") + 1, "p_holm", holm(table["p"]))
    ends = np.where(table["delta"] < 0, "win", "loss")
    return table.assign(verdict=np.where(table["p_holm"] < LEVEL, ends, "tie"))


def coverage_table(results: Results) -> pd.DataFrame:
    """Return the paired t-test over seeds of precision and recall, one row a pair of models at one step count.

    ``difference`` is ``model`` less ``other``; ``p_holm`` is corrected over all rows of the table.
    """
    metrics = results.metrics
    names = [coverage_name(metrics["metric"].unique(), kind) for kind in ("precision", "recall")]
    scores = metrics[metrics["metric"].isin([name for name in names if name]) & metrics["value"].notna()]
    rows = []
    for (metric, sampler, steps), group in scores.groupby(["metric", "sampler", "steps"], sort=True):
        values = group.astype({"value": float}).pivot(index="seed", columns="model", values="value")
        for other, model in combinations(models_of(group), 2):
            shared = values[[model, other]].dropna()
            place = {"metric": metric, "sampler": sampler, "steps": int(str(steps)), "model": model, "other": other}
            rows.append(place | paired_t(shared[model].to_numpy(), shared[other].to_numpy()))
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"])) if len(table) else table


def draw_pairs(table: pd.DataFrame, folder: Path) -> list[Path]:
    """A triangle of z a step count: blue where the row's model is closer to the data than the column's."""
    from seaborn import heatmap  # a second to import: only whoever draws this pays

    table, sampler = first_sampler(table)
    others, models = (list(dict.fromkeys(table[side])) for side in ("other", "model"))
    counts = step_counts(table)
    with panels(1, len(counts), sharey=True) as (figure, axes):
        figure.set_size_inches(7.0, 1.2 + 0.28 * len(models))
        for axis, steps in zip(axes[0], counts, strict=True):
            rows = table[table["steps"] == steps]
            grid = rows.pivot(index="model", columns="other", values="z").reindex(index=models, columns=others)
            decided = rows.pivot(index="model", columns="other", values="p_holm").reindex_like(grid) < LEVEL
            heatmap(
                grid, ax=axis, cmap="RdBu_r", vmin=-_LIMIT, vmax=_LIMIT, annot=True, fmt=".1f", cbar=False,
                annot_kws={"fontsize": 5}, xticklabels=True, yticklabels=True,
            )  # fmt: skip
            squares = decided.to_numpy()[grid.notna().to_numpy()]  # in the order of the texts: row by row
            for text, stands in zip(axis.texts, squares, strict=True):
                text.set_fontweight("bold" if stands else "normal")
            axis.set(title=f"{steps} steps", xlabel="", ylabel="")
            axis.grid(False)
        figure.colorbar(axes[0, 0].collections[0], ax=axes[0], label="z (row - column)", extend="both")
        figure.suptitle(f"Paired test, {sampler}; bold: stands after Holm's correction", fontsize=8)
        return save(figure, folder, "win_tie_loss")


def _listed(table: pd.DataFrame) -> str:
    """Return the distances that decided, e.g. ``frechet`` or ``frechet, kernel``."""
    return ", ".join(dict.fromkeys(table["distance"]))


def analyse(results: Results, out: Output) -> None:
    """Write and draw every pairwise comparison."""
    table, coverage, account = results.once(pairs_table), coverage_table(results), results.account()
    if len(table):
        caption = (
            f"Difference of distances ({_listed(table)}) on shared seeds, model less other, in standard errors"
            f" (z). p_holm is corrected for the {len(table)} comparisons of the table: a win or loss has p_holm < .05."
            f" detectable: the difference seen with a chance of 80 % before correction; a tie says no more than that."
            f" {account}."
        )
        out.table(_SECTION, "pairs", table, "Every pair of models", caption)
        out.figure(
            _SECTION, draw_pairs(table, out.figures), "Which model is better",
            f"z of the row's model less the column's: blue, negative, where the row's is closer to the data. {caption}",
        )  # fmt: skip
    if len(coverage) and coverage["p"].notna().any():
        out.table(
            _SECTION, "pairs_coverage", coverage, "Precision and recall of every pair",
            "Paired t-test over seeds of precision and recall, model less other; low and high: the 95 % interval;"
            f" p_holm: after Holm's correction over all rows. {account}.",
        )  # fmt: skip
