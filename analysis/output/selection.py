"""Which rows a figure shows: one sampler, at most four step counts, values averaged over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

_PANELS = 4  # drawn side by side
EXACT = ("gaussian", "mixture", "empirical")  # stand-ins for the data's law, whose exact denoisers walk the same levels


def first_sampler(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Keep one sampler a figure, the ancestral one where there are several."""
    sampler = "ddpm" if (table["sampler"] == "ddpm").any() else str(table["sampler"].iloc[0])
    return table[table["sampler"] == sampler], sampler


def most_steps(table: pd.DataFrame) -> tuple[pd.DataFrame, str, int]:
    """Keep the first sampler's walks with the most steps; return them, the sampler and the number of steps."""
    table, sampler = first_sampler(table)
    steps = int(table["steps"].max())
    return table[table["steps"] == steps], sampler, steps


def models_of(table: pd.DataFrame) -> list[str]:
    """Return the models in the order of the run."""
    return [str(model) for model in table["model"].unique()]


def shown(values: Sequence[int], most: int = _PANELS) -> list[int]:
    """Return all of some ascending values, or ``most`` spread from the first to the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(float(position))] for position in np.linspace(0, len(values) - 1, most)]


def step_counts(table: pd.DataFrame) -> list[int]:
    """Return the step counts to draw: all, or four (three of many models) spread from fewest to most.

    Where some are left out, those at which less than half of the models were run are.
    """
    models = table.groupby("steps")["model"].nunique().sort_index()
    most = _PANELS if table["model"].nunique() <= _PANELS else _PANELS - 1
    if len(models) > most:
        models = models[models >= models.max() / 2]
    return shown([int(count) for count in models.index], most)


def over_seeds(steps: pd.DataFrame, quantity: str, arms: Sequence[str]) -> pd.DataFrame:
    """Return a quantity's mean over seeds, the standard error of that mean and N, by sampler, model, steps, arm, level.

    The error is that over images, std / sqrt(N); seeds are more images.
    """
    chosen = steps[(steps["quantity"] == quantity) & steps["arm"].isin(arms)]
    keys = ["sampler", "model", "steps", "arm", "i", "t"]
    grouped = chosen.groupby(keys, sort=False, observed=True)
    result = grouped.agg(
        value=("value", "mean"), std=("std", "mean"), n=("n", "sum"), alpha=("alpha", "first"), sigma=("sigma", "first")
    ).reset_index()
    result["error"] = result["std"] / np.sqrt(result["n"].where(result["n"] > 0))
    return result.sort_values("t", kind="stable")  # models keep the order of the run


def exact_values(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return what exact denoisers show at each place, a column ``exact_<law>`` for each stand-in that was walked.

    Args:
        table: of ``over_seeds``; arms of other names than the stand-ins', free running or forced, are passed over.
        keys: columns that name a place, where all rows of one stand-in say the same.
    """
    laws = table["arm"].astype(str).str.removesuffix("-forced")
    exact = table.assign(law="exact_" + laws)[laws.isin(EXACT)].drop_duplicates([*keys, "law"])
    return exact.pivot(index=keys, columns="law", values="value").rename_axis(columns=None).reset_index()


def thinned(table: pd.DataFrame, most: int = 20) -> pd.DataFrame:
    """Keep at most twenty levels of each walk, spread evenly: what a table for people and for git can hold."""
    if not len(table):
        return table
    names = [name for name in ("sampler", "model", "steps", "arm") if name in table]
    walk = table.groupby(names, sort=False, observed=True).ngroup()
    levels = pd.DataFrame({"walk": walk, "i": table["i"]}).drop_duplicates().sort_values(["walk", "i"])
    by_walk = levels.groupby("walk")["i"]
    rank, size = by_walk.cumcount(), by_walk.transform("size")
    places = {count: set(shown(range(count), most)) for count in size.unique()}
    levels = levels[[position in places[count] for position, count in zip(rank, size, strict=True)]]
    chosen = pd.MultiIndex.from_arrays([walk, table["i"]]).isin(pd.MultiIndex.from_frame(levels))
    order = np.argsort(walk[chosen].to_numpy(), kind="stable")  # walk after walk
    return table[chosen].iloc[order].reset_index(drop=True)
