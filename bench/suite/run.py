"""A resolved run: models, data, sampler, cells and measurements, checked before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.data import Dataset
from bench.diffusion.types import Denoiser
from bench.measure.features.extractors import Extractor, open_extractor
from bench.measure.features.inception import sha256
from bench.measure.quality.committed import Unseen
from bench.measure.quality.references import open_statistics
from bench.models.acceleration import Accelerated
from bench.models.checkpoints.formats import denoiser_of, open_network
from bench.models.checkpoints.guided_diffusion import load_classifier
from bench.models.denoisers.guidance import GuidedDenoiser
from bench.runtime.devices import full_float32, keep_freed_memory
from bench.suite.cells.reference import Reference
from bench.suite.cells.workbench import Workbench
from bench.suite.config.resolve import Request, device_of, refuse_precision, resolve_models, resolve_sampler
from bench.suite.experiments.chains import plan_chains
from bench.suite.experiments.experiment import Extra
from bench.suite.experiments.response import plan_response
from bench.suite.plan import plan_cells
from bench.suite.registry.model import Model, check_fit
from bench.suite.registry.registry import Registry
from bench.suite.settings import ConfigError, short_hash
from bench.suite.store.store import Store
from bench.suite.unseen import without_images

__all__ = ["Run"]


class Run:
    """A resolved run.

    Raises (on construction):
        ConfigError, DataError, CheckpointError: before anything is computed or written.
    """

    def __init__(self, request: Request, registry: Registry) -> None:
        self.device = device_of(request.device)
        full_float32()
        keep_freed_memory()
        refuse_precision(request.sampler.precision, self.device)
        self.named = resolve_models(request, registry)
        self.data: Dataset = registry.load_dataset(request.data_dir, request.preprocessing)
        request, self.left_out = without_images(request) if isinstance(self.data, Unseen) else (request, ())
        self.request = request
        self.sampler = resolve_sampler(request, self.named)
        self.models, self.seeds = self._grid()
        self.networks = self._load_networks()
        self.compiled: bool | None = None  # whether they are, once that is settled
        guidance = self.models[0].guidance  # of all models or of none
        self.classifier = load_classifier(guidance.classifier, guidance.network) if guidance else None
        self.cells = plan_cells(
            self.models, self.sampler, request.steps, self.seeds, request.samples, request.in_cells(), self.data
        )
        self.out = request.out or Path("results") / f"{self.data.name}-{self.sampler.sampler}-{self.hash()}"
        _refuse_file(self.out)
        self.store = Store(self.out)
        self.store.refuse_links()
        if not self.fits:  # a fit makes no cells
            self.store.check(*self.cells)
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

    def _load_networks(self) -> dict[str, Accelerated]:
        """Return each model's network; models of one file, scaled ones among them, share it."""
        opened: dict[tuple[str, str], Accelerated] = {}
        networks = {}
        for model in self.models:
            check_fit(model, self.data, self._shows_images())
            key = (model.weights_hash(), short_hash(dict(model.description.network)))
            if key not in opened:
                network = open_network(model.weights, model.description)
                opened[key] = Accelerated(network, self.sampler.precision)
            networks[model.name] = opened[key]
        return networks

    def _shows_images(self) -> bool:
        """Tell whether real images are shown to the models, with their class labels."""
        if isinstance(self.data, Unseen):
            return False
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

    def overlaps(self) -> bool:
        """Tell whether features and scores are made beside the next walk, which leaves the host idle."""
        # TF32 is a switch of the whole process: features beside a walk would be computed with it.
        return self.device.type == "cuda" and self.sampler.precision != "tf32"

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

    def workbench(self, reference: Reference, progress: Callable[[int], None]) -> Workbench:
        """Return what every walk of the run stands on."""
        return Workbench(self.denoiser, reference, self.device, self.request.batch, progress)

    def denoiser(self, model: Model) -> Denoiser:
        """Return a model's network on the run's device, behind its classifier, without its corrections."""
        denoiser = denoiser_of(self.networks[model.name], model.description, self.device)
        if model.guidance is None or self.classifier is None:
            return denoiser
        return GuidedDenoiser(denoiser, self.classifier.to(self.device), model.guidance.scale)


def _refuse_file(out: Path) -> None:
    """Refuse a results folder that cannot be made, before anything is computed."""
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"cannot write results to {out}: {there} is not a folder to write in; choose another --out")
