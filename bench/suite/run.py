"""A whole run: resolve what was asked, say what it costs, compute what is missing, keep the account."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.data import Dataset
from bench.measure.features import Extractor, open_extractor
from bench.models.checkpoints import load_network
from bench.models.denoisers import EpsDenoiser
from bench.suite.config import ConfigError, SamplerConfig, short_hash
from bench.suite.environment import environment
from bench.suite.plan import IN_CELLS, Cell, plan_cells
from bench.suite.reference import Reference
from bench.suite.registry import Model, Registry
from bench.suite.runner import CellRunner
from bench.suite.store import Store, read_json, write_json

__all__ = ["Request", "Run", "device_of", "dry_run"]


@dataclass(frozen=True)
class Request:
    """What the user asked for, parsed but not yet checked against models and data."""

    models: tuple[tuple[str, Path | None], ...]
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    samples: int
    sampler: SamplerConfig
    variance: str | None
    batch: int
    device: str
    measure: tuple[str, ...]
    features: str
    inception_weights: Path | None
    eps_scale: float | None
    eps_slope: float | None
    data_dir: Path | None
    out: Path | None

    def in_cells(self) -> tuple[str, ...]:
        """Return the measurements made while cells are sampled."""
        return tuple(name for name in IN_CELLS if name in self.measure)


def device_of(name: str) -> torch.device:
    """Return the device of ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: it is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there[name]:
        raise ConfigError(f"--device {name} is not available here; use --device auto")
    return torch.device(name)


class Run:
    """A resolved run.

    Raises (on construction):
        ConfigError, DataError, CheckpointError: before anything is computed or written.
    """

    def __init__(self, request: Request, registry: Registry) -> None:
        self.request = request
        self.device = device_of(request.device)
        self.models = _resolve_models(request, registry)
        self.data: Dataset = registry.load_dataset(request.data_dir)
        self.sampler = _resolve_sampler(request, self.models)
        self.networks = {model.name: self._load(model) for model in self.models}
        self.cells = plan_cells(
            self.models, self.sampler, request.steps, request.seeds, request.samples, request.in_cells(), self.data
        )
        self.out = request.out or Path("results") / f"{self.data.name}-{self.sampler.sampler}-{self.hash()}"
        _refuse_file(self.out)
        self.store = Store(self.out)
        for cell in self.cells:
            self.store.check(cell)

    def _load(self, model: Model) -> Any:
        channels = model.description.network.get("in_channels", 3)
        if channels != self.data.shape[0]:
            raise ConfigError(
                f"model {model.name!r} takes {channels} channels, dataset {self.data.name!r} has {self.data.shape[0]}"
            )
        if model.description.network.get("num_classes") is not None:
            raise ConfigError(
                f"model {model.name!r} is class-conditional, which is not supported yet; use another model"
            )
        factor = 2 ** (len(model.description.network.get("channel_mult", (1, 2, 4, 8))) - 1)
        if any(size % factor for size in self.data.shape[1:]):
            raise ConfigError(
                f"model {model.name!r} halves images {factor}-fold; {self.data.name!r} has {self.data.shape[1:]} pixels"
            )
        return load_network(model.weights, model.description)

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
                    "eps": [model.scale_at(self.sampler.sampler, s) for s in request.steps],
                }
                for model in self.models
            },
            "dataset": self.data.name,
            "data": self.data.content_hash(),
            **asdict(self.sampler),
            "steps": request.steps,
            "seeds": request.seeds,
            "samples": request.samples,
            "measure": request.measure,
            "features": request.features,
        }

    def hash(self) -> str:
        """Return the short hash of the configuration."""
        return short_hash(self.configuration())

    def open_features(self) -> Extractor | None:
        """Open the features the run scores with.

        Raises:
            ConfigError: the digits classifier is asked to look at other images.
            FeatureError: weights are missing.
        """
        if self.request.features == "digits" and self.data.shape[1:] != (8, 8):
            raise ConfigError("--features digits reads 8x8 images only; use --features inception or none")
        return open_extractor(self.request.features, self.request.inception_weights, self.device)

    def execute(self, quiet: bool) -> None:
        """Compute every cell that is not complete, with a progress bar counting network calls."""
        reference = Reference(self.data, self.open_features())
        sampled = [cell for cell in self.cells if self.store.is_sampled(cell)]
        missing = [self.store.extended(cell) for cell in self.cells if cell not in sampled]
        stale = [self.store.extended(cell) for cell in sampled if not self.store.is_scored(cell, reference.key())]
        if not missing and not stale:
            return
        with self._account(), self._bar(missing, quiet) as bar:
            for cell in missing:
                bar.set_description(f"{cell.model.name} {cell.steps} steps")
                self._runner(cell, reference, bar).run()
            for cell in stale:
                found = self.store.metrics(cell) or {}
                facts: dict[str, Any] = {name: found[name] for name in ("network_calls", "seconds") if name in found}
                self._runner(cell, reference, bar).rescore(facts)

    def _bar(self, missing: list[Cell], quiet: bool) -> tqdm[Any]:
        """Open a bar over the network calls still to be made, so that its time left is honest."""
        batch = self.request.batch
        units = [(cell, unit) for cell in missing for unit in cell.units(batch)]
        total = sum(cell.unit_cost(unit) for cell, unit in units)
        done = sum(cell.unit_cost(unit) for cell, unit in units if self.store.has_shard(cell, unit))
        return tqdm(total=total, initial=done, unit="call", unit_scale=True, disable=quiet)

    def _runner(self, cell: Cell, reference: Reference, bar: tqdm[Any]) -> CellRunner:
        denoiser = EpsDenoiser(self.networks[cell.model.name].to(self.device))

        def progress(calls: int) -> None:
            bar.update(calls)

        return CellRunner(cell, denoiser, reference, self.store, self.device, self.request.batch, progress)

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
        done = [self.store.metrics(cell) or {} for cell in self.cells]
        calls = sum(int(found.get("network_calls", 0)) for found in done)
        seconds = sum(float(found.get("seconds", 0.0)) for found in done)
        record["end"] = datetime.now(UTC).isoformat(timespec="seconds")
        record["network_calls"] = calls  # a call is one image at one level
        record["network_calls_per_second"] = round(calls / seconds, 1) if seconds else None
        record["images_per_second"] = round(len(self.cells) * self.request.samples / seconds, 2) if seconds else None
        write_json(self.out / "run.json", record)


def _refuse_file(out: Path) -> None:
    """Refuse a results folder that cannot be made, before anything is computed."""
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"cannot write results to {out}: {there} is not a folder to write in; choose another --out")


def _resolve_models(request: Request, registry: Registry) -> tuple[Model, ...]:
    models = tuple(registry.model(name, path) for name, path in request.models)
    if request.eps_scale is not None or request.eps_slope is not None:
        if not any(model.scaling for model in models):
            raise ConfigError("--eps-scale and --eps-slope change scaling models only; add one, e.g. adm-es")
        models = tuple(model.overridden(request.eps_scale, request.eps_slope) for model in models)
    for model in models:
        if model.scaling and not model.scaling[request.sampler.sampler].steps:
            raise ConfigError(
                f"no scaling constants were tuned for {model.name!r} with these weights; give --eps-scale"
            )
    return models


def _resolve_sampler(request: Request, models: tuple[Model, ...]) -> SamplerConfig:
    """Choose the variance mode and refuse flags that would have no effect."""
    sampler = request.sampler
    if sampler.sampler == "ddim":
        if request.variance is not None:
            raise ConfigError("--variance has no effect with --sampler ddim; use --eta")
        return replace(sampler, variance=None)
    if sampler.eta:
        raise ConfigError("--eta has no effect with --sampler ddpm; use --sampler ddim")
    unlearned = [model.name for model in models if not model.learns_variance]
    if request.variance is None and 0 < len(unlearned) < len(models):
        raise ConfigError(f"{unlearned[0]!r} learns no variance, other models do; choose one with --variance for all")
    if request.variance == "learned" and unlearned:
        raise ConfigError(
            f"model {unlearned[0]!r} does not learn its variance; use --variance fixed-small or fixed-large"
        )
    # guided-diffusion's default for networks without a learned variance is the large fixed one.
    return replace(sampler, variance=request.variance or ("fixed-large" if unlearned else "learned"))


def dry_run(run: Run) -> Iterator[str]:
    """Yield the resolved plan and its cost, line by line."""
    yield f"dataset   {run.data.name} ({len(run.data.images)} images, {len(run.data.part('heldout'))} held out)"
    settings = ", ".join(f"{name} {value}" for name, value in asdict(run.sampler).items())
    yield f"sampling  {settings}"
    yield f"samples   {run.request.samples} a cell, internal batch {run.request.batch}, on {run.device}"
    yield f"out       {run.out}"
    total, share = 0, 0
    for cell in run.cells:
        free, instruments = cell.cost()
        state = "done" if run.store.is_sampled(cell) else "to do"
        b, k = cell.scale
        scaling = f"  eps / ({b:.5g} + {k:.3g} i)" if cell.correction() else ""
        yield f"  {cell.name:<32} {free + instruments:>12,} network calls  {state}{scaling}"
        total, share = total + free + instruments, share + instruments
    yield f"total     {total:,} network calls, {100 * share / total:.1f} % of them for the instruments"
