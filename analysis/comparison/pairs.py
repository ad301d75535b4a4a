"""Every pair of models at every step count: which is closer to the data, and by how many standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.comparison.paired_tests import (
    DETECTABLE,
    LEVEL,
    Comparison,
    compare,
    compare_classes,
    compare_kernels,
    compare_shares,
    compare_stratified,
    holm,
    p_value,
    paired_t,
)
from analysis.comparison.ties import UNTESTABLE, exact_means, untested, verdicts
from analysis.output.entries import Output
from analysis.output.selection import first_sampler, models_of
from analysis.output.style import panels, save
from analysis.records.arrays import CellTerms, cell_terms
from analysis.records.load import Results, main_metric, score_name

_SECTION = "Comparison"
_ACROSS = 4  # triangles in a row
_LIMIT = 4.0  # of the colour scale, at least
_WRITTEN = 16  # models: of more, only the z that stand are written into their squares
_CLASSES = (
    " strat_: the distance at the reference's class shares; classes_: whether two models show equal class proportions"
    " on shared noise (Stuart-Maxwell); differs: which of the three tests stand, each corrected over its column."
)
_NONE = float("nan")
_OF_CLASSES = ["strat_delta", "strat_z", "classes_chi2", "classes_p"]


def pairs_table(results: Results) -> pd.DataFrame:
    """Return one row a pair of models at one sampler and step count, on the seeds they share.

    Models whose description does not fit their network are compared with none.

    Columns:
        delta: the distance of ``model`` less that of ``other``, which the run named before it; ``distance`` names it.
        error, z, p: standard error of delta, delta over it, and the two-sided p.
        p_holm: p after Holm's correction over all rows. It gives the ``verdict``, win, loss or tie of model.
        detectable: the difference that this test would see with a chance of 80 % at p < .05, uncorrected.
        excess: the farther model's Frechet distance less an exact sampler's at this N. A tie with a larger
            ``detectable`` is ``not testable``.
        noise: of recorded loops, ``same`` where all samples of both began from one noise; from ``other`` noise the
            test is that of independent samples.
        kernel_z: z of the squared kernel distance.
        strat_delta, strat_z, strat_p_holm: the same test of the distance at the reference's class shares.
        classes_chi2, classes_p_holm: the test of equal class proportions on shared noise.
        differs: which of ``plain``, ``stratified`` and ``classes`` differ, each corrected over its column.
    """
    rows, exact = [], exact_means(results.metrics, main_metric(results.metrics))
    for steps, terms in sorted(results.once(cell_terms).items()):
        for (other, sampler), (model, model_sampler) in combinations(terms, 2):
            first, second = terms[model, model_sampler], terms[other, sampler]
            comparable = model_sampler == sampler and not results.misfits.keys() & {model, other}
            comparison = compare(first, second) if comparable else None
            if comparison is None:
                continue
            shared = sorted(first.keys() & second.keys())
            kernel = compare_kernels([(first[seed], second[seed]) for seed in shared])
            stratified, classes = compare_stratified(first, second), compare_classes(first, second)
            rows.append(
                {
                    "steps": steps, "sampler": sampler, "model": model, "other": other,
                    "distance": comparison.distance, "delta": comparison.delta, "error": comparison.error,
                    "z": comparison.z, "p": float(p_value(comparison.z)),
                    "detectable": DETECTABLE * comparison.error,
                    "excess": comparison.farthest - exact.get(steps, _NONE),
                    "kernel_z": _NONE if kernel is None else kernel.z, "seeds": comparison.seeds,
                    "noise": _noise(comparison, [first[seed] for seed in shared]),
                    "strat_delta": _NONE if stratified is None else stratified.delta,
                    "strat_z": _NONE if stratified is None else stratified.z,
                    "classes_chi2": _NONE if classes is None else classes.statistic,
                    "classes_p": _NONE if classes is None else classes.p,
                }
            )  # fmt: skip
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    table.insert(list(table).index("p") + 1, "p_holm", holm(table["p"]))
    table = table.assign(verdict=verdicts(table))
    table = table if table["noise"].any() else table.drop(columns="noise")
    return _with_classes(table) if table["classes_p"].notna().any() else table.drop(columns=_OF_CLASSES)


def _noise(comparison: Comparison, cells: Sequence[CellTerms]) -> str:
    """Return what is known of the noise of two recorded loops, nothing of the suite's own walks."""
    if all(cell.start is None for cell in cells):
        return ""
    return "same" if comparison.paired else "other"


def _with_classes(table: pd.DataFrame) -> pd.DataFrame:
    """Add what differs between two models: the distance, the distance at equal class shares, the class shares."""
    table = table.assign(strat_p_holm=holm(p_value(table["strat_z"])), classes_p_holm=holm(table["classes_p"]))
    tests = {"plain": "p_holm", "stratified": "strat_p_holm", "classes": "classes_p_holm"}
    rows = (table[list(tests.values())] < LEVEL).to_numpy()
    return table.assign(differs=[", ".join(np.array(list(tests))[row]) or "none" for row in rows])


def classes_table(results: Results) -> pd.DataFrame:
    """Return the test of each model's class proportions against the data's, one row a model and step count.

    Columns:
        n: samples of all seeds, whose classes an embedded classifier sees; the reference is a sample, too.
        chi2, freedom, p: of the test of homogeneity; ``p_holm`` is corrected over all rows.
        most, least: the class with the largest and the smallest share over the data's, and that ratio.
    """
    rows = []
    for steps, terms in sorted(results.once(cell_terms).items()):
        for (model, sampler), cells in terms.items():
            classes = [cell.classes for cell in cells.values() if cell.classes is not None]
            reference = next((c.reference_classes for c in cells.values() if c.reference_classes is not None), None)
            if not classes or reference is None:
                continue
            width = max(len(reference), *(int(seen.max()) + 1 for seen in classes))
            counts = np.bincount(np.concatenate(classes).astype(int), minlength=width).astype(float)
            theirs = np.pad(reference, (0, width - len(reference)))
            test = compare_shares(counts, theirs)
            with np.errstate(divide="ignore", invalid="ignore"):
                over = (counts / counts.sum()) / (theirs / theirs.sum())
            row = {"steps": steps, "sampler": sampler, "model": model, "n": int(counts.sum())}
            row |= {"chi2": test.statistic, "freedom": test.freedom, "p": test.p}
            ends = {"most": np.nanargmax(over), "least": np.nanargmin(over)}
            rows.append(row | {name: f"{at} ({over[at]:.2f})" for name, at in ends.items()})
    table = pd.DataFrame(rows)
    if len(table):
        table.insert(list(table).index("p") + 1, "p_holm", holm(table["p"]))
    return table


def classes_sentence(pairs: pd.DataFrame, classes: pd.DataFrame) -> str:
    """Say which of the three differs: the distance, the distance at equal class shares, the class proportions."""
    uneven = int((classes["p_holm"] < LEVEL).sum())
    text = f"The classes of {uneven} of {len(classes)} models and step counts are not in the data's proportions"
    if "differs" not in pairs:
        return f"{text}."
    counts = pairs["differs"].value_counts()
    named = ", ".join(f"{number} in {what}" for what, number in counts.items() if what != "none")
    return (
        f"{text}. Of {len(pairs)} pairs of models {named or 'none'} differ{'' if named else 's'} in any of the three."
    )


def coverage_table(results: Results) -> pd.DataFrame:
    """Return the paired t-test over seeds of precision and recall, one row a pair of models at one step count.

    ``difference`` is ``model`` less ``other``; ``p_holm`` is corrected over all rows of the table, and gives the
    ``verdict`` of the model, for which more is better.
    """
    metrics = results.metrics
    names = [score_name(metrics["metric"].unique(), kind) for kind in ("precision", "recall")]
    scores = metrics[metrics["metric"].isin([name for name in names if name]) & metrics["value"].notna()]
    rows = []
    for (metric, sampler, steps), group in scores.groupby(["metric", "sampler", "steps"], sort=True):
        values = group.astype({"value": float}).pivot(index="seed", columns="model", values="value")
        for other, model in combinations(models_of(group), 2):
            shared = values[[model, other]].dropna()
            place = {"metric": metric, "sampler": sampler, "steps": int(str(steps)), "model": model, "other": other}
            rows.append(place | paired_t(shared[model].to_numpy(), shared[other].to_numpy()))
    table = pd.DataFrame(rows)
    if not len(table):
        return table
    table = table.assign(p_holm=holm(table["p"]))
    ends = np.where(table["difference"] > 0, "win", "loss")
    decided = np.where(table["p_holm"] < LEVEL, ends, "tie")
    return table.assign(verdict=np.where(table["p"].notna(), decided, ""))


def draw_pairs(table: pd.DataFrame, folder: Path) -> list[Path]:
    """A triangle of z a step count: blue where the row's model is closer to the data than the column's.

    Step counts with less than half of the pairs that others have stand in the table alone: they would be empty panels.
    """
    table, sampler = first_sampler(table)
    pairs = table.groupby("steps").size().sort_index()
    counts = [int(count) for count in pairs.index[pairs >= pairs.max() / 2]]
    columns, models = min(_ACROSS, len(counts)), table["model"].nunique()
    rows = -(-len(counts) // columns)
    limit = max(_LIMIT, float(table["z"].abs().max()))
    with panels(rows, columns, sharex=True, sharey=True) as (figure, axes):
        figure.set_size_inches(7.0, 1.2 + (0.3 + 0.26 * models) * rows)
        for position, (axis, steps) in enumerate(zip(axes.flat, counts, strict=False)):
            _draw_triangle(axis, table, steps, limit)
            axis.tick_params("y", rotation=0, labelleft=position % columns == 0)
            axis.tick_params("x", rotation=90, labelbottom=position + columns >= len(counts))  # nothing stands below
        for axis in axes.flat[len(counts) :]:
            axis.set_axis_off()
        figure.colorbar(axes[0, 0].collections[0], ax=axes, label="z (row - column)", aspect=20 * rows)
        figure.suptitle(f"Paired test, {sampler}; bold: stands after Holm's correction", fontsize=8)
        return save(figure, folder, "win_tie_loss")


def _draw_triangle(axis: Axes, table: pd.DataFrame, steps: int, limit: float) -> None:
    """Draw z of all pairs at one step count, those that stand after the correction in bold."""
    from seaborn import heatmap  # a second to import: only whoever draws this pays

    others, models = (list(dict.fromkeys(table[side])) for side in ("other", "model"))
    rows = table[table["steps"] == steps]
    grid = rows.pivot(index="model", columns="other", values="z").reindex(index=models, columns=others)
    decided = rows.pivot(index="model", columns="other", values="p_holm").reindex_like(grid) < LEVEL
    decimals = "z.1f" if len(grid) <= 9 else "z.0f"  # what a square has room for; no -0
    room = len(grid) <= _WRITTEN
    texts = grid.map(lambda z: f"{z:{decimals}}").where(decided | room, "")
    heatmap(
        grid, ax=axis, cmap="RdBu_r", vmin=-limit, vmax=limit, annot=texts, fmt="", cbar=False,
        annot_kws={"fontsize": 5}, xticklabels=True, yticklabels=True,
    )  # fmt: skip
    squares = decided.to_numpy()[grid.notna().to_numpy()]  # in the order of the texts: row by row
    for text, stands in zip(axis.texts, squares, strict=True):
        text.set_fontweight("bold" if stands else "normal")
    axis.tick_params("x", labelsize=None if room else 5)
    axis.set(title=f"{steps} steps", xlabel="", ylabel="")
    axis.grid(False)


def noise_sentence(table: pd.DataFrame) -> str:
    """Say of recorded loops which pairs are no pairs of samples."""
    if "noise" not in table:
        return ""
    others = int((table["noise"] == "other").sum())
    if not others:
        return " All loops began from the same noise: the tests are paired."
    return (
        f" {others} of {len(table)} comparisons are not paired (noise: other): their loops did not begin from the same"
        " noise, sample by sample, and are compared as independent samples; give both loops one generator's noise."
    )


def analyse(results: Results, out: Output) -> None:
    """Write and draw every pairwise comparison."""
    table, coverage, account = results.once(pairs_table), coverage_table(results), results.account()
    classes = classes_table(results)
    if len(classes):
        out.table(
            _SECTION, "classes", classes, "Class proportions",
            "Chi-squared test of each model's class proportions, as the embedded classifier sees them, against the"
            " data's, which are a sample, too; most, least: the classes with the largest and the smallest share over"
            f" the data's; p_holm: corrected over all rows. {classes_sentence(table, classes)} {account}.",
        )  # fmt: skip
    if len(table):
        distances = ", ".join(table["distance"].unique())
        caption = (
            f"Difference of distances ({distances}) on shared seeds, model less other, in standard errors"
            f" (z). p_holm is corrected for the {len(table)} comparisons of the table: a win or loss has p_holm < .05."
            f" detectable: the difference seen with a chance of 80 % before correction; {UNTESTABLE}: that is more than"
            f" the farther model's excess over an exact sampler at this N. {untested(table) or 'None is'}."
            f"{_CLASSES if 'differs' in table else ''}{noise_sentence(table)} {account}."
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
            " p_holm: after Holm's correction over all rows, which gives the verdict; detectable: the difference seen"
            f" with a chance of 80 % before it. {account}.",
        )  # fmt: skip
