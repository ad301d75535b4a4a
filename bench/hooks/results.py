"""Recorded loops in a results folder: each is a cell of it, with the floors of exact denoisers beside the cells."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.diffusion.solvers import Solver
from bench.diffusion.types import Level
from bench.files.writing import write_atomic
from bench.hooks.loops import Loop, Tape, exact_laws, walk_exact
from bench.hooks.quality import Samples
from bench.hooks.real_data import RealData
from bench.measure.instruments.floors import GaussianFloors, band_energies
from bench.measure.instruments.probes import WalkProbe
from bench.measure.instruments.step_table import Row, to_table
from bench.suite.cells.records import Records
from bench.suite.cells.runner import score_features
from bench.suite.experiments.experiment import RecordFolder
from bench.suite.plan import RECORD_VERSION
from bench.suite.settings import short_hash
from bench.suite.store.store import Store, refuse_links

SAMPLER = "loop"  # what tables call the sampler of a recorded loop
_EXACT_VERSION = 1
_BANDS = ("spectrum_state", "spectrum_x0", "haar_state", "haar_x0")


@dataclass(frozen=True)
class LoopCell:
    """A recorded loop, as the store and the records know cells.

    Attributes:
        model: what tables call it.
        seed: of its noise.
        samples: images that it made.
        path: its levels, noisiest first, the last that which it ends at.
        asked: the level of each network call by (i, stage).
        data: hash of the real data, empty without any.
        precision: dtype of its states.
        settings: what else determines its numbers, JSON-like.
    """

    model: str
    seed: int
    samples: int
    path: Sequence[Level]
    asked: Mapping[tuple[int, int], Level]
    data: str
    precision: str
    settings: Mapping[str, Any]
    remembers_class = False

    @property
    def name(self) -> str:
        """Return the cell's folder name."""
        return f"{self.model}-{SAMPLER}-{self.steps}-seed{self.seed}"

    @property
    def steps(self) -> int:
        """Return the solver steps."""
        return len(self.path) - 1

    def levels(self) -> Sequence[Level]:
        """Return the levels, noisiest first."""
        return self.path

    def calls(self) -> Mapping[tuple[int, int], Level]:
        """Return the level of each network call by (i, stage)."""
        return self.asked

    def description(self) -> dict[str, Any]:
        """Return everything that determines the cell's numbers; what the cells of a folder share is named as theirs."""
        shared = {"spacing": SAMPLER, "clip": None, "quantize": None, "precision": self.precision, "data": self.data}
        return {
            "version": RECORD_VERSION, "model": self.model, "sampler": SAMPLER, "steps": self.steps, "seed": self.seed,
            "samples": self.samples, "measure": ["steps"], "calls": len(self.asked), **shared, **self.settings,
        }  # fmt: skip

    def key(self) -> str:
        """Return the cache key."""
        return short_hash(self.description())


def plain_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's settings as JSON holds them; infinity is text."""
    settings: dict[str, Any] = json.loads(json.dumps(dict(config), default=str), parse_constant=str)
    return {name: value for name, value in settings.items() if not name.startswith("_")}


def write_cell(
    out: Path, cell: LoopCell, records: Records, table: pd.DataFrame, samples: Samples | None, facts: Mapping[str, Any]
) -> None:
    """Write a recorded loop as a complete cell, its samples scored against the real data.

    Args:
        out: the results folder.
        cell: which.
        records: of the loop, merged over its images.
        table: per step.
        samples: what is left of its images, None where they are compared with nothing.
        facts: ``seconds`` and ``notes``.

    Raises:
        ConfigError: other cells have other settings.
    """
    refuse_links(out)
    store = Store(out)
    store.check(cell)
    store.begin(cell)
    if cell.data:
        store.put_arrays(cell, "moments.npz", records.moments())
    write_atomic(store.folder(cell) / "steps.csv", lambda path: table.to_csv(path, index=False))
    calls = len(cell.asked)
    scores = {"features": "none", "scores": [], **_scored(store, cell, samples)}
    store.finish(cell, {"nfe": calls, "network_calls": calls * cell.samples, **scores, **facts})


def _scored(store: Store, cell: LoopCell, samples: Samples | None) -> dict[str, Any]:
    """Write the samples' features and return their scores, nothing where there is nothing to compare."""
    if samples is None:
        return {}
    images = samples.images()
    if images is not None:
        store.put_arrays(cell, "samples.npz", {"arr_0": images})
    others = {"start": samples.starts()}
    scores = [asdict(row) for row in score_features(cell, samples.reference, store, samples.features(), others)]
    return {"features": samples.reference.key(), "scores": scores}


def write_exact(
    out: Path, cell: LoopCell, walked: Loop | Solver, real: RealData, indices: Sequence[int], device: Any
) -> None:
    """Write what exact denoisers of the real data do in the loop, as ``exact/`` of the suite's own cells.

    Their arms are ``gaussian`` and ``empirical``, with ``-forced`` for teacher forcing. In a pipeline's loop all are
    walks of the user's scheduler, not closed forms. By the solver of a loop of one's own the Gaussian alone is walked,
    in closed form where affordable.
    """
    started = time.perf_counter()
    shared = {"model": cell.model, "sampler": SAMPLER, "steps": cell.steps, "data": cell.data}
    settings = {"version": _EXACT_VERSION, **shared, **cell.settings}
    folder = RecordFolder(out / "exact" / f"{cell.model}-{SAMPLER}-{cell.steps}", "exact", settings)
    if folder.complete_facts() is not None:  # of another seed
        return
    rows: list[Row] = []
    spectra: dict[str, NDArray[Any]] = {}
    reference = real.reference
    if isinstance(walked, Loop):
        centre = real.images.mean(0).to(device)
        for name, law in exact_laws(real.images.to(device)).items():
            free, forced = (Tape(centre, paired, walked.frame.stages, indices) for paired in (False, True))
            walk_exact(walked, law, free, forced)
            for arm, tape in ((name, free), (f"{name}-forced", forced)):
                state = tape.state(indices, cell.steps)
                rows += WalkProbe.result(arm, state, indices, cell.path, reference.statistics, calls=cell.asked)
                spectra |= {f"{arm}/{band}": state[f"{band}/mean"] for band in _BANDS}
    elif reference.law is not None:
        energy = band_energies(reference.data.shape)
        floors = GaussianFloors(reference.law, cell.path, indices, walked, energy=energy)
        rows, spectra = floors.rows, floors.spectra()
    else:
        return
    facts = {"network_calls": 0, "seconds": time.perf_counter() - started}
    folder.write(to_table(rows).assign(note=""), {"spectra": {"i": np.array(indices), **spectra}}, facts)
