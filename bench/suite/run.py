"""A whole run: resolve what was asked, say what it costs, compute what is missing, keep the account."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.data import Dataset
from bench.diffusion.types import Denoiser
from bench.measure.devices import full_float32
from bench.measure.features import Extractor, open_extractor
from bench.measure.inception import sha256
from bench.measure.yardstick import open_statistics
from bench.models.formats import denoiser_of, open_network
from bench.models.guidance import GuidedDenoiser, load_classifier
from bench.suite.arms import Arms
from bench.suite.chains import plan_chains
from bench.suite.compatibility import check_fit
from bench.suite.config import ConfigError, short_hash
from bench.suite.environment import environment
from bench.suite.extras import Bench, Extra
from bench.suite.fitting import Subject
from bench.suite.model import Model
from bench.suite.plan import Cell, plan_cells
from bench.suite.reference import Reference
from bench.suite.registry import Registry
from bench.suite.request import Request, device_of, resolve_models, resolve_sampler
from bench.suite.response import plan_response
from bench.suite.runner import CellRunner
from bench.suite.scoring import score_cell
from bench.suite.store import Store, read_json, write_json

__all__ = ["Run", "cost_line"]


class Run:
    """A resolved run.

    Raises (on construction):
        ConfigError, DataError, CheckpointError: before anything is computed or written.
    """

    def __init__(self, request: Request, registry: Registry) -> None:
        self.request = request
        self.device = device_of(request.device)
        full_float32()
        self.named = resolve_models(request, registry)
        self.data: Dataset = registry.load_dataset(request.data_dir, request.preprocessing)
        self.sampler = resolve_sampler(request, self.named)
        self.models, self.seeds = self._grid()
        self.networks = self._load_networks()
        guidance = self.models[0].guidance  # of all models or of none
        self.classifier = load_classifier(guidance.classifier, guidance.network) if guidance else None
        self.cells = plan_cells(
            self.models, self.sampler, request.steps, self.seeds, request.samples, request.in_cells(), self.data
        )
        self.out = request.out or Path("results") / f"{self.data.name}-{self.sampler.sampler}-{self.hash()}"
        _refuse_file(self.out)
        self.store = Store(self.out)
        self.store.refuse_links()
        for cell in () if self.fits else self.cells:  # a fit makes no cells
            self.store.check(cell)
        self.extras = self._plan_extras()
        for extra in self.extras:
            for folder in extra.folders(self.out):
                folder.check()

    @property
    def fits(self) -> bool:
        """Tell whether a constant is fitted, in place of sampling cells."""
        return self.request.tune is not None and not self.request.tune.values

    def _grid(self) -> tuple[tuple[Model, ...], tuple[int, ...]]:
        """Return the models and seeds of the cells: under ``--tune`` those of the values to try."""
        tune, request = self.request.tune, self.request
        if tune is None or not tune.values:
            return self.named, request.seeds
        return tune.variants(self.named, self.sampler.sampler, request.steps), tune.seeds(request.seeds)

    def _plan_extras(self) -> list[Extra]:
        measure = self.request.measure
        for name in ("chains", "response"):
            strange = [m.name for m in self.models if m.description.is_edm or m.description.classes]
            if name in measure and strange:
                raise ConfigError(
                    f"--measure {name} needs models of a training index and without class labels, which"
                    f" {strange[0]!r} is not; leave it out"
                )
        chains = plan_chains(self.cells) if "chains" in measure else []
        return [*chains, *(plan_response(self.cells) if "response" in measure else ())]

    def _load_networks(self) -> dict[str, Any]:
        """Return each model's network; models of one file, scaled ones among them, share it."""
        opened: dict[tuple[str, str], Any] = {}
        networks = {}
        for model in self.models:
            check_fit(model, self.data, self._shows_images())
            key = (model.weights_hash(), short_hash(dict(model.description.network)))
            if key not in opened:
                opened[key] = open_network(model.weights, model.description)
            networks[model.name] = opened[key]
        return networks

    def _shows_images(self) -> bool:
        """Tell whether real images are shown to the models, with their class labels."""
        tune = self.request.tune
        return bool(self.request.in_cells()) or (tune is not None and tune.constant == "reference")

    def configuration(self) -> dict[str, Any]:
        """Return the resolved configuration, JSON-like; everything that determines the numbers, and the features."""
        request = self.request
        return {
            "models": {
                model.name: {
                    "weights": model.weights_hash(),
                    "network": dict(model.description.network),
                    "schedule": model.description.schedule,
                    "T": model.description.T,
                    **model.additions(),
                    "eps": [model.scale_at(self.sampler.sampler, s) for s in request.steps],
                    **model.told(self.sampler.sampler, request.steps),
                }
                for model in self.models
            },
            "dataset": self.data.name,
            "data": self.data.content_hash(),
            **self.sampler.description(),
            "steps": request.steps,
            "seeds": self.seeds,
            "samples": request.samples,
            "measure": request.measure,
            "features": request.features,
            **self._settings(),
        }

    def _settings(self) -> dict[str, Any]:
        """Return what the user need not set: preprocessing, and the files that features are compared by."""
        given = {"reference": self.request.reference, "inception_weights": self.request.inception_weights}
        # A file that is not there is told of where it is read.
        found: dict[str, Any] = {name: sha256(path) for name, path in given.items() if path and path.is_file()}
        return found if self.data.preprocessing == "none" else {**found, "preprocessing": self.data.preprocessing}

    def hash(self) -> str:
        """Return the short hash of the configuration."""
        return short_hash(self.configuration())

    def open_features(self) -> Extractor | None:
        """Open the features the run scores with.

        Raises:
            FeatureError: they cannot read the images, or weights are missing.
        """
        extractor = open_extractor(self.request.features, self.request.inception_weights, self.device)
        if extractor is not None:
            extractor.check(self.data.shape)
        return extractor

    def reference(self) -> Reference:
        """Return what the run's samples are compared with."""
        extractor, path = self.open_features(), self.request.reference
        if path is None or extractor is None:
            return Reference(self.data, extractor)
        return Reference(self.data, extractor, open_statistics(path, extractor))

    def execute(self, quiet: bool) -> None:
        """Compute what is not complete, cells first, with a progress bar counting network calls."""
        reference = self.reference()
        self.store.check_features(self.cells, reference.features_key())
        sampled = [cell for cell in self.cells if self.store.is_sampled(cell)]
        missing = [self.store.extended(cell) for cell in self.cells if cell not in sampled]
        stale = [self.store.extended(cell) for cell in sampled if not self.store.is_scored(cell, reference.key())]
        features = reference.features_key()
        extras = [extra for extra in self.extras if not extra.is_complete(self.out, features)]
        if missing or stale or extras:
            self._compute(missing, stale, extras, reference, quiet)

    def _compute(
        self, missing: list[Cell], stale: list[Cell], extras: list[Extra], reference: Reference, quiet: bool
    ) -> None:
        features = reference.features_key()
        if extras and not quiet:
            print(cost_line(self))
        calls = self._calls(missing) + sum(extra.remaining(self.out, features) for extra in extras)
        with self._account(), self._bar(missing, calls, quiet) as bar:
            self._compute_cells(missing, stale, reference, bar)
            for extra in extras:
                bar.set_description(extra.name)
                extra.compute(self._bench(reference, bar))

    def subject(self, cell: Cell, reference: Reference, bar: tqdm[Any]) -> Subject:
        """Return what a constant of a cell's model is fitted for."""
        return Subject(cell, self._denoiser(cell.model), reference, self.device, self.request.batch, _counting(bar))

    def _compute_cells(self, missing: list[Cell], stale: list[Cell], reference: Reference, bar: tqdm[Any]) -> None:
        for cell in missing:
            bar.set_description(f"{cell.model.name} {cell.steps} steps")
            self._runner(cell, reference, bar).run()
        for cell in stale:
            found = self.store.metrics(cell) or {}
            facts: dict[str, Any] = {name: found[name] for name in ("network_calls", "seconds", "nfe") if name in found}
            score_cell(cell, reference, self.store, facts)

    def _calls(self, cells: list[Cell]) -> int:
        return sum(cell.unit_cost(unit) for cell in cells for unit in cell.units(self.request.batch))

    def _bar(self, missing: list[Cell], calls: int, quiet: bool) -> tqdm[Any]:
        """Open a bar over the network calls still to be made, so that its time left is honest."""
        units = [(cell, unit) for cell in missing for unit in cell.units(self.request.batch)]
        done = sum(cell.unit_cost(unit) for cell, unit in units if self.store.has_shard(cell, unit))
        return tqdm(total=calls, initial=done, unit="call", unit_scale=True, disable=quiet)

    def _denoiser(self, model: Model) -> Denoiser:
        denoiser = denoiser_of(self.networks[model.name], model.description, self.device)
        if model.guidance is None or self.classifier is None:
            return denoiser
        return GuidedDenoiser(denoiser, self.classifier.to(self.device), model.guidance.scale)

    def _runner(self, cell: Cell, reference: Reference, bar: tqdm[Any]) -> CellRunner:
        denoiser = self._denoiser(cell.model)
        arms = Arms(cell, denoiser, reference.data, reference.centre, self.device, self.request.batch, _counting(bar))
        return CellRunner(arms, reference, self.store)

    def _bench(self, reference: Reference, bar: tqdm[Any]) -> Bench:
        return Bench(self.out, reference, self.device, self.request.batch, self._denoiser, _counting(bar))

    def _first_start(self) -> str | None:
        """Return when this very run was first started, if it was interrupted."""
        record = read_json(self.out / "run.json") or {}
        return str(record["start"]) if record.get("hash") == self.hash() and "start" in record else None

    @contextmanager
    def _account(self) -> Iterator[None]:
        """Write ``run.json`` before and after the work."""
        start = self._first_start() or datetime.now(UTC).isoformat(timespec="seconds")
        record: dict[str, Any] = {
            "configuration": self.configuration(),
            "hash": self.hash(),
            "command": sys.argv,
            **environment(),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "batch_size": self.request.batch,
            "start": start,
            "end": None,
            "network_calls": None,
            "network_calls_per_second": None,
            "images_per_second": None,
        }
        write_json(self.out / "run.json", record)
        yield
        record["end"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.out / "run.json", record | self._speed())

    def _speed(self) -> dict[str, float | None]:
        """Return the network calls of the whole run (a call is one image at one level) and how fast it was."""
        cells = [self.store.metrics(cell) or {} for cell in self.cells]
        sampling = sum(float(found.get("seconds", 0.0)) for found in cells)
        seconds = sampling + sum(extra.seconds(self.out) for extra in self.extras)
        calls = sum(int(found.get("network_calls", 0)) for found in cells)
        calls += sum(extra.cost() for extra in self.extras)
        images = len(self.cells) * self.request.samples
        return {
            "network_calls": calls,
            "network_calls_per_second": round(calls / seconds, 1) if seconds else None,
            "images_per_second": round(images / sampling, 2) if sampling else None,
        }


def _counting(bar: tqdm[Any]) -> Callable[[int], None]:
    """Return what tells the bar of network calls just made."""

    def progress(calls: int) -> None:
        bar.update(calls)

    return progress


def _refuse_file(out: Path) -> None:
    """Refuse a results folder that cannot be made, before anything is computed."""
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"cannot write results to {out}: {there} is not a folder to write in; choose another --out")


def cost_line(run: Run) -> str:
    """Return the network calls of the cells and of each measurement that has its own, done ones included."""
    calls = {"cells": sum(sum(cell.cost()) for cell in run.cells)}
    for extra in run.extras:
        calls[extra.measure] = calls.get(extra.measure, 0) + extra.cost()
    return "network calls: " + ", ".join(f"{count:,} for {what}" for what, count in calls.items())
