"""Does each description fit its network? Real images are shown to it before anything is sampled.

The slopes of :mod:`bench.models.denoisers.calibration` are kept by weights and description in ``slopes/``, so that a
network is asked once in a results folder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from bench.models.denoisers.calibration import LEVELS, MOST_IMAGES, slope_levels, slopes
from bench.models.denoisers.preconditioning import PRECONDITIONINGS
from bench.suite.cells.walks import WalkContext
from bench.suite.experiments.experiment import RecordFolder
from bench.suite.plan import Cell
from bench.suite.registry.model import Model
from bench.suite.settings import short_hash

VERSION = 1  # of the record: raise when its meaning changes
_SHARE = 0.02  # of the run's network calls


@dataclass(frozen=True, eq=False)
class SlopeCheck:
    """One network, for every model that has it: corrections and guidance play no part.

    Attributes:
        cells: one cell of each model.
        calls: network calls to make at first; see :func:`bench.models.denoisers.calibration.slopes`.
    """

    cells: tuple[Cell, ...]
    calls: int = LEVELS * MOST_IMAGES

    @property
    def model(self) -> Model:
        """Return the network's plain model."""
        return replace(self.cells[0].model, guidance=None, classifier_free=None)

    @property
    def names(self) -> str:
        """Return the models, listed."""
        return ", ".join(dict.fromkeys(cell.model.name for cell in self.cells))

    def folder(self, root: Path) -> RecordFolder:
        """Return where the slopes are kept below the run's folder ``root``."""
        cell = self.cells[0]
        description = {
            "version": VERSION,
            "weights": cell.weights_hash,
            **self.model.identity(),
            "data": cell.data_hash,
            **({"labels": cell.labels_hash} if cell.labels_hash else {}),
        }
        return RecordFolder(root / "slopes" / short_hash(description), "slopes", description)

    def refusal(self, context: WalkContext) -> str | None:
        """Return why the network cannot be asked, None where it can."""
        labels = self.model.labels
        if not context.data.count("train"):
            return "there are no images"
        if labels and labels != context.data.classes:
            return f"it takes {labels} class labels, and the images have {context.data.classes}"
        return None

    def compute(self, context: WalkContext, root: Path) -> None:
        """Ask the network and keep the slopes."""
        model = self.model
        about, count = model.description, context.data.count("train")
        rows = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MOST_IMAGES]
        preconditioning = model.preconditioning() if about.prediction in PRECONDITIONINGS else None
        levels = slope_levels(about.schedule, about.T, preconditioning)
        images, labels = context.images("train", rows), context.labels(model, "train", rows)
        started = time.perf_counter()
        results = slopes(context.denoiser(model), images, levels, labels, self.calls, context.batch)
        facts = {"seconds": time.perf_counter() - started}
        table = [
            {
                "t": slope.level.t, "alpha": slope.level.alpha, "sigma": slope.level.sigma, "slope": slope.value,
                "error": slope.error, "loss": slope.loss, "images": slope.images,
                "off": "yes" if slope.is_off else "no",
            }
            for slope in results
        ]  # fmt: skip
        self.folder(root).write(pd.DataFrame(table), {}, facts)

    def warning(self, root: Path) -> str | None:
        """Return a line on the level at which the kept slopes are off by most, None where none is."""
        folder = self.folder(root)
        if folder.complete_facts() is None:
            return None
        rows = pd.read_csv(folder.path / "record.csv")
        off = rows[rows["off"] == "yes"]
        if not len(off):
            return None
        row = off.iloc[int((off["slope"].fillna(float("inf")) - 1).abs().to_numpy().argmax())]
        return (
            f"{self.names}: the description does not fit the network: at sigma {row['sigma']:.3g}, t = {row['t']:.4g},"
            f" the slope of the noise on its prediction is {row['slope']:.2f} ± {row['error']:.2f}, not 1; prediction,"
            " schedule, T, rescale_timesteps or the range of the images may be another, which python -m"
            " bench.models.inspect tells"
        )


def plan_slopes(cells: Sequence[Cell]) -> list[SlopeCheck]:
    """Return one check for each distinct network and description of a run's cells."""
    groups: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        key = SlopeCheck((cell,)).folder(Path()).key
        groups.setdefault(key, {}).setdefault(cell.model.name, cell)
    total = sum(sum(cell.cost()) for cell in cells)
    calls = int(_SHARE * total / max(len(groups), 1))
    return [SlopeCheck(tuple(group.values()), calls) for group in groups.values()]
