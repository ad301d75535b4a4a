"""The verdict: three sentences generated from the numbers, on quality, on variance, and on norms of the noise.

Each names what was compared, with N and seeds, and claims what its own test shows and no more; what was not measured is
said not to have been. All three speak of one sampler, the ancestral one where there are several, and take the first
model of the run for the baseline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.comparison.significance import compare
from analysis.exposure_bias.norms import norm_table
from analysis.exposure_bias.variance import final_table, variance_table
from analysis.quality.fid_vs_steps import quality_table
from analysis.records.arrays import cell_terms
from analysis.records.load import Results

_BAND = 2  # standard errors
_FORCED = {"heldout": "held-out images", "train": "training images"}  # the first that was measured is taken


def verdict(results: Results) -> list[str]:
    """Return the three sentences as plain text."""
    return [quality_sentence(results), variance_sentence(results), norm_sentence(results)]


def quality_sentence(results: Results) -> str:
    """Say which model has the lowest Frechet distance, and whether the paired test tells it from the baseline."""
    quality, (sampler, models), basis = results.once(quality_table), _scope(results), _basis(results)
    if quality is None:
        return "Which model is best was not measured: no Frechet distance was computed."
    rows = {str(row["model"]): row for _, row in quality.table.iterrows() if row["sampler"] == sampler}
    values = {(m, s): float(row[f"{s}"]) for m, row in rows.items() for s in quality.steps if pd.notna(row[f"{s}"])}
    if not values:
        tested = _tested(results, models[1:])
        return f"No {quality.metric} could be computed ({_reasons(results, quality.metric)}); {tested} ({basis})."
    model, steps = min(values, key=lambda key: values[key])
    lowest = f"{quality.entry(rows[model], steps)}, {model} at {steps} steps"
    if len({m for m, _ in values}) == 1:
        return f"Only {model} was scored, with nothing to compare: its lowest {quality.metric} is {lowest} ({basis})."
    leaders, wins, contested = _leaders(values)
    if not contested:
        return f"No two models were scored at one step count: the lowest {quality.metric} is {lowest} ({basis})."
    leads = "has the lowest" if len(leaders) == 1 else "share the lead, each with the lowest"
    return (
        f"{_listed(leaders)} {leads} {quality.metric} at"
        f" {_share(wins, contested, 'step count')} (the lowest of all: {lowest}; {basis}); {_tested(results, leaders)}."
    )


def _leaders(values: Mapping[tuple[str, int], float]) -> tuple[list[str], int, int]:
    """Return the models lowest at most step counts, at how many, and how many had two models or more."""
    wins: Counter[str] = Counter()
    contested = 0
    for steps in {s for _, s in values}:
        here = {m: value for (m, s), value in values.items() if s == steps}
        if len(here) > 1:
            contested += 1
            wins.update(m for m, value in here.items() if value == min(here.values()))
    most = max(wins.values(), default=0)
    return [m for m in dict.fromkeys(m for m, _ in values) if wins[m] == most], most, contested


def _tested(results: Results, leaders: Sequence[str]) -> str:
    """Say what the paired kernel test finds of the leaders against the baseline, or of the baseline against all."""
    _, (baseline, *others) = _scope(results)
    first = [model for model in leaders if model != baseline] or [baseline]
    second = others if first == [baseline] else [baseline]
    found = Counter(_verdicts(results, [(one, other) for one in first for other in second]))
    if not found:
        return "the paired kernel test has no shared seeds to compare models on"
    against = f"the baseline {baseline}" if second == [baseline] else _listed(second)
    at, unit = ("at", "step count") if len(first) == len(second) == 1 else ("in", "comparison")
    test = "the paired kernel test (shared seeds, |z| > 1.96, not corrected for the number of tests)"
    told = found["win"] + found["loss"]
    share = _share(told, found.total(), unit)
    if not told:
        return f"{test} cannot tell {_listed(first)} from {against} ({share})"
    ends = f"closer to the data in {found['win']}, farther in {found['loss']}"
    return f"{test} tells {_listed(first)} from {against} {at} {share}: {ends}"


def _verdicts(results: Results, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    sampler, _ = _scope(results)
    for terms in cell_terms(results).values():
        for one, other in pairs:
            comparison = compare(terms.get((one, sampler), {}), terms.get((other, sampler), {}))
            if comparison is not None:
                yield comparison.verdict


def variance_sentence(results: Results) -> str:
    """Say whether the variance at the end of sampling is that of an exact denoiser on the same levels."""
    steps = _steps(results)
    table = variance_table(steps) if len(steps) else steps
    if not len(table):
        return "Whether sampling drifts was not measured: the variance of free-running states was not recorded."
    final = final_table(table)
    model, quoted = _quoted(results, final)
    shown = _listed([_banded(row) for _, row in quoted.iterrows()])
    own = f"{model} ends with {shown} of the true variance"
    basis = f"({_scope(results)[0]}, {_range(quoted['n'])} images, ± two standard errors)"
    if final["few_steps"].isna().all():
        return f"{own} {basis}; no exact denoiser was computed, so what few steps alone cause is unknown."
    tested = final[np.isfinite(final["z"])]
    if not len(tested):
        return f"{own} {basis}; without standard errors nothing can be tested."
    high, low = int((tested["z"] > _BAND).sum()), int((tested["z"] < -_BAND).sum())
    return (
        f"The variance of the finished samples differs by more than two standard errors from that of an exact denoiser"
        f" (Gaussian data, same levels) in {_share(high + low, len(tested), 'pair')} of model and step count, higher"
        f" in {high} and lower in {low}: {own} {basis}."
    )


def _banded(row: pd.Series) -> str:
    """Return a variance ratio with its band and, where there is one, the exact denoiser's."""
    band = f" ± {_BAND * row['error']:.3f}" if np.isfinite(row["error"]) else ""
    exact = "" if pd.isna(row["few_steps"]) else f" (exact denoiser: {1 + row['few_steps']:.3f})"
    return f"{row['ratio']:.3f}{band} at {row['steps']} steps{exact}"


def norm_sentence(results: Results) -> str:
    """Say whether the predicted noise of free-running states is as large as that of real noised images."""
    steps = _steps(results)
    table = norm_table(steps) if len(steps) else steps
    arm = next((arm for arm in _FORCED if len(table) and table[f"ratio_{arm}"].notna().any()), None)
    if arm is None:
        return "The norm of the predicted noise, free running over teacher forced, was not measured."
    table = table[table[f"ratio_{arm}"].notna()]
    z = (table[f"ratio_{arm}"] - 1) / table[f"ratio_{arm}_error"]
    z = z[np.isfinite(z)]
    beyond = f"above 1 by more than two standard errors at {_share((z > _BAND).sum(), len(z), 'level')}"
    beyond += f" and below at {(z < -_BAND).sum()} (by chance alone about 2 in 100 each)"
    grouped = table.groupby(["model", "steps"], sort=False, observed=True)[f"ratio_{arm}"]
    medians = grouped.median().rename("median").reset_index()
    model, quoted = _quoted(results, medians)
    own = _listed([f"{row['median']:.3f} at {row['steps']} steps" for _, row in quoted.iterrows()])
    basis = f"{_scope(results)[0]}, {_range(table['free_n'])} free-running and {_range(table[f'forced_{arm}_n'])} real"
    return (
        f"The norm of the predicted noise, free running over real noised {_FORCED[arm]}, is"
        f" {beyond if len(z) else 'without standard errors and cannot be tested'}; its median over a walk is {own} for"
        f" {model}{_extremes(medians) if len(medians) > len(quoted) else ''} ({basis} images)."
    )


def _extremes(medians: pd.DataFrame) -> str:
    ends = [row for _, row in medians.sort_values("median").iloc[[0, -1]].iterrows()]
    low, high = (f"{row['median']:.3f} ({row['model']}, {row['steps']} steps)" for row in ends)
    return f" and over all runs from {low} to {high}"


def _scope(results: Results) -> tuple[str, list[str]]:
    """Return the sampler that is spoken of and its models, the baseline first."""
    samplers = [str(record.cell["sampler"]) for record in results.cells]
    sampler = "ddpm" if "ddpm" in samplers else samplers[0]
    return sampler, list(dict.fromkeys(str(r.cell["model"]) for r in results.cells if r.cell["sampler"] == sampler))


def _steps(results: Results) -> pd.DataFrame:
    steps = results.steps
    return steps[steps["sampler"] == _scope(results)[0]] if len(steps) else steps


def _basis(results: Results) -> str:
    """Return sampler, N and seeds, and what they leave open."""
    sampler, _ = _scope(results)
    cells = [record.cell for record in results.cells if record.cell["sampler"] == sampler]
    seeds = Counter((cell["model"], cell["steps"]) for cell in cells).values()
    fewer = f", {min(seeds)} to {max(seeds)} of them a model and step count" if min(seeds) != max(seeds) else ""
    unknown = ", so the spread over seeds is unknown" if max(seeds) == 1 else ""
    return f"{sampler}, {results.account(sampler)}{fewer}{unknown}"


def _reasons(results: Results, metric: str) -> str:
    scores = results.metrics
    reasons = dict.fromkeys(str(reason) for reason in scores.loc[scores["metric"] == metric, "reason"] if reason)
    return "; ".join(reasons) or "no reason was recorded"


def _quoted(results: Results, frame: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return the first model of the run that a table holds, and its rows of fewest and most steps."""
    model = next(model for model in _scope(results)[1] if (frame["model"] == model).any())
    own = frame[frame["model"] == model].sort_values("steps")
    return model, own.iloc[[0, -1] if len(own) > 1 else [0]]


def _range(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _share(part: int, whole: int, noun: str) -> str:
    return f"{part} of {_count(whole, noun)}"
