"""Sample quality against the number of steps: the table of Frechet distances, and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, ScalarFormatter

from analysis.comparison.paired_tests import distance_error
from analysis.comparison.pairs import noise_sentence, pairs_table
from analysis.comparison.ties import DECIDED, exact_distances
from analysis.output.entries import Entry, Output
from analysis.output.selection import models_of
from analysis.output.style import LineRow, dodged, label_panels, line_key, line_panels, markers, points, save, step_axis
from analysis.output.text import latex_text, markdown_row
from analysis.published.protocol import overlay
from analysis.records.arrays import Row, cell_terms
from analysis.records.load import Results, frechet_name, kid_name, main_metric

_SECTION = "Quality"
_MARK = " (!)"  # of a model whose description does not fit
_LINEAR = 10  # largest over least distance of a linear axis


@dataclass(frozen=True)
class QualityTable:
    """Frechet distance by model and steps.

    Attributes:
        metric: its name (``fid``, ``fd_digits``, ...).
        caption: reference, N, seeds and what bold means.
        table: one row a (model, sampler), columns ``<steps>`` (mean over seeds), ``<steps>_sd`` (over seeds, empty
            for one), ``<steps>_error`` (standard error of the mean, empty where no influence functions were recorded)
            and ``<steps>_best`` (no model of the same sampler is closer by the paired tests after Holm's correction).
        steps: the step counts, ascending.
        nfe: network calls a sample by (sampler, step count), from the fewest to the most of the models.
        exact: mean and standard deviation, over draws, of the distance of as many images drawn from the data, by step
            count; where it was scored and all cells have one N.
        misfits: models whose description does not fit their network; they are marked, and never best.
    """

    metric: str
    caption: str
    table: pd.DataFrame
    steps: Sequence[int]
    nfe: Mapping[tuple[str, int], str]
    exact: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    misfits: Mapping[str, str] = field(default_factory=dict)

    @property
    def header(self) -> list[str]:
        """Return the heads of the columns that people read."""
        return ["model", "sampler", *(f"{steps} steps" for steps in self.steps)]

    def rows(self, best: str = "{}", other: str = "{}") -> list[list[str]]:
        """Return the table as texts; models are marked where their description does not fit.

        Args:
            best: the form of an entry that is not told from the best of its column, e.g. ``**{}**``.
            other: that of the others.
        """
        return [
            [
                f"{row['model']}{_MARK if row['model'] in self.misfits else ''}",
                row["sampler"],
                *((best if row[f"{s}_best"] else other).format(self.entry(row, s)) for s in self.steps),
            ]
            for _, row in self.table.iterrows()
        ]

    def entry(self, row: pd.Series, steps: int) -> str:
        """Return one entry as text, without emphasis."""
        value, spread = row[f"{steps}"], self.spread(row, steps)
        if pd.isna(value):
            return "-"
        digits = 5 if self.is_kernel else 3  # squared kernel distances are small
        return f"{value:.{digits}f}" if pd.isna(spread) else f"{value:.{digits}f} ± {spread:.{digits}f}"

    @property
    def is_kernel(self) -> bool:
        """Tell whether it is the kernel distance, which stands in for a Frechet distance that cannot be given."""
        return kid_name([self.metric]) is not None

    @cached_property
    def spread_name(self) -> str:
        """Return what stands behind the ±: the standard error where every entry has one, else the std over seeds."""
        scored = [count for count in self.steps if self.table[f"{count}"].notna().any()]
        complete = all(self.table.loc[self.table[f"{s}"].notna(), f"{s}_error"].notna().all() for s in scored)
        return "standard error" if complete and scored else "std over seeds"

    def spread(self, row: pd.Series, steps: int) -> float:
        """Return what stands behind the ± of an entry, NaN for nothing."""
        return float(row[f"{steps}_error" if self.spread_name == "standard error" else f"{steps}_sd"])

    def feet(self) -> list[list[str]]:
        """Return the rows below the models: label, sampler and a text for each step count.

        An exact sampler, where it was scored; then network calls, one row where all samplers agree, else one each.
        """
        exact = {steps: "{:.3f} ± {:.3f}".format(*numbers) for steps, numbers in self.exact.items()}
        feet = [["exact sampler", "", *(exact.get(steps, "-") for steps in self.steps)]] if exact else []
        by_sampler = {
            sampler: tuple(self.nfe.get((sampler, steps), "-") for steps in self.steps)
            for sampler in dict.fromkeys(sampler for sampler, _ in self.nfe)
        }
        if len(set(by_sampler.values())) == 1:
            by_sampler = {"": next(iter(by_sampler.values()))}
        return [*feet, *(["NFE", sampler, *calls] for sampler, calls in by_sampler.items())]

    def markdown(self) -> str:
        """Return the table in Markdown, bold for every entry not told from the best."""
        rows = [self.header, ["---"] * len(self.header), *self.rows("**{}**"), *self.feet()]
        return "\n".join([self.caption, "", *map(markdown_row, rows)]) + "\n"

    def latex(self) -> str:
        """Return the table in LaTeX (booktabs)."""
        columns = "ll" + "r" * len(self.steps)
        lines = ["% " + self.caption, rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines += [" & ".join(self.header) + r" \\", r"\midrule"]
        names = [map(latex_text, row[:2]) for row in self.rows()]
        rows = [[*texts, *row[2:]] for texts, row in zip(names, self.rows(r"\textbf{{{}}}"), strict=True)]
        body, feet = ([" & ".join(row).replace("±", r"$\pm$") + r" \\" for row in part] for part in (rows, self.feet()))
        return "\n".join([*lines, *body, r"\midrule", *feet, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _unbeaten(pairs: pd.DataFrame) -> set[tuple[Row, int]]:
    """Return (model, sampler) and steps of what was compared, and beaten by no model after Holm's correction."""
    compared: set[tuple[Row, int]] = set()
    beaten: set[tuple[Row, int]] = set()
    for pair in pairs.to_dict("records"):
        model, other = (((str(pair[side]), str(pair["sampler"])), int(pair["steps"])) for side in ("model", "other"))
        compared |= {model, other}
        if pair["verdict"] in DECIDED:
            beaten.add(model if pair["verdict"] == "loss" else other)
    return compared - beaten


def quality_table(results: Results) -> QualityTable | None:
    """Build the table of Frechet distance against steps, None where nothing was scored."""
    metrics = results.metrics
    metric = main_metric(metrics)
    if metric is None:
        return None
    scores = metrics[(metrics["metric"] == metric)].astype({"value": float})
    steps = sorted(int(value) for value in scores["steps"].unique())
    terms, pairs = results.once(cell_terms), results.once(pairs_table)
    unbeaten = _unbeaten(pairs)
    rows: dict[Row, dict[str, object]] = {}
    for row in scores[["model", "sampler"]].drop_duplicates().itertuples(index=False, name=None):
        rows[row] = {"model": row[0], "sampler": row[1], "metric": metric}
    for count in steps:
        statistics = scores[scores["steps"] == count].groupby(["model", "sampler"])["value"].agg(["mean", "std"])
        for row, entry in rows.items():
            mean = float(statistics["mean"].get(row, float("nan")))
            entry[f"{count}"], entry[f"{count}_sd"] = mean, statistics["std"].get(row)
            error = distance_error(terms.get(count, {}).get(row, {}))
            entry[f"{count}_error"] = _kernel_error(metrics, metric, row, count) if error is None else error
            entry[f"{count}_best"] = mean == mean and (row, count) in unbeaten
    calls = scores.groupby(["sampler", "steps"])["nfe"].agg(["min", "max"])
    nfe = {
        (str(sampler), int(count)): f"{least}" if least == most else f"{least} to {most}"
        for (sampler, count), (least, most) in zip(calls.index, calls.to_numpy().tolist(), strict=True)
    }
    exact = exact_distances(metrics, metric)
    quality = QualityTable(metric, "", pd.DataFrame(rows.values()), steps, nfe, exact, results.misfits)
    caption = _caption(metric, scores, len(rows), quality.spread_name)
    if exact:
        caption += " Exact sampler: as many images drawn at random from the data, mean ± std over draws."
    caption += noise_sentence(pairs)
    if results.misfits:
        caption += f"{_MARK}: the description does not fit the network, and no comparison has it."
    return replace(quality, caption=caption + (_stands_in(metrics) if quality.is_kernel else ""))


def _kernel_error(metrics: pd.DataFrame, metric: str, row: Row, steps: int) -> float:
    """Return the standard error of a kernel distance, averaged over seeds, which share the reference; NaN for none."""
    chosen = (metrics["metric"] == f"{metric}_error") & (metrics["steps"] == steps)
    chosen &= (metrics["model"] == row[0]) & (metrics["sampler"] == row[1])
    return float(metrics.loc[chosen, "value"].astype(float).mean())


def _stands_in(metrics: pd.DataFrame) -> str:
    """Return why the Frechet distance is not the one that is shown."""
    name = frechet_name(map(str, metrics["metric"].unique()))
    reasons = metrics.loc[(metrics["metric"] == name) & (metrics["reason"] != ""), "reason"].dropna()
    return f" It stands in for {name}: {reasons.iloc[0]}." if len(reasons) else ""


def errors_of(results: Results) -> pd.Series:
    """Return the standard error of each cell's Frechet distance, in the rows of ``results.metrics``; else NaN."""
    terms, metric = results.once(cell_terms), main_metric(results.metrics)
    errors = pd.Series(float("nan"), index=results.metrics.index, dtype=float)
    if metric == kid_name([metric or ""]):
        return errors  # that of a kernel distance is a score of its own
    scored = results.metrics.loc[results.metrics["metric"] == metric, ["steps", "model", "sampler", "seed"]]
    for place, steps, model, sampler, seed in scored.itertuples(name=None):
        cell = terms.get(steps, {}).get((model, sampler), {}).get(seed)
        error = None if cell is None else distance_error({seed: cell})
        errors[place] = float("nan") if error is None else error
    return errors


def _caption(metric: str, scores: pd.DataFrame, rows: int, spread_name: str) -> str:
    sizes = "/".join(str(n) for n in sorted(scores["n"].unique()))
    seeds = len(scores["seed"].unique())
    reference = ", ".join(sorted(scores["reference"].unique()))
    counts = scores.groupby(["sampler", "steps"], sort=False)["seed"].nunique().reset_index()
    several = counts["sampler"].nunique() > 1
    fewer = [
        f"{count} at {steps} steps" + (f" of {sampler}" if several else "")
        for sampler, steps, count in counts.itertuples(index=False, name=None)
        if count < seeds
    ]
    spread = f"mean ± std over {seeds} seeds" if seeds > 1 else "1 seed"
    if spread_name == "standard error":
        spread = f"mean ± standard error, {seeds} seed{'s' if seeds > 1 else ''}"
    spread += f" ({', '.join(fewer)})" if fewer else ""
    bold = (
        " Bold: no model of the same sampler is closer to the data at these steps, by the paired test with Holm's"
        " correction over all pairs."
        if rows > 1
        else ""
    )
    return f"{metric} against {reference}; N = {sizes} samples a seed, {spread}; lower is better.{bold}"


def draw_quality(quality: QualityTable, folder: Path, published: pd.DataFrame | None = None) -> list[Path]:
    """Frechet distance against steps, a line a model, a panel a sampler; bars as in the table.

    Grey points are ``published`` values.
    """
    table, samplers = quality.table, list(dict.fromkeys(quality.table["sampler"]))
    with line_panels(models_of(table), len(samplers), sharey=True) as (figure, rows):
        if len(rows) == 1:
            figure.set_figheight(3.1)
        for row in rows:
            for axis, sampler in zip(row.axes, samplers, strict=True):
                _draw_exact(axis, quality)
                _draw_lines(row, axis, quality, table[table["sampler"] == sampler])
                if published is not None:
                    _draw_published(axis, published[published["sampler"] == sampler])
                step_axis(axis, quality.steps)
            row.axes[0].set_ylabel(f"{quality.metric}\n(lower is better)")
        _show_curves(rows[0].axes[0], quality)
        label_panels(rows, samplers if len(samplers) > 1 else (), "sampling steps")
        floor = rows[0].axes[0].get_ylim()[0]
        is_seen = any(mean > floor for mean, _ in quality.exact.values())
        line_key(figure, rows, {"exact sampler": ("-.", "0.5")} if is_seen else {})
        if published is not None and len(published):
            rows[0].axes[-1].legend(loc="upper right", frameon=False)
        return save(figure, folder, "fid_vs_steps")


def _draw_exact(axis: Axes, quality: QualityTable) -> None:
    """Draw mean and standard deviation of the distance of as many images drawn from the data."""
    if not quality.exact:
        return
    steps = sorted(quality.exact)
    means, spreads = np.array([quality.exact[count] for count in steps]).T
    if len(set(quality.exact.values())) == 1:  # one N: over the whole width
        axis.axhspan(means[0] - spreads[0], means[0] + spreads[0], color="0.5", alpha=0.15, linewidth=0)
        axis.axhline(means[0], color="0.5", linestyle="-.", linewidth=0.8)
    else:
        axis.fill_between(steps, means - spreads, means + spreads, color="0.5", alpha=0.15, linewidth=0)
        axis.plot(steps, means, color="0.5", linestyle="-.", linewidth=0.8)


def _show_curves(axis: Axes, quality: QualityTable) -> None:
    """Scale to the models' values and bars, and to the exact sampler where it is not far off them."""
    values = quality.table[[f"{count}" for count in quality.steps]].to_numpy(dtype=float)
    if not np.isfinite(values).any():
        return
    spreads = [[quality.spread(row, count) for count in quality.steps] for _, row in quality.table.iterrows()]
    bars = np.nan_to_num(np.array(spreads, dtype=float))
    low, high = float(np.nanmin(values - bars)), float(np.nanmax(values + bars))
    for mean, spread in quality.exact.values():
        if low - mean < high - low:
            low, high = min(low, mean - spread), max(high, mean)
    if np.nanmax(values) > _LINEAR * np.nanmin(values) > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.set_ylim(0.8 * np.nanmin(values), 1.1 * high)
        return
    margin = 0.06 * (high - low) or 0.1 * high
    axis.set_ylim(max(0.0, low - margin), high + margin)


def _draw_lines(row: LineRow, axis: Axes, quality: QualityTable, table: pd.DataFrame) -> None:
    """Draw the models of a row, moved aside so that their bars lie apart."""
    by_model = {str(line["model"]): line for _, line in table.iterrows()}
    for position, model in enumerate(row.paint):
        if model in by_model:
            line = by_model[model]
            counts = [count for count in quality.steps if np.isfinite(line[f"{count}"])]
            points(
                row, axis, model, dodged(counts, position, len(row.paint)),
                [line[f"{count}"] for count in counts], [quality.spread(line, count) for count in counts],
            )  # fmt: skip


def _draw_published(axis: Axes, published: pd.DataFrame) -> None:
    """Add the papers' points, which :mod:`analysis.published.tables` found comparable; none in most folders."""
    marks = markers(list(published["model"].unique()))
    for model, rows in published.groupby("model", sort=False):
        axis.plot(
            rows["steps"], rows["value"], color="0.6", linestyle=":", marker=marks[str(model)],
            markerfacecolor="none", markersize=4, label=f"{model}, paper",
        )  # fmt: skip


def analyse(results: Results, out: Output) -> None:
    """Write every score, the table of Frechet distances against steps, and its figure."""
    out.text("metrics.csv", results.metrics.assign(error=errors_of(results)).to_csv(index=False))
    quality = results.once(quality_table)
    if quality is None:
        return
    out.text("fid_vs_steps.csv", quality.table.to_csv(index=False))
    out.text("fid_vs_steps.md", quality.markdown())
    out.text("fid_vs_steps.tex", quality.latex())
    title = f"{'Kernel' if quality.is_kernel else 'Frechet'} distance against steps"
    shown = pd.DataFrame(quality.rows(), columns=quality.header)
    out.entries.append(Entry("fid_vs_steps", _SECTION, title, quality.caption, shown))
    if quality.table[[f"{steps}" for steps in quality.steps]].isna().all(axis=None):
        return
    published = overlay(results, quality.metric)
    caption = quality.caption + (
        " Grey: published, same dataset, metric and protocol; dataset and statistics are taken at their names."
        if len(published)
        else ""
    )
    out.figure(_SECTION, draw_quality(quality, out.figures, published), "Quality against steps", caption)
