"""Training: losses against images seen, and the distance of checkpoints on the way (the first paper's figure 3).

``training/`` of a results folder holds the trainings' logs, ``<recipe>/loss.csv`` as ``bench.models.train.trainer``
writes it, beside the archive of a published run, too. Cells say which recipe made their weights and how many images
those have seen; where a recipe comes with several lengths, the distance is drawn against them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from analysis.comparison.baselines import corrects
from analysis.comparison.trainings import training_of
from analysis.output.entries import Output
from analysis.output.style import label_panels, line_key, line_panels, points, save
from analysis.records.files import MOST_COUNTED, read_table
from analysis.records.load import CellRecord, Results, main_metric

_SECTION = "Training"
_LOSSES = {"mse": "squared error of eps", "bound": "variational bound (bits)"}
_COLUMNS = ("iteration", "images", *_LOSSES)
_WINDOWS = 5  # of the log, over which a curve is smoothed
_GAMMA = 0.1  # of the recipes with input perturbation
# What a recipe's target has in squared error that no network can predict: gamma^2 / (1 + gamma^2).
_CONSTANTS = {"adm-ip": _GAMMA**2 / (1 + _GAMMA**2)}


def read_losses(results: Results) -> dict[str, pd.DataFrame]:
    """Return each recipe's log, its squared error without the recipe's constant; what is no log becomes a problem."""
    logs = {}
    for recipe, path in training_logs(results.root).items():
        try:
            table = read_table(path)
            if missing := [name for name in _COLUMNS if name not in table]:
                raise ValueError(f"it has no column {missing[0]!r}")
            numbers = table[list(_COLUMNS)].apply(pd.to_numeric, errors="coerce")
            if not len(numbers) or not np.isfinite(numbers.to_numpy()).all():
                raise ValueError("it holds something that is not a finite number")
            logs[recipe] = numbers.assign(mse=numbers["mse"] - _CONSTANTS.get(training_of(recipe)[0], 0.0))
        except (OSError, ValueError) as error:
            results.problem(f"{path} is damaged and left out ({str(error).strip()}); copy the training's log again")
    return logs


def training_logs(root: Path) -> dict[str, Path]:
    """Return the logs in a results folder by recipe, in the order of their names."""
    return {path.parent.name: path for path in sorted((root / "training").glob("[!.]*/loss.csv"))}


def _seen(record: CellRecord) -> tuple[str, int] | None:
    """Return the recipe and the images seen of a cell's weights, None where the record does not say."""
    training = record.facts.get("training")
    if not isinstance(training, dict):
        return None
    recipe, images = training.get("recipe"), training.get("images")
    if isinstance(recipe, str) and isinstance(images, int) and 0 < images < MOST_COUNTED:
        return recipe, images
    return None


def lengths_table(results: Results) -> pd.DataFrame:
    """Return recipe, sampler, steps, images seen, model and distance (mean and std over seeds, their number).

    Only models without remedies at any step count, of recipes that come with several lengths; empty in most folders.
    """
    metrics = results.metrics
    scores = metrics[metrics["metric"] == main_metric(metrics)].astype({"value": float})
    treated = {record.cell["model"] for record in results.cells if corrects(record.cell)}
    lengths_seen = {record.cell["model"]: length for record in results.cells if (length := _seen(record)) is not None}
    scores = scores[scores["model"].isin(set(lengths_seen) - treated) & scores["value"].notna()]
    if not len(scores):
        return pd.DataFrame()
    scores = scores.assign(
        recipe=[lengths_seen[model][0] for model in scores["model"]],
        images=[lengths_seen[model][1] for model in scores["model"]],
    )
    groups = scores.groupby(["recipe", "sampler", "steps", "images", "model"], sort=True)["value"]
    table = groups.agg(value="mean", std="std", seeds="size").reset_index()
    lengths = table.groupby(["recipe", "sampler", "steps"])["images"].transform("nunique")
    return table[lengths > 1].reset_index(drop=True)


def draw_losses(losses: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Draw squared error and bound against training images, a line a recipe, smoothed."""
    with line_panels(list(losses), len(_LOSSES), sharey="col") as (figure, rows):
        for row in rows:
            for axis, (name, text) in zip(row.axes, _LOSSES.items(), strict=True):
                for recipe in row.paint:
                    smooth = losses[recipe][name].rolling(_WINDOWS, min_periods=1).mean()
                    row.line(axis, recipe, losses[recipe]["images"], smooth.where(smooth > 0))
                axis.set_yscale("log")
                axis.set_ylabel(text)
        label_panels(rows, along="training images seen")
        line_key(figure, rows, {})
        return save(figure, folder, "training_loss")


def draw_lengths(table: pd.DataFrame, metric: str, folder: Path) -> list[Path]:
    """Draw the distance against training images, a line a recipe, a panel a sampler and step count."""
    walks = list(table.groupby(["sampler", "steps"], sort=False))
    with line_panels(list(dict.fromkeys(table["recipe"])), len(walks), sharey=True) as (figure, rows):
        for row in rows:
            for axis, (walk, lines) in zip(row.axes, walks, strict=True):
                for recipe in row.paint:
                    line = lines[lines["recipe"] == recipe]
                    points(row, axis, recipe, line["images"].tolist(), line["value"].tolist(), line["std"].tolist())
                axis.xaxis.set_major_locator(MaxNLocator(4))
                if len(walks) > 1:
                    axis.set_title("{}, {} steps".format(*walk))
            row.axes[0].set_ylabel(f"{metric}\n(lower is better)")
        label_panels(rows, along="training images seen")
        line_key(figure, rows, {})
        return save(figure, folder, "training_length")


def analyse(results: Results, out: Output) -> None:
    """Draw the losses where the folder has logs, and the distances where recipes come with several lengths."""
    losses = read_losses(results)
    if losses:
        last = pd.DataFrame(
            [{"recipe": recipe, **table.iloc[-1].to_dict()} for recipe, table in losses.items()]
        ).astype({"iteration": int, "images": int})
        caption = (
            f"Means over the log's windows, smoothed over {_WINDOWS} of them; the table has the last window. Losses are"
            " not comparable across objectives; of adm-ip the constant that no network can predict is subtracted,"
            " gamma^2 / (1 + gamma^2) = 0.0099 of the squared error at gamma = 0.1. One training a log."
        )
        out.figure(_SECTION, draw_losses(losses, out.figures), "Training losses", caption)
        out.table(_SECTION, "training_loss", last, "Training losses, last window", caption)
    table, metric = lengths_table(results), main_metric(results.metrics)
    if len(table) and metric is not None:
        caption = (
            f"{metric} of checkpoints on the way (averaged weights) against the training images they have seen; one"
            f" training a recipe, same images and noise for all. {results.account()}. Bars: std over seeds."
        )
        out.figure(_SECTION, draw_lengths(table, metric, out.figures), "Quality against training images", caption)
        out.table(_SECTION, "training_length", table, "Quality against training images", caption)
