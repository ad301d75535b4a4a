"""What the user asked for, and the same resolved against the known models and this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.models.acceleration import precision_refusal
from bench.runtime.devices import find_device
from bench.suite.plan import IN_CELLS
from bench.suite.registry.model import Model
from bench.suite.registry.registry import Registry
from bench.suite.registry.remedies import KINDS
from bench.suite.registry.tune import Tune
from bench.suite.settings import EDM_SAMPLERS, ConfigError, SamplerConfig
from bench.suite.shares import Share

__all__ = ["Request", "device_of", "refuse_precision", "resolve_models", "resolve_sampler"]


@dataclass(frozen=True)
class Request:
    """What the user asked for, parsed but not yet checked against models and data."""

    models: tuple[tuple[str, Path | None], ...]
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    samples: int
    sampler: SamplerConfig
    sampler_name: str | None
    variance: str | None
    clip: bool | None
    batch: int
    device: str
    measure: tuple[str, ...]
    features: str
    inception_weights: Path | None
    classifier: Path | None
    classifier_scale: float | None
    eps_scale: float | None
    eps_slope: float | None
    reference: Path | None
    data_dir: Path | None
    preprocessing: Mapping[str, Any]
    out: Path | None
    tune: Tune | None = None
    share: Share | None = None
    progress: bool = False
    tensorboard: Path | None = None
    arguments: tuple[str, ...] = ()
    compile: str = "auto"  # auto, on or off

    def in_cells(self) -> tuple[str, ...]:
        """Return the measurements made while cells are sampled."""
        return tuple(name for name in IN_CELLS if name in self.measure)


def device_of(name: str) -> torch.device:
    """Return the device of ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: it is not there.
    """
    found = find_device(name)
    if found is None:
        raise ConfigError(f"--device {name} is not available here; use --device auto")
    # A rank has chosen its GPU, which must be named in full: in another thread plain "cuda" would be the first one.
    is_chosen = found.type == "cuda" and torch.cuda.is_initialized()
    return torch.device("cuda", torch.cuda.current_device()) if is_chosen else found


def refuse_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that the device does not have.

    Raises:
        ConfigError: saying what to use.
    """
    reason = precision_refusal(precision, device)
    if reason:
        raise ConfigError(f"--precision {reason}; use --precision {'bf16 or ' if precision == 'tf32' else ''}fp32")


def resolve_models(request: Request, registry: Registry) -> tuple[Model, ...]:
    """Look every model up, with the user's scaling constants and classifier.

    Raises:
        ConfigError: an unknown model, or one that does not go with the others.
    """
    models = tuple(registry.model(name, path) for name, path in request.models)
    if request.eps_scale is not None or request.eps_slope is not None:
        if not any("b" in KINDS[remedy.kind].defaults for model in models for remedy in model.remedies):
            raise ConfigError("--eps-scale and --eps-slope change scaling models only; add one, e.g. adm-es")
        models = tuple(model.rescaled(request.eps_scale, request.eps_slope) for model in models)
    if request.tune is not None:
        models = tuple(request.tune.prepared(model) for model in models)
    if request.classifier is None:
        return models
    classifier, scale = request.classifier, request.classifier_scale
    return tuple(model.guided(registry.guidance(classifier, scale, model)) for model in models)


def resolve_sampler(request: Request, models: tuple[Model, ...]) -> SamplerConfig:
    """Choose sampler, variance and clipping where the user left them open, and refuse flags without effect.

    Raises:
        ConfigError: naming the flag or model that does not fit.
    """
    edm = [model.name for model in models if model.description.is_edm]
    name = request.sampler_name or ("heun" if edm else "ddpm")
    others = [model.name for model in models if model.name not in edm]
    if edm and others:
        raise ConfigError(f"{edm[0]!r} walks on EDM levels and {others[0]!r} does not; run them apart")
    if name in EDM_SAMPLERS and others:
        raise ConfigError(f"--sampler {name} is for EDM models, not for {others[0]!r}; use ddpm or ddim")
    if name not in EDM_SAMPLERS and edm:
        raise ConfigError(f"model {edm[0]!r} walks on EDM levels; use --sampler heun or euler")
    sampler = replace(
        request.sampler, sampler=name, clip=name not in EDM_SAMPLERS if request.clip is None else request.clip
    )
    _refuse_idle_flags(request, sampler)
    for model in models:
        model.refuse(name)
    return replace(sampler, variance=_variance(request, models) if name == "ddpm" else None)


def _refuse_idle_flags(request: Request, sampler: SamplerConfig) -> None:
    """Refuse flags that would have no effect under a sampler."""
    name = sampler.sampler
    idle = {
        "--variance": name != "ddpm" and request.variance is not None,
        "--eta": name != "ddim" and sampler.eta != 0,
        "--churn": name not in EDM_SAMPLERS and sampler.churn != 0,
        "--spacing": name in EDM_SAMPLERS and sampler.spacing != "plain",
        "--classifier": name in EDM_SAMPLERS and request.classifier is not None,
    }
    homes = {"--variance": "ddpm", "--eta": "ddim", "--churn": "heun", "--spacing": "ddpm", "--classifier": "ddpm"}
    for flag, is_idle in idle.items():
        if is_idle:
            # Another sampler is a remedy only where the run's models can take it.
            same_family = (homes[flag] in EDM_SAMPLERS) == (name in EDM_SAMPLERS)
            remedy = f"use --sampler {homes[flag]}" if same_family else "leave it out"
            raise ConfigError(f"{flag} has no effect with --sampler {name}; {remedy}")


def _variance(request: Request, models: tuple[Model, ...]) -> str:
    """Choose the ancestral sampler's variance."""
    unlearned = [model.name for model in models if not model.learns_variance]
    if request.variance is None and 0 < len(unlearned) < len(models):
        raise ConfigError(f"{unlearned[0]!r} learns no variance, other models do; choose one with --variance for all")
    if request.variance == "learned" and unlearned:
        raise ConfigError(
            f"model {unlearned[0]!r} does not learn its variance; use --variance fixed-small or fixed-large"
        )
    # guided-diffusion's default for networks without a learned variance is the large fixed one.
    return request.variance or ("fixed-large" if unlearned else "learned")
