"""Why is my FID not theirs? ``python -m analysis.doctor RESULTS``: what differs from each published row.

Published rows of the run's dataset whose protocols agree share one list: a difference a line, what moves a Frechet
distance most first. Rows at step counts of the run stand beside what it has there.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.published.protocol import PublishedRow, our_protocols, published_rows
from analysis.records.load import Results, ResultsError, load_results, main_metric, score_name

# Settings, what moves a distance most first, with what is known of it.
_EFFECTS: Mapping[str, str] = {
    "metric": "distances of other features are other numbers",
    "n": "fewer samples bias the distance upwards, by about 1 / N",
    "reference": "another split, count or compression of the images is another reference",
    "resize": "filters of the resizing to 299x299 move a FID by tenths and more",
    "inception": "ports differ in the third digit",
    "sampler": "at few steps it decides the distance",
    "eta": "at few steps it decides the distance",
    "churn": "at few steps it decides the distance",
    "spacing": "at few steps other levels are another sampler",
    "variance": "at few steps it decides the distance",
    "guidance": "guided samples have another law",
    "conditional": "samples by class have the classes' shares",
    "clip": "it matters most at few steps",
    "quantize": "floored pixels are darker by half a grey level",
    "precision": "a small effect",
}
_RANDOM = ("ddpm", "sde")  # samplers that add noise, as do others with eta or churn
_INCEPTION = dict.fromkeys(("fid", "sfid"), ("TensorFlow's bilinear filter", "torch-fidelity's port"))
_CLEAN = ("Pillow's bicubic filter, antialiased", "torch-fidelity's port")


def differences(ours: Mapping[str, object], theirs: Mapping[str, object]) -> Iterator[str]:
    """Yield a line for each stated setting in which two protocols differ, what moves a Frechet distance most first.

    Args:
        ours: settings of the run by name; one that does not apply is missing.
        theirs: those that are stated of a published row.
    """
    for name, effect in _EFFECTS.items():
        if name not in theirs or name not in ours:
            continue
        here, there = ours[name], theirs[name]
        if name == "sampler" and there in ("stochastic", "deterministic"):
            noisy = here in _RANDOM or bool(ours.get("eta") or ours.get("churn"))
            here = "stochastic" if noisy else "deterministic"
        if here != there:
            yield f"{name}: {_text(here)} here, {_text(there)} there; {effect}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not recorded" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def our_settings(results: Results, metric: str) -> list[dict[str, object]]:
    """Return the settings that decided a folder's scores of one metric, each combination once."""
    resize, port = _CLEAN if metric.startswith("clean_") else _INCEPTION.get(metric, ("", ""))
    inception = {"resize": resize, "inception": port} if resize else {}
    cells = [record.cell for record in results.cells]
    walk = {name: float(cells[0][name]) for name in ("eta", "churn") if name in cells[0]}
    return [asdict(protocol) | inception | walk for protocol in our_protocols(results, metric)]


def unpublished(results: Results, run: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each setting of the run that no published row states, and that moves a distance too.

    Args:
        results: of the run.
        run: the configuration in ``run.json``; empty where there is none.
    """
    if preprocessing := run.get("preprocessing"):
        yield f"preprocessing: {preprocessing} here; resize filters and crops change the reference"
    if weights := run.get("inception_weights"):
        yield f"Inception weights: sha256 {str(weights)[:12]} here; ports of the published file differ slightly"
    labels = {str(record.cell["class_labels"]) for record in results.cells if "class_labels" in record.cell}
    if labels - {"random"}:
        yield "labels: balanced here, random there; equal shares of classes lower the distance"
    for model, weights in {str(record.cell["model"]): record.cell.get("weights") for record in results.cells}.items():
        yield f"checkpoint: {model} is sha256 {str(weights)[:12]}; check that it is theirs, and the averaged (EMA) one"


def diagnose(results: Results, run: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the diagnosis.

    Args:
        results: of the run.
        run: the configuration in ``run.json``; empty where there is none.
    """
    name, metric = str(run.get("dataset", "")), main_metric(results.metrics)
    rows = published_rows(name)
    if not rows:
        yield f"no published row is of the dataset {name or 'of this run, which is not recorded'}"
        return
    if metric is None:
        yield "no Frechet distance was computed here, so nothing can be compared"
        return
    groups: dict[str, list[PublishedRow]] = {}
    for row in rows:
        groups.setdefault(repr(sorted(row.settings.items())), []).append(row)
    for group in groups.values():
        yield from _compared(results, group, _counterpart(results, metric, group[0].metric))
        yield ""
    yield from unpublished(results, run)


def _counterpart(results: Results, metric: str, published: str) -> str | None:
    """Return the score of the run that a published metric is compared with, None where it has none."""
    names = [str(name) for name in results.metrics["metric"].unique()]
    if published == "FID":
        return metric
    if published == "sFID":
        spatial = metric.replace("clean_", "clean_s") if metric.startswith("clean_") else f"s{metric}"
        return spatial if spatial in names else None
    return score_name(names, published.lower())


def _compared(results: Results, rows: Sequence[PublishedRow], metric: str | None) -> Iterator[str]:
    """Yield rows of one protocol, and how the run's score of the same kind was computed otherwise."""
    scores = results.metrics[results.metrics["metric"] == metric].astype({"value": float})
    counts = {record.cell["steps"] for record in results.cells}
    beside: dict[tuple[str, int, str, str], list[str]] = {}
    others: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        value = f"{row.value:g} ({row.training})" if row.training else f"{row.value:g}"
        if row.steps in counts:
            beside.setdefault((row.model, row.steps, row.metric, row.source), []).append(value)
        else:
            others.setdefault((row.model, row.metric, row.source), []).append(f"{value} at {row.steps}")
    for (model, steps, name, source), values in beside.items():
        yield f"{model}, {steps} steps: {name} {', '.join(values)} ({source}); {_beside(scores, steps)}"
    for (model, name, source), values in others.items():
        yield f"{model}, {name} at step counts that were not run here: {', '.join(values)} ({source})"
    if metric is None:
        yield f"  {rows[0].metric} was not computed here"
        return
    every = our_settings(results, metric)
    lines = dict.fromkeys(line for ours in every for line in differences(ours, rows[0].settings))
    yield from (f"  {line}" for line in lines or ["no setting that is stated differs"])
    open_settings = [name for name in _EFFECTS if name not in rows[0].settings]
    if missing := [name for name in open_settings if any(ours.get(name) not in (None, 0) for ours in every)]:
        yield f"  not stated there: {', '.join(missing)}"


def _beside(scores: pd.DataFrame, steps: int) -> str:
    """Return what the run has at a step count."""
    means = scores[scores["steps"] == steps].groupby("model", sort=False)["value"].mean().dropna()
    if not len(means):
        return "no such score here"
    return f"{scores['metric'].iloc[0]} here: " + ", ".join(f"{model} {value:.2f}" for model, value in means.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, 2 with one line where the folder cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m analysis.doctor", description="Why is my FID not theirs?")
    parser.add_argument("results", type=Path, help="a results folder")
    root = parser.parse_args(argv).results
    try:
        results = load_results(root)
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(diagnose(results, results.run.get("configuration", {}))))
    for problem in results.problems:
        print(f"warning: {problem}", file=sys.stderr)
    return 1 if results.problems else 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # where nobody reads its output, it ends without a word
    sys.exit(main())
