"""The samples themselves, every model from the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.output.entries import Output
from analysis.output.style import panels, save
from analysis.records.arrays import is_noise_shared
from analysis.records.load import CellRecord, Results, ResultsError


def draw_samples(results: Results, folder: Path, count: int = 16) -> list[Path]:
    """The first samples of each model, first seed, most shared steps: a row a model, a column a starting noise."""
    records = results.each(_samples)
    if not records:
        return []
    samplers = {cell["sampler"] for cell, _ in records}
    sampler = "ddpm" if "ddpm" in samplers else min(samplers)
    seed = min(cell["seed"] for cell, _ in records if cell["sampler"] == sampler)
    by_model: dict[str, dict[int, NDArray[np.uint8]]] = {}
    for cell, images in records:
        if cell["seed"] == seed and cell["sampler"] == sampler:
            by_model.setdefault(cell["model"], {})[cell["steps"]] = images[:count]
    steps = max(set.intersection(*map(set, by_model.values())), default=None)
    if steps is None:
        return []
    rows = {model: by_steps[steps] for model, by_steps in by_model.items()}
    with panels(len(rows), 1) as (figure, axes):
        figure.set_size_inches(7.0, 0.4 + 0.5 * len(rows))
        for axis, (model, images) in zip(axes[:, 0], rows.items(), strict=True):
            # Side by side with a white line between.
            padded = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
            axis.imshow(np.concatenate(list(padded), axis=1), interpolation="nearest", aspect="equal")
            axis.set_ylabel(model, rotation=0, ha="right", va="center")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        alike = ": each column starts from the same noise" if is_noise_shared(results) else ""
        figure.suptitle(f"{steps} steps, seed {seed}{alike}", fontsize=8)
        return save(figure, folder, "samples")


def _samples(record: CellRecord) -> tuple[dict[str, Any], NDArray[np.uint8]] | None:
    arrays = record.arrays("samples.npz", lambda name: name == "arr_0")
    if arrays is None:
        return None
    images = arrays.get("arr_0", np.empty(0))
    if images.dtype == np.float32:  # latents, which nobody can see
        return None
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size or images.dtype != np.uint8:
        raise ResultsError(f"{record.folder / 'samples.npz'} does not hold uint8 images; delete the cell and run again")
    return record.cell, images


def analyse(results: Results, out: Output) -> None:
    """Draw the first samples."""
    if is_noise_shared(results):
        title = "Samples from the same noise"
        caption = "Each column starts from the same noise; rows are models."
    else:
        title, caption = "Samples", "The first samples of each loop; rows are loops, which began from other noise."
    out.figure("Samples", draw_samples(results, out.figures), title, caption)
