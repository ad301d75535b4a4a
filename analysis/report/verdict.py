"""The verdict: findings on quality, on variance and on norms of the noise, and one sentence for each.

All three speak of one sampler, the ancestral one where there are several, and take the first model of the run for the
baseline. What few steps alone do is told from what a network does by the exact denoisers on the same levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.comparison.pairs import pairs_table
from analysis.comparison.ties import untested
from analysis.comparison.trainings import ONE, trainings_sentence, trainings_table
from analysis.exposure_bias.norms import norm_table
from analysis.exposure_bias.variance import final_table, variance_table
from analysis.quality.main_table import quality_table
from analysis.records.load import Results

_BAND = 2  # standard errors
_FORCED = {"heldout": "held-out images", "train": "training images"}  # the first that was measured is taken


@dataclass(frozen=True)
class Quality:
    """Which comparisons with the baseline stand after the correction.

    Attributes:
        metric: the Frechet distance; None where none was scored.
        baseline: the first model of the run.
        models: how many were run.
        compared: comparisons with the baseline, one a model and step count.
        closer: step counts at which a model is closer to the data than the baseline, by model.
        farther: those at which it is farther.
        lowest: the lowest distance with its spread, its model and step count, as text; empty where none is known.
        reason: why no distance is known.
        trainings: what several trainings of recipes say; else, where weights differ, that each is one training.
        misfits: models that were run and have no part, since their description does not fit.
        untested: how many of the comparisons could have shown nothing, as text; empty for none.
    """

    metric: str | None
    baseline: str = ""
    models: int = 0
    compared: int = 0
    closer: dict[str, list[int]] = field(default_factory=dict)
    farther: dict[str, list[int]] = field(default_factory=dict)
    lowest: str = ""
    reason: str = ""
    trainings: str = ""
    misfits: tuple[str, ...] = ()
    untested: str = ""


@dataclass(frozen=True)
class Level:
    """A measured value at one step count, its standard error, and the range of exact denoisers; NaN where unknown."""

    steps: int
    value: float
    error: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")

    @property
    def outside(self) -> int:
        """Return 1 above and -1 below the range of exact denoisers by more than two standard errors, else 0."""
        return int(self.value - self.high > _BAND * self.error) - int(self.low - self.value > _BAND * self.error)


@dataclass(frozen=True)
class Walks:
    """A measure of sampling at each model and step count, against exact denoisers on the same levels.

    Attributes:
        levels: by model, ascending in steps; the baseline first.
        images: how many images it was measured on, as text.
        forced: what the norm is compared with, ``held-out images`` or ``training images``; empty for the variance.
    """

    levels: dict[str, list[Level]]
    images: str
    forced: str = ""

    @property
    def tested(self) -> list[Level]:
        """Return what has both a standard error and an exact denoiser beside it."""
        every = [level for levels in self.levels.values() for level in levels]
        return [level for level in every if np.isfinite(level.error) and np.isfinite(level.low)]


def verdict(results: Results) -> list[str]:
    """Return the three sentences as plain text, and where models are guided what they do not say."""
    sentences = [
        quality_sentence(quality(results), _basis(results)),
        variance_sentence(variance(results), _scope(results)[0]),
        norm_sentence(norms(results), _scope(results)[0]),
    ]
    guided = list(dict.fromkeys(str(record.cell["model"]) for record in results.cells if "guidance" in record.cell))
    return [*sentences, guided_sentence(guided)] if guided else sentences


def guided_sentence(models: Sequence[str]) -> str:
    """Return what a distance from the data does not mean for models under classifier-free guidance."""
    return (
        f"Guidance draws from another law than the data's: distances, variances and norms of {_listed(models)} away"
        " from the data's or an exact denoiser's are no exposure bias by themselves; compare models of one scale."
    )


def quality(results: Results) -> Quality:
    """Return what the paired tests and the table of distances say."""
    table, (sampler, models) = results.once(quality_table), _scope(results)
    if table is None:
        return Quality(None)
    misfits = tuple(results.misfits)
    if not models:
        return Quality(table.metric, misfits=misfits)
    rows = {str(row["model"]): row for _, row in table.table.iterrows() if row["sampler"] == sampler}
    rows = {model: rows[model] for model in models if model in rows}
    values = {(m, s): float(row[f"{s}"]) for m, row in rows.items() for s in table.steps if pd.notna(row[f"{s}"])}
    lowest = ""
    if values:
        model, steps = min(values, key=lambda key: values[key])
        lowest = f"{table.entry(rows[model], steps)}, {model} at {steps} steps"
    pairs = results.once(pairs_table)
    if len(pairs):
        pairs = pairs[(pairs["sampler"] == sampler) & (pairs["other"] == models[0])]
    closer, farther = (_steps_by_model(pairs, end) for end in ("win", "loss"))
    reason = _reasons(results, table.metric)
    trainings = _trainings(results, models[0], {*closer, *farther})
    counts = len(models), len(pairs)
    blind = untested(pairs) if len(pairs) else ""
    return Quality(table.metric, models[0], *counts, closer, farther, lowest, reason, trainings, misfits, blind)


def _trainings(results: Results, baseline: str, models: set[str]) -> str:
    """Return what several trainings say, or that models of other weights than the baseline's are one training each."""
    table = results.once(trainings_table)
    if len(table):
        return f" {trainings_sentence(table)}"
    weights = {str(record.cell["model"]): record.cell.get("weights") for record in results.cells}
    others = any(weights[model] is None or weights[model] != weights[baseline] for model in models)
    return f" What is said of other weights holds {ONE}, not of a recipe." if others else ""


def _steps_by_model(pairs: pd.DataFrame, end: str) -> dict[str, list[int]]:
    """Return the step counts at which the test ended so, by model."""
    if not len(pairs):
        return {}
    groups = pairs[pairs["verdict"] == end].groupby("model", sort=False)["steps"]
    return {str(model): sorted(map(int, steps)) for model, steps in groups}


def quality_sentence(finding: Quality, basis: str) -> str:
    """Say what stands after the correction, what the lowest distance is, and which models have no part."""
    if finding.metric is None:
        return "Which model is best was not measured: no Frechet distance was computed."
    if not finding.models:
        return "Which model is best is not said: no description fits its network."
    left_out = f" Left out, since the description does not fit: {_listed(finding.misfits)}." if finding.misfits else ""
    return _compared(finding, basis) + left_out


def _compared(finding: Quality, basis: str) -> str:
    lowest = (
        f"the lowest {finding.metric} is {finding.lowest}"
        if finding.lowest
        else f"no {finding.metric} could be computed ({finding.reason})"
    )
    if finding.models == 1:
        return f"Only {finding.baseline} is there, with nothing to compare: {lowest} ({basis})."
    if not finding.compared:
        return f"No model shares seeds and step counts with {finding.baseline} for a paired test: {lowest} ({basis})."
    tests = f"the paired test with Holm's correction ({_count(finding.compared, 'comparison')} with {finding.baseline})"
    ends = {"closer to the data than": finding.closer, "farther from the data than": finding.farther}
    standing = [f"{_places(places)} {end} {finding.baseline}" for end, places in ends.items() if places]
    blind = f"; {finding.untested}" if finding.untested else ""
    end = f"{tests}{blind}; {lowest} ({basis}).{finding.trainings}"
    if not standing:
        return f"No model is told from the baseline {finding.baseline} by {end}"
    return f"{' and '.join(standing)}, by {end}"


def _places(places: dict[str, list[int]]) -> str:
    named = [f"{model} at {_listed([str(count) for count in counts])} steps" for model, counts in places.items()]
    return f"{_listed(named)} {'is' if len(named) == 1 else 'are'}"


def variance(results: Results) -> Walks | None:
    """Return the variance of the finished samples over the truth; None where it was not recorded."""
    steps = _steps(results)
    table = variance_table(steps) if len(steps) else steps
    if not len(table):
        return None
    final = final_table(table).rename(columns={"ratio": "value"})
    return Walks(_levels(results, final), _range(final["n"]))


def norms(results: Results) -> Walks | None:
    """Return the norm of the predicted noise, free running over real images, its median over levels; None without."""
    steps = _steps(results)
    table = norm_table(steps) if len(steps) else steps
    arm = next((arm for arm in _FORCED if len(table) and table[f"ratio_{arm}"].notna().any()), None)
    if arm is None:
        return None
    exact = [name for name in table if str(name).startswith("exact_")]
    table = table[table[f"ratio_{arm}"].notna()].rename(columns={f"ratio_{arm}": "value"})
    medians = table.groupby(["model", "steps"], sort=False, observed=True)[["value", *exact]].median().reset_index()
    images = f"{_range(table['free_n'])} free-running and {_range(table[f'forced_{arm}_n'])} real images"
    return Walks(_levels(results, medians), images, _FORCED[arm])


def _levels(results: Results, table: pd.DataFrame) -> dict[str, list[Level]]:
    """Return a table's values by model, with the range over its ``exact_...`` columns."""
    exact = table[[name for name in table if str(name).startswith("exact_")]].astype(float)
    table = table.assign(low=exact.min(axis=1), high=exact.max(axis=1))
    errors = table["error"] if "error" in table else pd.Series(np.nan, index=table.index)
    levels: dict[str, list[Level]] = {}
    for model in _scope(results)[1]:
        rows = table[table["model"] == model].sort_values("steps")
        if len(rows):
            columns = rows.assign(error=errors)[["steps", "value", "error", "low", "high"]]
            levels[model] = [
                Level(int(count), *map(float, values)) for count, *values in columns.itertuples(index=False, name=None)
            ]
    return levels


def variance_sentence(finding: Walks | None, sampler: str) -> str:
    """Say whether the variance at the end of sampling is what exact denoisers leave on the same levels."""
    if finding is None:
        return "Whether sampling drifts was not measured: the variance of free-running states was not recorded."
    if not finding.levels:
        return "Whether sampling drifts is not told: no model has a variance that can be compared."
    model, text = _quoted(finding)
    end = f"{model} ends with {text} of the true variance ({sampler}, {finding.images} images, ± two standard errors)"
    if not finding.tested:
        missing = "no exact denoiser" if all(np.isnan(level.low) for level in finding.levels[model]) else "no error"
        return f"{end}; there is {missing} to tell what few steps alone cause."
    high, low = (sum(level.outside == side for level in finding.tested) for side in (1, -1))
    return (
        f"The variance of the finished samples lies outside the range of the exact denoisers on the same levels by more"
        f" than two standard errors in {high + low} of {_count(len(finding.tested), 'pair')} of model and step count,"
        f" above it in {high} and below in {low}: {end}."
    )


def norm_sentence(finding: Walks | None, sampler: str) -> str:
    """Say how large the predicted noise of free-running states is, beside exact denoisers."""
    if finding is None:
        return "The norm of the predicted noise, free running over teacher forced, was not measured."
    if not finding.levels:
        return "The norm of the predicted noise is not told: no model has one that can be compared."
    model, text = _quoted(finding)
    has_exact = any(np.isfinite(level.low) for level in finding.levels[model])
    note = "" if has_exact else "; no exact denoiser was computed, so what few steps alone cause is unknown"
    return (
        f"The norm of the predicted noise, free running over real noised {finding.forced}, has the median over a walk"
        f" of {text} for {model} ({sampler}, {finding.images}){note}."
    )


def _quoted(finding: Walks) -> tuple[str, str]:
    """Return the first model, and its values at the fewest and the most steps as text."""
    model, levels = next(iter(finding.levels.items()))
    return model, _listed([_level(level) for level in (levels[0], *levels[1:][-1:])])


def _level(level: Level) -> str:
    band = f" ± {_BAND * level.error:.3f}" if np.isfinite(level.error) else ""
    wide = f" to {level.high:.3f}" if level.high - level.low >= 0.0005 else ""
    exact = "" if np.isnan(level.low) else f" (exact: {level.low:.3f}{wide})"
    return f"{level.value:.3f}{band} at {level.steps} steps{exact}"


def _scope(results: Results) -> tuple[str, list[str]]:
    """Return the sampler that is spoken of and its models, the baseline first; misdescribed ones have no part."""
    samplers = [str(record.cell["sampler"]) for record in results.cells]
    sampler = "ddpm" if "ddpm" in samplers else samplers[0]
    models = list(dict.fromkeys(str(r.cell["model"]) for r in results.cells if r.cell["sampler"] == sampler))
    return sampler, [model for model in models if model not in results.misfits]


def _steps(results: Results) -> pd.DataFrame:
    steps = results.steps
    return steps[steps["sampler"] == _scope(results)[0]] if len(steps) else steps


def _basis(results: Results) -> str:
    """Return sampler, N and seeds, and what they leave open."""
    sampler, _ = _scope(results)
    seeds = {record.cell["seed"] for record in results.cells if record.cell["sampler"] == sampler}
    unknown = ", so the spread over seeds is unknown" if len(seeds) == 1 else ""
    return f"{sampler}, {results.account(sampler)}{unknown}"


def _reasons(results: Results, metric: str) -> str:
    scores = results.metrics
    reasons = dict.fromkeys(str(reason) for reason in scores.loc[scores["metric"] == metric, "reason"] if reason)
    return "; ".join(reasons) or "no reason was recorded"


def _range(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
