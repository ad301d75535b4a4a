"""Why is my FID not theirs? ``python -m analysis.doctor RESULTS``: what differs from each published row.

Published rows of the run's dataset whose protocols agree share one list: a difference a line, what moves a Frechet
distance most first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.published.protocol import Protocol, our_protocols, published_rows
from analysis.records.files import read_json
from analysis.records.load import Results, ResultsError, load_results, main_metric

# The fields of a protocol, what moves a distance most first, with what is known of it.
_EFFECTS: Mapping[str, str] = {
    "metric": "distances of other features are other numbers",
    "n": "fewer samples bias the distance upwards, by about 1 / N",
    "reference": "another split, count or compression of the images is another reference",
    "sampler": "at few steps it decides the distance",
    "spacing": "at few steps other levels are another sampler",
    "variance": "at few steps it decides the distance",
    "guidance": "guided samples have another law",
    "conditional": "samples by class have the classes' shares",
    "clip": "it matters most at few steps",
    "quantize": "floored pixels are darker by half a grey level",
    "precision": "a small effect",
}


def differences(ours: Protocol, theirs: Protocol) -> Iterator[str]:
    """Yield a line for each setting in which two protocols differ, what moves a Frechet distance most first."""
    for name, effect in _EFFECTS.items():
        here, there = getattr(ours, name), getattr(theirs, name)
        if here != there:
            yield f"{name}: {_text(here)} here, {_text(there)} there; {effect}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not recorded" if value is None else str(value)


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
    ours = our_protocols(results, metric)
    values = results.metrics[results.metrics["metric"] == metric].astype({"value": float})
    groups: dict[Protocol, list[Mapping[str, Any]]] = {}
    for row, protocol in rows:
        if protocol.metric == "fid":
            groups.setdefault(protocol, []).append(row)
    for theirs, group in groups.items():
        for cell in group:
            published = f"{cell['model']}, {cell['steps']} steps: {cell['metric']} {cell['value']} ({cell['source']})"
            yield f"{published}; {_beside(values, cell)}"
        lines = dict.fromkeys(line for protocol in ours for line in differences(protocol, theirs))
        yield from (f"  {line}" for line in lines or ["no setting that is recorded differs"])
        yield ""
    yield from unpublished(results, run)


def _beside(values: pd.DataFrame, row: Mapping[str, Any]) -> str:
    """Return what the run has at a row's step count."""
    means = values[values["steps"] == row["steps"]].groupby("model", sort=False)["value"].mean().dropna()
    if not len(means):
        return "its step count was not run here"
    return f"{values['metric'].iloc[0]} here: " + ", ".join(f"{model} {value:.2f}" for model, value in means.items())


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
    try:
        run = read_json(root / "run.json")["configuration"]
    except (OSError, ValueError, KeyError, TypeError):
        run = {}
    print("\n".join(diagnose(results, run if isinstance(run, dict) else {})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
