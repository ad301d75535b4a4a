"""Recipes held against each other over several trainings: one training of a recipe differs from the next by chance.

``adm``, ``adm-t2``, ``adm-t3`` are trainings of the recipe ``adm``, and ``adm-t2-es`` is one of ``adm-es``. A test over
samples says that two files differ. That two recipes differ takes a test over trainings, three of each at least.
"""

from __future__ import annotations

import math
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from analysis.comparison.paired_tests import holm
from analysis.comparison.ties import DECIDED, exact_means, untested, verdicts
from analysis.output.entries import Output
from analysis.output.selection import first_sampler
from analysis.output.style import dodged, label_panels, line_key, line_panels, points, save, step_axis
from analysis.records.load import Results, main_metric

_SECTION = "Comparison"
FEWEST = 3  # trainings of each recipe
ONE = "in one training"  # what the text says with fewer
_POWER = 0.8
_NONE = float("nan")


def training_of(model: str) -> tuple[str, int]:
    """Return the recipe that a model is a training of, and which one, from 1: ``adm-t2-es`` is 2 of ``adm-es``."""
    match = re.fullmatch(r"(.+?)-t(\d+)(-.+)?", model)
    if match is None or int(match[2]) < 2:
        return model, 1
    return match[1] + (match[3] or ""), int(match[2])


def welch(first: NDArray[np.float64], second: NDArray[np.float64]) -> dict[str, float]:
    """Return Welch's t-test of two sets of trainings, whose spread may differ.

    With means m, variances s^2 and numbers n of both sides, t = (m_1 - m_2) / error, error^2 = s_1^2 / n_1 + s_2^2 /
    n_2, of error^4 / sum((s^2 / n)^2 / (n - 1)) degrees of freedom. ``detectable`` is the difference that this test
    sees with a chance of 80 % (about: t of .975 plus t of .8, times the error).
    """
    parts = np.array([values.var(ddof=1) / len(values) for values in (first, second)])
    delta, error = float(first.mean() - second.mean()), math.sqrt(parts.sum())
    row = {"delta": delta, "error": error}
    if not error:
        return row
    freedom = float(parts.sum() ** 2 / (parts**2 / (len(first) - 1, len(second) - 1)).sum())
    return row | {"freedom": freedom} | _student(delta, error, freedom)


def _student(delta: float, error: float, freedom: float) -> dict[str, float]:
    """Return t of a difference with its two-sided p, and what would have been seen with a chance of 80 %."""
    t = delta / error
    seen = sum(float(stdtrit(freedom, q)) for q in (1 - 0.05 / 2, _POWER)) * error
    return {"t": t, "p": 2 * float(stdtr(freedom, -abs(t))), "detectable": seen}


def paired(differences: NDArray[np.float64]) -> dict[str, float]:
    """Return the paired t-test of two recipes from their differences training by training, with n - 1 degrees.

    t = mean / error, error = s / sqrt(n); ``paired_detectable`` as in :func:`welch`.
    """
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    if not error:
        return {}
    row = {"error": error} | _student(float(differences.mean()), error, len(differences) - 1)
    return {f"paired_{name}": value for name, value in row.items()}


def trainings_table(results: Results) -> pd.DataFrame:
    """Return the spread of each recipe over trainings and over seeds, and the test of each pair of recipes.

    Empty where no recipe comes with two trainings. A training's value is its mean distance over the seeds that all of
    them share at a sampler and step count.

    Columns:
        trainings, mean: of ``model``, a recipe.
        sd_trainings, sd_seeds: std of a training's value over trainings; of one seed's distance over seeds, the mean
            over trainings.
        error_seeds: sd_seeds / sqrt(seeds), what a training's value owes to its seeds alone.
        other, other_trainings, delta: what it is compared with, none in a recipe's own row; model less other.
        error, freedom, t, p, detectable: :func:`welch`, from three trainings a side on; ``p_holm`` is corrected over
            all rows.
        paired_error, paired_t, paired_p, paired_detectable: :func:`paired` over the numbers that both have, from three
            on: for recipes whose trainings of one number share a start or seed. Not corrected, no part of the verdict.
        excess: the farther recipe's mean less the distance of an exact sampler.
        verdict: :func:`analysis.comparison.ties.verdicts` of the recipe, or ``in one training`` where there are fewer.
    """
    values = _values(results)
    if values.empty or not (values.groupby("recipe")["training"].nunique() > 1).any():
        return pd.DataFrame()
    rows: list[dict[str, Any]] = []
    exact = exact_means(results.metrics, main_metric(results.metrics))
    for (sampler, steps), place in values.groupby(["sampler", "steps"], sort=False):
        wide = place.pivot_table(index="seed", columns=["recipe", "training"], values="value", sort=False).dropna()
        if wide.empty:
            continue
        recipes = list(dict.fromkeys(wide.columns.get_level_values("recipe")))
        where = {"sampler": sampler, "steps": steps, "seeds": len(wide)}
        rows += [where | _spread(name, wide[name]) | {"other": "", "verdict": ""} for name in recipes]
        for other, name in combinations(recipes, 2):
            row = where | _spread(name, wide[name]) | _against(other, wide[name], wide[other])
            farthest = max(row["mean"], row["mean"] - row["delta"])
            rows.append(row | {"excess": farthest - exact.get(int(place["steps"].iloc[0]), _NONE)})
    if not rows:
        return pd.DataFrame()
    names = (
        "other", "other_trainings", "delta", "error", "freedom", "t", "p", "p_holm", "detectable", "paired_error",
        "paired_t", "paired_p", "paired_detectable", "excess", "verdict",
    )  # fmt: skip
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[*(name for name in table if name not in names), *names])
    table["p_holm"] = holm(table["p"])
    table["verdict"] = np.where(table["p"].notna(), verdicts(table), table["verdict"])
    return table.astype({"other_trainings": "Int64"})


def _values(results: Results) -> pd.DataFrame:
    """Return the distance of every cell with its recipe and training."""
    metrics = results.metrics
    scores = metrics[(metrics["metric"] == main_metric(metrics)) & metrics["value"].notna()].astype({"value": float})
    origins = [training_of(str(model)) for model in scores["model"]]
    return scores.assign(recipe=[recipe for recipe, _ in origins], training=[number for _, number in origins])


def _spread(recipe: str, values: pd.DataFrame) -> dict[str, Any]:
    """Return a recipe's mean and spreads; values [seeds, trainings]."""
    seeds, trainings = values.shape
    of_seeds = float(values.std(ddof=1).mean()) if seeds > 1 else _NONE
    return {
        "model": recipe, "trainings": trainings, "mean": float(values.to_numpy().mean()),
        "sd_trainings": float(values.mean().std(ddof=1)) if trainings > 1 else _NONE,
        "sd_seeds": of_seeds, "error_seeds": of_seeds / math.sqrt(seeds),
    }  # fmt: skip


def _against(other: str, ours: pd.DataFrame, theirs: pd.DataFrame) -> dict[str, Any]:
    """Return the test of a recipe against another, without p where either has too few trainings."""
    first, second = (values.mean().to_numpy() for values in (ours, theirs))
    row = {"other": other, "other_trainings": len(second), "delta": float(first.mean() - second.mean())}
    if min(len(first), len(second)) < FEWEST:
        return row | {"verdict": ONE}
    differences = (ours.mean() - theirs.mean()).dropna().to_numpy()  # of trainings of one number
    pairing = paired(differences) if len(differences) >= FEWEST else {}
    return row | welch(first, second) | pairing | {"verdict": "tie"}


def trainings_sentence(table: pd.DataFrame) -> str:
    """Say which recipes differ over trainings, and what is known of one training alone."""
    pairs = table[table["other"] != ""]
    tested = pairs[pairs["p"].notna()]
    standing = tested[tested["verdict"].isin(DECIDED)]
    text = f"{len(pairs) - len(tested)} of {len(pairs)} comparisons hold {ONE} only"
    if not len(tested):
        return f"{text}: a claim about a recipe takes {FEWEST} trainings a side."
    named = []
    for (model, verdict, steps), rows in standing.groupby(["model", "verdict", "steps"], sort=False):
        others, sizes = ", ".join(rows["other"]), ", ".join(f"{t:.1f}" for t in rows["t"])
        side = "closer" if verdict == "win" else "farther"
        named.append(f"{model} is {side} than {others} at {steps} steps (t = {sizes})")
    blind = untested(tested)
    power = f"none sees less than {tested['detectable'].min():.2g}{'; ' if blind else ''}{blind}"
    return (
        f"{', '.join(named) or 'No recipe differs from another'} over trainings"
        f" (Welch's t-test, Holm, {len(tested)} comparisons; {power}); {text}."
    )


def draw_trainings(table: pd.DataFrame, metric: str, values: pd.DataFrame, folder: Path) -> list[Path]:
    """Distance against steps: a dot a training, lines and bars the mean and std over trainings of a recipe."""
    table, sampler = first_sampler(table[table["other"] == ""])
    values = values[values["sampler"] == sampler].groupby(["recipe", "training", "steps"])["value"].mean().reset_index()
    steps = sorted(int(count) for count in table["steps"].unique())
    with line_panels(list(dict.fromkeys(table["model"])), 1) as (figure, rows):
        for row in rows:
            axis = row.axes[0]
            for position, recipe in enumerate(row.paint):
                line = table[table["model"] == recipe].sort_values("steps")
                x = dodged(line["steps"].tolist(), position, len(row.paint))
                points(row, axis, recipe, x, line["mean"].tolist(), line["sd_trainings"].tolist())
                places = dict(zip(line["steps"], x, strict=True))
                dots = values[(values["recipe"] == recipe) & values["steps"].isin(places)]
                at = [places[count] for count in dots["steps"]]
                axis.scatter(at, dots["value"], s=9, facecolors="none", edgecolors=row.paint[recipe], linewidths=0.7)
            step_axis(axis, steps)
            axis.set_ylabel(f"{metric}\n(lower is better)")
        label_panels(rows, along="sampling steps")
        line_key(figure, rows, {})
        return save(figure, folder, "trainings")


def analyse(results: Results, out: Output) -> None:
    """Write and draw the comparison over trainings, where any recipe comes with two."""
    table, metric = trainings_table(results), main_metric(results.metrics)
    if not len(table) or metric is None:
        return
    caption = (
        f"{metric} of trainings of one recipe, each its mean over shared seeds. sd_trainings: std over trainings;"
        " sd_seeds: std over the seeds of a training, and error_seeds over the root of their number, what chance in"
        " sampling adds. Pairs of recipes: Welch's t-test over trainings from three a side on; detectable: the"
        f" difference seen with a chance of 80 % before correction. {trainings_sentence(table)} {results.account()}."
    )
    out.table(_SECTION, "trainings", table, "Recipes over several trainings", caption)
    out.figure(
        _SECTION, draw_trainings(table, metric, _values(results), out.figures), "Recipes over several trainings",
        f"A circle is one training, a line with bars mean ± std over trainings of a recipe. {caption}",
    )  # fmt: skip
