"""What the user asked for, and the same resolved against the known models and this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.suite.config import ConfigError, SamplerConfig
from bench.suite.plan import IN_CELLS
from bench.suite.registry import Model, Registry

__all__ = ["Request", "device_of", "resolve_models", "resolve_sampler"]


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


def resolve_models(request: Request, registry: Registry) -> tuple[Model, ...]:
    """Look every model up, with the user's scaling constants.

    Raises:
        ConfigError: an unknown model, or one that lacks constants.
    """
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


def resolve_sampler(request: Request, models: tuple[Model, ...]) -> SamplerConfig:
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
