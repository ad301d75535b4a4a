"""Resolution: a request checked against the registry, the data and this machine, frozen before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bench.data import Dataset
from bench.files.writing import sha256_of
from bench.latent.inputs import read_latents
from bench.measure.quality.embedded_statistics import WITH_STATISTICS, Unseen
from bench.models.acceleration import precision_refusal
from bench.runtime.devices import find_device
from bench.suite.config.request import Request
from bench.suite.registry.model import Model, settle_guidance
from bench.suite.registry.registry import Registry
from bench.suite.registry.tuned_constant import OF_IMAGES
from bench.suite.settings import DEFAULT_DATASET, FRAME_NAMES, ConfigError, SamplerConfig, samplers_of, short_hash

_NEED_IMAGES = {
    "normality": "normality (single-step errors on real images)",
    "chains": "chains (from real images)",
    "response": "response (of real noised images)",
}
_NEIGHBOURS = "nn_ratio (neighbours among real images)"
_REFUSED = {  # what a frame has no sampler for, and why
    ("flow", "ddpm"): ", which are no chain of steps whose posterior ancestral sampling could draw from",
    ("flow", "ddim"): ", where DDIM's step is Euler's",
    ("edm", "ddim"): ", where DDIM's step is Euler's",
}
_SLOPES = "slopes (whether each description fits its network)"
_FORCED = "the teacher-forced and paired arms of steps (x0_hat errors, variance gaps to real noised images)"


@dataclass(frozen=True)
class Configuration:
    """A resolved request: everything that determines a run.

    Attributes:
        request: the user's, less what ``left_out`` names.
        device: where to compute.
        named: the models as the user named them.
        models: the models of the cells: under ``--tune`` a model for each value.
        seeds: of the cells: under ``--tune`` the reserved ones.
        data: the images.
        sampler: how samples are drawn.
        left_out: a name of each measurement that the dataset, whose images are not at hand, does not allow.
    """

    request: Request
    device: torch.device
    named: tuple[Model, ...]
    models: tuple[Model, ...]
    seeds: tuple[int, ...]
    data: Dataset
    sampler: SamplerConfig
    left_out: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Tell whether a constant is fitted by its rule, in place of sampling cells."""
        return self.request.tune is not None and not self.request.tune.values

    @property
    def shows_images(self) -> bool:
        """Tell whether real images are shown to the models, with their class labels."""
        if isinstance(self.data, Unseen):
            return False
        tune = self.request.tune
        return bool(self.request.in_cells()) or (tune is not None and tune.constant == "reference")

    @property
    def overlaps(self) -> bool:
        """Tell whether features and scores are made beside the next walk, which leaves the host idle."""
        # TF32 is a switch of the whole process: features beside a walk would be computed with it.
        return self.device.type == "cuda" and self.sampler.precision != "tf32"

    @cached_property
    def description(self) -> dict[str, Any]:
        """Return everything that determines the numbers, and the features; JSON-like."""
        request, name = self.request, self.sampler.sampler
        files = {"reference": request.reference, "inception_weights": request.inception_weights}
        # A file that is missing is reported where it is read.
        hashes = {key: _sha256(path) for key, path in files.items() if path and path.is_file()}
        return {
            "models": {
                model.name: {
                    "weights": model.weights_hash,
                    "network": dict(model.description.network),
                    "schedule": model.description.schedule,
                    "T": model.description.T,
                    **model.additions(),
                    "eps": [model.scale_at(name, steps) for steps in request.steps],
                    **model.remedies_by_steps(name, request.steps),
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
            **hashes,
            **({} if self.data.preprocessing == "none" else {"preprocessing": self.data.preprocessing}),
        }

    @cached_property
    def hash(self) -> str:
        """Return the short hash of the description."""
        return short_hash(self.description)

    @property
    def out(self) -> Path:
        """Return the results folder."""
        return self.request.out or Path("results") / f"{self.data.name}-{self.sampler.sampler}-{self.hash}"


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from None


def resolve(request: Request, registry: Registry) -> Configuration:
    """Resolve a request.

    Raises:
        ConfigError, DataError, CheckpointError: something does not exist, or does not go with the rest.
    """
    device, precision = device_of(request.device), request.sampler.precision
    if refusal := precision_refusal(precision, device):
        raise ConfigError(f"--precision {refusal}; use --precision {'bf16 or ' if precision == 'tf32' else ''}fp32")
    named = resolve_models(request, registry)
    request, data = _data(request, registry, named)
    flags = {"guidance": request.guidance, "guidance_interval": request.guidance_interval}
    flags = {name: value for name, value in flags.items() if value is not None}
    named = tuple(settle_guidance(model, data.classes, flags) for model in named)
    if request.guidance_interval and not any(m.classifier_free and m.classifier_free.scale != 1 for m in named):
        raise ConfigError("--guidance-interval has no effect on models that are not guided; give --guidance")
    if request.sampler.class_labels != "random" and not any(model.labels for model in named):
        raise ConfigError("--labels has no effect on models without class labels; leave it out")
    request, left_out = _without_images(request) if isinstance(data, Unseen) else (request, ())
    sampler, tune = resolve_sampler(request, named), request.tune
    if tune is None or not tune.values:
        return Configuration(request, device, named, named, request.seeds, data, sampler, left_out)
    models = tune.variants(named, sampler.sampler, request.steps)
    return Configuration(request, device, named, models, tune.seeds(request.seeds), data, sampler, left_out)


def _data(request: Request, registry: Registry, models: tuple[Model, ...]) -> tuple[Request, Dataset]:
    """Return the run's images, or the latents of latent models with the request as they need it.

    Raises:
        ConfigError: latent and pixel models together, latents of two files, or flags that are for images.
    """
    files = {model.latent for model in models}
    if files == {None}:
        if request.features == "latents":
            raise ConfigError("--features latents is for latent models; leave it out")
        return request, registry.load_dataset(request.data_dir, request.preprocessing)
    first, *others = files
    if first is None or others:
        raise ConfigError("models of one run share their latents and autoencoder; run the others apart")
    given: dict[str, Any] = {"--data-dir": request.data_dir, "--resize and --crop": request.preprocessing}
    given |= {"--dataset": registry.dataset != DEFAULT_DATASET, "--clip": request.clip}
    for flag, value in given.items():
        if value:
            raise ConfigError(f"{flag} has no effect on latent models, whose data are their latents; leave it out")
    features = request.features if request.features_asked else ("latents" if first.vae is None else "inception")
    if (features == "latents") != (first.vae is None) and features != "none":
        advice = "give their entry 'vae', or leave it out" if first.vae is None else "leave it out, or drop 'vae'"
        raise ConfigError(f"--features {features} does not read what these latent models give; {advice}")
    return replace(request, features=features, clip=False), read_latents(first.latents)


def device_of(name: str) -> torch.device:
    """Return the device of ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: it is not there.
    """
    device = find_device(name)
    if device is None:
        raise ConfigError(f"--device {name} is not available here; use --device auto")
    if device.type == "cuda" and torch.cuda.is_initialized():
        # A rank has chosen its GPU, which must be named in full: in another thread plain "cuda" would be the first one.
        return torch.device("cuda", torch.cuda.current_device())
    return device


def resolve_models(request: Request, registry: Registry) -> tuple[Model, ...]:
    """Look every model up, with the user's scaling constants and classifier.

    Raises:
        ConfigError: an unknown model, or one that does not go with the others.
    """
    models = tuple(registry.model(name, path) for name, path in request.models)
    if request.eps_scale is not None or request.eps_slope is not None:
        if not any("b" in remedy.defaults for model in models for remedy in model.remedies):
            raise ConfigError("--eps-scale and --eps-slope change scaling models only; add one, e.g. adm-es")
        models = tuple(model.rescaled(request.eps_scale, request.eps_slope) for model in models)
    if request.tune is not None:
        models = tuple(request.tune.prepared(model) for model in models)
    if request.classifier is None:
        return models
    classifier, scale = request.classifier, request.classifier_scale
    return tuple(replace(model, guidance=registry.guidance(classifier, scale, model)) for model in models)


def resolve_sampler(request: Request, models: tuple[Model, ...]) -> SamplerConfig:
    """Choose sampler, variance and clipping where the user left them open, and refuse flags without effect.

    Raises:
        ConfigError: naming the flag or model that does not fit.
    """
    # Of models that cannot run together the first one off the variance-preserving levels is named.
    first = next((model for model in models if model.description.frame != "vp"), models[0])
    frame = first.description.frame
    for model in models:
        if model.description.frame != frame:
            raise ConfigError(
                f"{first.name!r} walks on {FRAME_NAMES[frame]} and {model.name!r} does not; run them apart"
            )
    name = request.sampler_name or ("ddpm" if frame == "vp" else "heun")
    if name not in samplers_of(frame):
        why = _REFUSED.get((frame, name), "")
        *others, last = samplers_of(frame)
        raise ConfigError(
            f"model {first.name!r} walks on {FRAME_NAMES[frame]}{why}; use --sampler {', '.join(others)} or {last}"
        )
    sampler = replace(request.sampler, sampler=name, clip=frame == "vp" if request.clip is None else request.clip)
    _refuse_idle_flags(request, sampler, frame)
    for model in models:
        model.refuse(name)
    return replace(sampler, variance=_variance(request, models) if name == "ddpm" else None)


def _refuse_idle_flags(request: Request, sampler: SamplerConfig, frame: str) -> None:
    """Refuse flags that would have no effect under a sampler in a frame."""
    name = sampler.sampler
    idle = (  # a flag, a sampler that it has an effect with, and whether it has none here
        ("--variance", "ddpm", name != "ddpm" and request.variance is not None),
        ("--eta", "ddim", name != "ddim" and sampler.eta != 0),
        ("--churn", "heun", (frame != "edm" or name not in ("euler", "heun")) and sampler.churn != 0),
        ("--spacing", "ddpm", frame != "vp" and sampler.spacing != "plain"),
        ("--classifier", "ddpm", name not in ("ddpm", "ddim") and request.classifier is not None),
    )
    for flag, home, is_idle in idle:
        if is_idle:
            # Another sampler is a remedy only where the run's models can take it, with this flag.
            helps = home in samplers_of(frame) and (flag != "--churn" or frame == "edm")
            remedy = f"use --sampler {home}" if helps else "leave it out"
            raise ConfigError(f"{flag} has no effect with --sampler {name}; {remedy}")


def _variance(request: Request, models: tuple[Model, ...]) -> str:
    """Choose the ancestral sampler's variance."""
    unlearned = [model.name for model in models if not model.description.learns_variance]
    if request.variance is None and 0 < len(unlearned) < len(models):
        raise ConfigError(f"{unlearned[0]!r} learns no variance, other models do; choose one with --variance for all")
    if request.variance == "learned" and unlearned:
        raise ConfigError(
            f"model {unlearned[0]!r} does not learn its variance; use --variance fixed-small or fixed-large"
        )
    # guided-diffusion's default for networks without a learned variance is the large fixed one.
    asked = {model.description.variance or "fixed-large": model.name for model in models}
    if request.variance is None and unlearned and len(asked) > 1:
        what = " and ".join(f"{variance} of {name!r}" for variance, name in asked.items())
        raise ConfigError(f"models are for different variances, {what}; choose one with --variance for all")
    return request.variance or (next(iter(asked)) if unlearned else "learned")


def _without_images(request: Request) -> tuple[Request, tuple[str, ...]]:
    """Return what is left of a request where there are no real images, and a name of each thing that was left out.

    Raises:
        ConfigError: nothing would be left, as scores and fits need the images.
    """
    advice = "give the images' folder with --data-dir"
    if request.tune is not None and not request.tune.values and request.tune.constant in OF_IMAGES:
        raise ConfigError(f"--tune {request.tune.text} needs the images; {advice}")
    if request.reference is None and request.features not in (*WITH_STATISTICS, "none"):
        raise ConfigError(
            f"--features {request.features} needs the images, of which the package keeps statistics of"
            f" {', '.join(WITH_STATISTICS)} alone; {advice}, or a file of statistics with --reference"
        )
    measure = tuple(name for name in request.measure if name not in _NEED_IMAGES)
    left_out = [_FORCED] if "steps" in measure else []
    left_out += [text for name, text in _NEED_IMAGES.items() if name in request.measure]
    return replace(request, measure=measure), (*left_out, _NEIGHBOURS, _SLOPES)
