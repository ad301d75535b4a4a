"""Every pair of models at every step count: which is closer to the data, and by how many standard errors."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.comparison.significance import CRITICAL, compare, holm, paired_t
from analysis.output.entries import Output
from analysis.output.selection import first_sampler, models_of, step_counts
from analysis.output.style import panels, save
from analysis.records.arrays import kernel_terms
from analysis.records.load import Results, coverage_name

_SECTION = "Comparison"
_DARK = 2.5  # z from which a square is too dark for black figures
_LIMIT = 4.0  # of the colour scale


def pairs_table(results: Results) -> pd.DataFrame:
    """Return one row a pair of models at one sampler and step count, on the seeds they share.

    ``delta`` is the squared kernel distance of ``model`` less that of ``other``, which the run named before it.
    """
    rows = []
    for steps, terms in sorted(kernel_terms(results).items()):
        for (other, sampler), (model, model_sampler) in combinations(terms, 2):
            if model_sampler != sampler:
                continue
            comparison = compare(terms[model, sampler], terms[other, sampler])
            if comparison is not None:
                numbers = {"delta": comparison.delta, "error": comparison.error, "z": comparison.z}
                place = {"steps": steps, "sampler": sampler, "model": model, "other": other}
                rows.append({**place, **numbers, "seeds": comparison.seeds, "verdict": comparison.verdict})
    return pd.DataFrame(rows)


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
    table, sampler = first_sampler(table)
    others, models = (list(dict.fromkeys(table[side])) for side in ("other", "model"))
    counts = step_counts(table)
    with panels(1, len(counts), sharey=True) as (figure, axes):
        figure.set_size_inches(7.0, 1.2 + 0.28 * len(models))
        for axis, steps in zip(axes[0], counts, strict=True):
            rows = table[table["steps"] == steps]
            grid = rows.pivot(index="model", columns="other", values="z").reindex(index=models, columns=others)
            image = axis.imshow(grid, cmap="RdBu_r", vmin=-_LIMIT, vmax=_LIMIT, aspect="auto")
            for row, column in np.argwhere(grid.notna().to_numpy()):
                z = float(grid.iloc[row, column])
                axis.text(
                    column, row, f"{z:.1f}", ha="center", va="center", fontsize=5,
                    color="white" if abs(z) > _DARK else "black", weight="bold" if abs(z) >= CRITICAL else "normal",
                )  # fmt: skip
            axis.set_xticks(range(len(others)), others, rotation=90)
            axis.set_yticks(range(len(models)), models)
            axis.set_title(f"{steps} steps")
            axis.grid(False)
        figure.colorbar(image, ax=axes[0], label="z (row - column)", extend="both")
        figure.suptitle(f"Paired kernel test, {sampler}", fontsize=8)
        return save(figure, folder, "win_tie_loss")


def analyse(results: Results, out: Output) -> None:
    """Write and draw every pairwise comparison."""
    table, coverage, account = pairs_table(results), coverage_table(results), results.account()
    if len(table):
        caption = (
            "Paired difference of squared kernel distances on shared seeds, model less other, in standard errors (z):"
            f" a win of the model below -1.96, a loss above 1.96. Not corrected for the {len(table)} comparisons of the"
            f" table, of which about {0.05 * len(table):.2g} would pass if no model differed. {account}."
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
