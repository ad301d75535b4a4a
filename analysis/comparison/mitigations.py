"""Every remedy against its baseline on shared seeds: quality, extra cost, exposure bias before and after, and ranks.

A row compares a remedy with its baseline at one sampler and step count, over the seeds that both were run with under
the same settings. The paired test of the Frechet distance decides, and ``ratio`` says by how much: it is that of the
means over seeds, with the test's interval. Records without influence functions are decided by the kernel distance.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from analysis.comparison.baselines import Remedy, corrections, find_remedies
from analysis.comparison.forest import draw_mitigations
from analysis.comparison.paired_tests import CRITICAL, DETECTABLE, Comparison, compare, holm, p_value, rank_intervals
from analysis.comparison.ties import DECIDED, exact_means, untested, verdicts
from analysis.output.entries import Entry, Output
from analysis.output.text import latex, markdown
from analysis.records.arrays import Row, Terms, cell_terms
from analysis.records.load import CellRecord, Results, main_metric

_SECTION = "Mitigations"
_SETTINGS = (
    "spacing", "eta", "variance", "churn", "s_min", "s_max", "s_noise", "clip", "quantize", "precision",
    "class_labels", "guidance", "guidance_interval", "samples", "data", "classifier", "classifier_scale",
)  # fmt: skip
_CELL = ["sampler", "model", "steps", "seed"]
_END = "variance_end_gap"
_LEAST_RATIO = 1e-3  # where an interval of ratios is cut: axes are logarithmic

_BIAS: Mapping[str, str] = {
    "variance_end_gap": "Var(x) / true variance of the finished samples - that of an exact denoiser of Gaussian data"
    " on the same levels, without remedies",
    "variance_network": "mean over levels of |variance ratio - that of that exact denoiser|",
    "eps_gap_heldout_signed": "mean over levels of ln(||eps|| free / teacher forced on held-out images)",
    "eps_gap_signed": "mean over levels of ln(||eps|| free / teacher forced on training images)",
}
_ARMS = ("free", "gaussian", "forced-heldout", "forced-train")
_COLUMNS = (
    "sampler", "steps", "model", "kind", "baseline", "corrections", "metric", "seeds", "value", "sd", "baseline_value",
    "baseline_sd", "ratio", "ratio_low", "ratio_high", "distance", "delta", "error", "z", "p", "p_holm",
    "detectable", "excess", "verdict", "rank_low", "rank_high", "nfe", "calls_ratio", "call_time_ratio", "time_ratio",
)  # fmt: skip

Place = tuple[str, int]  # sampler, steps
Measures = Mapping[str, Mapping[Any, float]]  # by name, and by sampler, model, steps, seed


@dataclass(frozen=True)
class _Records:
    """What the rows are made of: cells, terms of the tests and scores by model, place and seed."""

    cells: Mapping[tuple[str, Place], Mapping[int, CellRecord]]
    terms: Mapping[int, Mapping[Row, Terms]]
    scores: Mapping[tuple[str, str, int, int], float]
    measures: Measures

    def shared(self, model: str, other: str, place: Place) -> list[int]:
        """Return the seeds that two models were run with under the same settings."""
        first, second = self.cells.get((model, place), {}), self.cells.get((other, place), {})
        return [seed for seed in sorted(first.keys() & second.keys()) if _alike(first[seed], second[seed])]

    def compared(self, model: str, other: str, place: Place) -> Comparison | None:
        """Return the paired test of two models, None where they share no seeds."""
        seeds = self.shared(model, other, place)
        both = (self.terms.get(place[1], {}).get((name, place[0]), {}) for name in (model, other))
        return compare(*({seed: terms[seed] for seed in seeds if seed in terms} for terms in both))

    def values(self, model: str, place: Place, seeds: Sequence[int]) -> NDArray[np.float64]:
        """Return the Frechet distances of seeds, NaN where there is none."""
        return np.array([self.scores.get((place[0], model, place[1], seed), math.nan) for seed in seeds])


def _alike(first: CellRecord, second: CellRecord) -> bool:
    return all(first.cell.get(name) == second.cell.get(name) for name in _SETTINGS)


def _read(results: Results) -> _Records:
    cells: dict[tuple[str, Place], dict[int, CellRecord]] = {}
    for record in results.cells:
        place = (str(record.cell["sampler"]), int(record.cell["steps"]))
        cells.setdefault((str(record.cell["model"]), place), {})[record.cell["seed"]] = record
    metrics = results.metrics
    chosen = metrics[metrics["metric"] == main_metric(metrics)].astype({"value": float})
    scores = {
        (str(sampler), str(model), int(steps), int(seed)): float(value)
        for sampler, model, steps, seed, value in chosen[[*_CELL, "value"]].itertuples(index=False, name=None)
    }
    return _Records(cells, results.once(cell_terms), scores, _measures(results.steps))


def _measures(steps: pd.DataFrame) -> Measures:
    """Return the three measures of exposure bias by cell, signed.

    They are those of :data:`analysis.exposure_bias.quality_correlation.DEFINITIONS`. The first is the last level's
    part of ``variance_network``; where no image was held out, training images serve.
    """
    empty: Measures = {name: {} for name in (_END, "variance_network", "eps_gap_heldout_signed")}
    if not len(steps):
        return empty
    chosen = steps[steps["quantity"].isin(["eps_norm", "variance_ratio"]) & steps["arm"].isin(_ARMS)]
    keys = [*_CELL, "i", "quantity", "arm"]
    wide = chosen.groupby(keys, observed=True)["value"].mean().unstack(["quantity", "arm"])
    wide = wide.reindex(columns=pd.MultiIndex.from_product([["eps_norm", "variance_ratio"], _ARMS]))
    gap = wide["variance_ratio", "free"] - wide["variance_ratio", "gaussian"]
    heldout = bool(wide["eps_norm", "forced-heldout"].notna().any())
    ratio = wide["eps_norm", "free"] / wide["eps_norm", "forced-heldout" if heldout else "forced-train"]
    measures: dict[str, pd.Series] = {
        _END: gap[gap.index.get_level_values("i") < 0],
        "variance_network": gap.abs(),
        "eps_gap_heldout_signed" if heldout else "eps_gap_signed": ratio[ratio > 0].map(math.log),
    }
    return {name: values.groupby(level=_CELL).mean().dropna().to_dict() for name, values in measures.items()}


def mitigations_table(results: Results) -> pd.DataFrame:
    """Return one row a remedy, sampler and step count, and one a baseline; the best mean of each first.

    Columns are those of ``tables/mitigations.csv``, named in docs/analysis.md. Empty without any remedy that shares
    seeds with its baseline.
    """
    remedies = find_remedies(results)
    if not remedies:
        return pd.DataFrame()
    records, rows = _read(results), []
    for place in dict.fromkeys(place for _, place in records.cells):
        compared = [remedy for remedy in remedies if records.shared(remedy.model, remedy.baseline, place)]
        treated = {remedy.model for remedy in compared}
        baselines = [name for name in dict.fromkeys(r.baseline for r in compared) if name not in treated]
        place_rows = [_against(records, remedy, place) for remedy in compared]
        place_rows += [_alone(records, name, place) for name in baselines]
        rows += _ranked(records, place_rows, place)
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).assign(metric=main_metric(results.metrics))
    table["p_holm"] = holm(table["p"])
    exact = exact_means(results.metrics, main_metric(results.metrics))
    table["excess"] = table["farthest"] - table["steps"].map(exact)
    table["verdict"] = np.where(table["p"].notna(), verdicts(table), "")
    table = table.drop(columns="farthest")
    table["place"] = pd.factorize(table["sampler"])[0]
    order = table.sort_values(["place", "steps", "value"], kind="stable", ignore_index=True).drop(columns="place")
    columns = [*_COLUMNS, *(name for name in order if name not in _COLUMNS)]
    return order[columns].astype({"rank_low": "Int64", "rank_high": "Int64"})


def _against(records: _Records, remedy: Remedy, place: Place) -> dict[str, Any]:
    """Return a remedy's row, without its rank."""
    seeds = records.shared(remedy.model, remedy.baseline, place)
    cells, other = (records.cells[name, place] for name in (remedy.model, remedy.baseline))
    quality = _quality(records.values(remedy.model, place, seeds), records.values(remedy.baseline, place, seeds))
    comparison = records.compared(remedy.model, remedy.baseline, place)
    return {
        **_begin(place, remedy, cells[seeds[0]]),
        **quality,
        **_ratio_interval(comparison, quality["baseline_value"]),
        **_tested(comparison),
        **_cost([(cells[seed].facts, other[seed].facts) for seed in seeds]),
        **_bias(records.measures, place, seeds, remedy.model, remedy.baseline),
    }


def _alone(records: _Records, model: str, place: Place) -> dict[str, Any]:
    """Return a baseline's row: its own numbers, nothing compared."""
    cells = records.cells[model, place]
    values = records.values(model, place, sorted(cells))
    return {
        **_begin(place, Remedy(model, "", "baseline"), next(iter(cells.values()))),
        **_quality(values, np.full(len(values), math.nan)),
        **_tested(None),
        **_cost([(cells[seed].facts, {}) for seed in cells]),
        **_bias(records.measures, place, sorted(cells), model, None),
    }


def _begin(place: Place, remedy: Remedy, record: CellRecord) -> dict[str, Any]:
    return {"sampler": place[0], "steps": place[1], **asdict(remedy), "corrections": corrections(record.cell)}


def _quality(values: NDArray[np.float64], others: NDArray[np.float64]) -> dict[str, Any]:
    """Return mean and standard deviation of both over seeds that both have, and the ratio of the means.

    The interval is that of the ratio estimator with Student's t on its logarithm, from three seeds on.
    """
    alone = bool(np.isnan(others).all())
    both = ~np.isnan(values) & (alone | ~np.isnan(others))
    treated, other = values[both], others[both]
    mean, base = (float(array.mean()) if len(array) else math.nan for array in (treated, other))
    ratio = mean / base if base > 0 else math.nan
    low = high = math.nan
    if len(treated) > 2 and ratio > 0:
        error = (treated - ratio * other).std(ddof=1) / math.sqrt(len(treated)) / mean
        wide = float(stdtrit(len(treated) - 1, 0.975) * error)
        low, high = ratio * math.exp(-wide), ratio * math.exp(min(wide, 700.0))
    return {
        "seeds": len(values), "value": mean, "sd": _spread(treated), "baseline_value": base,
        "baseline_sd": _spread(other), "ratio": ratio, "ratio_low": low, "ratio_high": high,
    }  # fmt: skip


def _ratio_interval(comparison: Comparison | None, base: float) -> dict[str, Any]:
    """Return the test's 95 % interval over the baseline's distance, nothing where another distance was tested."""
    if comparison is None or comparison.distance != "frechet" or not base > 0:
        return {}
    half = CRITICAL * comparison.error
    low, high = (1 + (comparison.delta + side) / base for side in (-half, half))
    return {"ratio_low": max(low, _LEAST_RATIO), "ratio_high": high}


def _spread(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _tested(comparison: Comparison | None) -> dict[str, Any]:
    if comparison is None:
        return {**dict.fromkeys(("delta", "error", "z", "p", "detectable", "farthest"), math.nan), "distance": ""}
    return {
        "delta": comparison.delta,
        "error": comparison.error,
        "z": comparison.z,
        "p": float(p_value(comparison.z)),
        "detectable": DETECTABLE * comparison.error,
        "farthest": comparison.farthest,
        "distance": comparison.distance,
    }


def _cost(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """Return network calls an image and, over the baseline's: those, the time a call takes, and the time."""
    first, other = pairs[0]
    times = {
        "call_time_ratio": [_call_time(a) / _call_time(b) for a, b in pairs],
        "time_ratio": [_positive(a, "seconds") / _positive(b, "seconds") for a, b in pairs],
    }
    calls_ratio = first["nfe"] / other["nfe"] if other else math.nan
    numbers = {name: [value for value in values if not math.isnan(value)] for name, values in times.items()}
    medians = {name: float(np.median(values)) if values else math.nan for name, values in numbers.items()}
    return {"nfe": first["nfe"], "calls_ratio": calls_ratio, **medians}


def _call_time(facts: Mapping[str, Any]) -> float:
    return _positive(facts, "seconds") / _positive(facts, "network_calls")


def _positive(facts: Mapping[str, Any], name: str) -> float:
    """Return a positive number of ``metrics.json``, NaN where there is none."""
    value: Any = facts.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < math.inf else math.nan


def _bias(measures: Measures, place: Place, seeds: Sequence[int], model: str, baseline: str | None) -> dict[str, float]:
    """Return each measure of exposure bias before and after, with its standard error over seeds."""
    bias: dict[str, float] = {}
    for name, by_cell in measures.items():
        for suffix, who in {"before": baseline, "after": model}.items():
            keys = [(place[0], who, place[1], seed) for seed in seeds]
            values = np.array([by_cell[key] for key in keys if key in by_cell])
            bias[f"{name}_{suffix}"] = float(values.mean()) if len(values) else math.nan
            bias[f"{name}_{suffix}_error"] = _spread(values) / math.sqrt(max(len(values), 1))
    return bias


def _ranked(records: _Records, rows: Sequence[dict[str, Any]], place: Place) -> list[dict[str, Any]]:
    """Add the interval of ranks among all rows of one sampler and step count."""
    names = [str(row["model"]) for row in rows]
    tests = {pair: records.compared(*pair, place) for pair in combinations(names, 2)}
    ranks = rank_intervals(names, {pair: comparison.z for pair, comparison in tests.items() if comparison is not None})
    after = {name: {f"rank_{end}": int(ranks.loc[name, end]) for end in ("low", "high")} for name in ranks.index}
    unknown = {"rank_low": None, "rank_high": None}
    return [row | after.get(name, unknown) for name, row in zip(names, rows, strict=True)]


def _bias_names(table: pd.DataFrame) -> list[str]:
    """Return the measures of exposure bias that a table holds."""
    return [name for name in _BIAS if f"{name}_after" in table]


def condensed(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the table with a column a question: which remedy, how good, told apart, at which cost, biased how much."""
    rows = []
    for row in table.to_dict("records"):
        low, high = row["ratio_low"], row["ratio_high"]
        short = {name: row[name] for name in ("sampler", "steps", "model", "kind")} | {
            "baseline": row["baseline"] or "-",
            metric: _with_spread(row["value"], row["sd"]),
            "baseline's": _with_spread(row["baseline_value"], row["baseline_sd"]),
            "ratio": _number(row["ratio"], ".3f") + ("" if math.isnan(low) else f" ({low:.3f} to {high:.3f})"),
            "z": _number(row["z"], ".2f"),
            "verdict": _verdict(row),
            "rank": _rank(row["rank_low"], row["rank_high"]),
            "calls": _number(row["calls_ratio"], ".3g"),
            "time": _number(row["time_ratio"], ".3g"),
        }
        for name in _bias_names(table):
            short[name] = " / ".join(_number(row[f"{name}_{end}"], ".3f") for end in ("before", "after"))
        rows.append(short)
    return pd.DataFrame(rows)


def _verdict(row: Mapping[Hashable, Any]) -> str:
    """Return the verdict, of Frechet distances not told apart with the difference that would have been seen."""
    if row["distance"] != "frechet" or row["verdict"] in DECIDED:
        return row["verdict"] or "-"
    return f"{row['verdict']} (sees {row['detectable']:.2g})"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _with_spread(mean: float, sd: float) -> str:
    return _number(mean, ".3f") + ("" if math.isnan(sd) else f" ± {sd:.3f}")


def _rank(low: Any, high: Any) -> str:
    if pd.isna(low):
        return "-"
    return f"{low}" if low == high else f"{low} to {high}"


def _captions(table: pd.DataFrame, metric: str, account: str) -> tuple[str, str]:
    """Return the captions of the table and of the figure."""
    tested, decided = int(table["z"].notna().sum()), table["verdict"].value_counts()
    measures = "; ".join(f"{name}: {_BIAS[name]}" for name in _bias_names(table))
    distances = ", ".join(dict.fromkeys(table.loc[table["distance"] != "", "distance"]))
    tabled = (
        f"Every remedy against its baseline, on the seeds both were run with. {metric} and the baseline's: mean ± std"
        " over seeds, lower is better; ratio: of these means, with a 95 % interval (the test's; over seeds where the"
        f" kernel distance is tested). z: paired difference of the distances ({distances}) in standard errors; win and"
        f" loss stand after Holm's correction for all {tested} comparisons of the table,"
        f" {decided.get('win', 0)} and {decided.get('loss', 0)} do; sees: the difference that would have been seen with"
        f" a chance of 80 %. {untested(table) or 'None is not testable at this N'}. rank:"
        " what the tests of all pairs at one sampler and step count leave open, jointly at .95 (Holm). calls, time:"
        " network calls and sampling time over the baseline's, as the cells were run. kind: sampling needs no training,"
        f" training has other weights. Exposure bias, before / after: {measures}. {account}."
    )
    drawn = (
        f"{metric} of each remedy over its baseline's, means over the seeds both were run with: left of 1 the remedy is"
        " closer to the data. Bars: the paired test's 95 % interval, cut at the panel's edge; an arrow with its ratio:"
        f" a point far off. Colour: what the test finds after Holm's correction for all {tested} comparisons, black"
        " where it tested another distance than the one drawn; filled: win or loss. Circle: training-free; square:"
        f" other weights; empty: not run there. {account}."
    )
    return tabled, drawn


def analyse(results: Results, out: Output) -> None:
    """Write and draw the comparison, where any remedy shares seeds with its baseline."""
    table = mitigations_table(results)
    if not len(table):
        return
    metric = main_metric(results.metrics) or "distance"
    (caption, drawn), short = _captions(table, metric, results.account()), condensed(table, metric)
    # One measure in one mark: the verdict of another distance is not drawn on this one's ratio.
    drawable = table.assign(verdict=table["verdict"].where(table["distance"] == "frechet", ""))
    out.figure(_SECTION, draw_mitigations(drawable, metric, out.figures), "Remedies against their baselines", drawn)
    out.text("mitigations.csv", table.to_csv(index=False, float_format="%.6g"))
    out.text("mitigations.md", f"{caption}\n\n{markdown(short)}")
    out.text("mitigations.tex", f"% {caption}\n{latex(short)}")
    out.entries.append(Entry("mitigations", _SECTION, "Every remedy against its baseline", caption, short))
