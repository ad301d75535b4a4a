"""A run: its networks, cells and measurements, checked before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from bench.data import Dataset
from bench.diffusion.types import Denoiser
from bench.latent.autoencoder import Decoder
from bench.latent.inputs import LatentData
from bench.latent.networks import load_conditional
from bench.measure.features.extractors import ANY_SIZE, INCEPTION_EXTRACTORS, embedded_width, open_extractor
from bench.measure.quality.references import open_statistics
from bench.measure.quality.scores import comparison_refusal, frechet_refusal
from bench.models.acceleration import Accelerated
from bench.models.checkpoints.formats import denoiser_of, open_network
from bench.models.checkpoints.guided_diffusion import load_classifier
from bench.models.denoisers.guidance import ClassifierFreeDenoiser, GuidedDenoiser
from bench.runtime.devices import full_float32, keep_freed_memory
from bench.suite.cells.reference import Reference
from bench.suite.cells.walks import WalkContext
from bench.suite.config.resolve import Configuration
from bench.suite.experiments.chains import plan_chains
from bench.suite.experiments.exact import plan_exact
from bench.suite.experiments.experiment import Extra
from bench.suite.experiments.response import plan_response
from bench.suite.plan import plan_cells
from bench.suite.registry.model import Model, check_fit
from bench.suite.settings import ConfigError, short_hash
from bench.suite.store.store import Store, refuse_links


class Run:
    """A run.

    Attributes:
        config: the request, resolved.
        out: the results folder, and ``store`` its cells.
        networks: each model's network, by the model's name.
        compiled: whether the networks are compiled; None until that is decided.
        warnings: a line for each network whose description does not fit; empty until they were asked.
        cells: the plan, and ``extras`` the measurements beside the cells.

    Raises (on construction):
        ConfigError, CheckpointError: before anything is computed or written.
    """

    def __init__(self, config: Configuration) -> None:
        full_float32()
        keep_freed_memory()
        self.config, request = config, config.request
        self.networks = _load_networks(config)
        self.compiled: bool | None = None
        self.warnings: list[str] = []
        guidance = config.models[0].guidance  # of all models or of none
        self._classifier = load_classifier(guidance.classifier, guidance.network) if guidance else None
        latent = config.models[0].latent  # of all models or of none
        self._decoder = Decoder(latent.vae, config.device) if latent and latent.vae else None
        self.cells = plan_cells(
            config.models, config.sampler, request.steps, config.seeds, request.samples, request.in_cells(), config.data
        )
        self.out = config.out
        refuse_file(self.out)
        self.store = Store(self.out)
        refuse_links(self.out)
        if not config.fits:  # a fit makes no cells
            self.store.check(*self.cells)
        self.extras = self._plan_extras()
        for extra in self.extras:
            for folder in extra.folders(self.out):
                folder.check()

    def _plan_extras(self) -> list[Extra]:
        measure = self.config.request.measure
        unfit = [m.name for m in self.config.models if m.description.frame != "vp" or m.description.classes]
        for name in ("chains", "response"):
            if name in measure and unfit:
                raise ConfigError(
                    f"--measure {name} needs models of a training index and without class labels, which"
                    f" {unfit[0]!r} is not; leave it out"
                )
        chains = plan_chains(self.cells) if "chains" in measure else []
        response = plan_response(self.cells) if "response" in measure else []
        return [*(() if self.config.fits else plan_exact(self.cells)), *chains, *response]

    def reference(self) -> Reference:
        """Return what the run's samples are compared with, by the features that it scores with.

        Raises:
            FeatureError: the features cannot read the images, or weights are missing.
        """
        request, imported = self.config.request, None
        extractor = open_extractor(request.features, request.inception_weights, self.config.device)
        if extractor is not None:
            extractor.check(self._pictures.shape)
            imported = open_statistics(request.reference, extractor) if request.reference is not None else None
        return Reference(self.config.data, extractor, imported, self._pictures)

    @cached_property
    def _pictures(self) -> Dataset:
        """Return the images that samples are compared with: the run's own, or its latents decoded."""
        data = self.config.data
        return self._decoder.decoded(data) if self._decoder is not None and isinstance(data, LatentData) else data

    def context(self, reference: Reference, progress: Callable[[int], None]) -> WalkContext:
        """Return what every walk of the run stands on."""
        bench = WalkContext(self.denoiser, reference, self.config.device, self.config.request.batch, progress)
        if isinstance(self.config.data, LatentData):
            return replace(bench, render=self._decoder or (lambda latents, mode: latents.float()))
        return bench

    def denoiser(self, model: Model) -> Denoiser:
        """Return a model's network on the run's device, under its guidance, without its corrections."""
        device = self.config.device
        denoiser = denoiser_of(self.networks[model.name], model.description, device)
        if model.classifier_free is not None and model.classifier_free.scale != 1:
            return ClassifierFreeDenoiser(denoiser, model.classifier_free)
        if model.guidance is None or self._classifier is None:
            return denoiser
        return GuidedDenoiser(denoiser, self._classifier.to(device), model.guidance.scale)


def _load_networks(config: Configuration) -> dict[str, Accelerated]:
    """Return each model's network; models of one file, scaled ones among them, share it."""
    opened: dict[tuple[str, str], Accelerated] = {}
    networks = {}
    for model in config.models:
        check_fit(model, config.data, config.shows_images)
        key = (model.weights_hash, short_hash(dict(model.description.network)))
        if key not in opened:
            network = (load_conditional if model.latent else open_network)(model.weights, model.description)
            opened[key] = Accelerated(network, config.sampler.precision)
        networks[model.name] = opened[key]
    return networks


def refuse_file(out: Path) -> None:
    """Refuse a results folder that cannot be made, before anything is computed."""
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"cannot write results to {out}: {there} is not a folder to write in; choose another --out")


def notes(run: Run, reference: Reference) -> Iterator[str]:
    """Yield what the dataset's files hold besides images, which models are equal, and a distance that is missing."""
    config = run.config
    if config.data.note:
        yield config.data.note
    yield from _equal_weights(config.named)
    if line := missing_distance(reference, config.request.samples):
        yield line


def _equal_weights(models: Sequence[Model]) -> Iterator[str]:
    """Yield a line for each file that was given two names; a model and its remedies share theirs by intention."""
    names: dict[str, list[str]] = {}
    for model in models:
        plain, known = model.base or model.name, names.setdefault(model.weights_hash, [])
        known += [] if plain in known else [plain]
    for known in names.values():
        if len(known) > 1:
            yield f"{' and '.join(known)} have the same weights: what differs between them is not their training"


def missing_distance(reference: Reference, n: int) -> str:
    """Return why N samples have no Frechet distance to a reference, and what stands in its place; empty if they have.

    Args:
        reference: what samples are compared with.
        n: number of samples of a cell.
    """
    extractor = reference.extractor
    if extractor is None or extractor.widths is None:
        return ""
    (width, _), (known, singles) = extractor.widths, reference.counts()
    if not frechet_refusal(width, n, known):
        return ""
    need, kid = f"{width + 1} samples and {width + 1} reference images", extractor.metrics["kid"]
    here = f"{n}" if known is None else f"{n} and {known}"
    refusal = comparison_refusal(n, singles)
    instead = f"nor can {kid} be given ({refusal})" if refusal else f"{kid} is shown instead"
    advice = ""
    if known is None or known > width:
        advice = f"; --samples {width + 1} gives it"
    elif extractor.name in INCEPTION_EXTRACTORS and not frechet_refusal(embedded_width(ANY_SIZE), n, known):
        advice = f"; --features {ANY_SIZE} needs {embedded_width(ANY_SIZE) + 1} of both"
    return f"{extractor.metrics['frechet']} needs {need}; here {here}: {instead}{advice}"
