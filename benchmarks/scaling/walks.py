"""Walks of one model under uniform divisors of eps, remembered on disk, and what each rule asked of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data import Dataset, load, quantize, to_unit
from bench.diffusion.corrections import EpsilonScaling
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, teacher_forced, walk
from bench.diffusion.schedules import edm_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, Euler, Heun, Solver
from bench.diffusion.types import Denoiser, Level, Prediction
from bench.files.writing import write_atomic
from bench.measure.features.extractors import Extractor, open_extractor
from bench.measure.quality.frechet import feature_moments, frechet_distance
from bench.models.checkpoints.formats import denoiser_of, open_network
from bench.models.denoisers.parameterization import NetworkDenoiser
from bench.models.interface import Description
from bench.suite.registry.registry import load_registry
from bench.suite.settings import SAMPLER_FRAMES

Rows = NDArray[np.float32]
_BATCH = 256
NUDGE = math.log(1.1)  # of log(sigma / alpha), where the response of eps to the level is measured


class Walked(NamedTuple):
    """Images of one divisor: final states [N, C, H, W], their features [N, d], raw eps norms of first calls [N, steps].

    Columns of ``norms`` are in the order of the walk, the noisiest first.
    """

    final: Rows
    features: Rows
    norms: Rows

    def part(self, start: int, stop: int) -> Walked:
        """Return images [start, stop)."""
        return Walked(*(rows[start:stop] for rows in self))


@dataclass(frozen=True)
class Setting:
    """What is walked: model, sampler, the ancestral sampler's variance mode (empty for others) and step count."""

    model: str
    sampler: str
    variance: str
    steps: int

    @property
    def name(self) -> str:
        """Return its name in files."""
        return f"{self.model}-{self.sampler}-{self.variance or 'none'}-{self.steps}"


class Yardstick:
    """The digits, their features, and the distance of features to them."""

    def __init__(self) -> None:
        self.data: Dataset = load("digits")
        extractor = open_extractor("digits")
        assert extractor is not None  # 'digits' is always there
        self.extractor: Extractor = extractor
        self.train = self.data.part("train")
        self.reference = feature_moments(self.extractor.extract(self.train)[0])

    def distance(self, features: Rows) -> float:
        """Return the Frechet distance of features [N, d] to the training images."""
        return frechet_distance(*feature_moments(features), *self.reference)


@cache
def opened(model: str, compiled: bool) -> tuple[Description, Denoiser]:
    """Open an embedded model without scaling of its own; compiled, it is faster and rounds otherwise."""
    found = load_registry((), "digits").model(model)
    denoiser = denoiser_of(open_network(found.weights, found.description), found.description, torch.device("cpu"))
    if compiled and isinstance(denoiser, NetworkDenoiser):
        denoiser.network = _compiled(denoiser.network)
    return found.description, denoiser


def _compiled(network: Any) -> Callable[..., Any]:
    """Return a compiled network that sees batches of one size, the last image of a smaller one being repeated."""
    compiled = torch.compile(lambda x, t: network(x, t, return_dict=False)[0], dynamic=False)

    def call(x: Tensor, t: Tensor, _: Tensor | None = None) -> Any:
        rows = torch.arange(_BATCH).clamp(max=len(x) - 1)
        return SimpleNamespace(sample=compiled(x[rows], t[rows])[: len(x)])

    return call


class Walks:
    """A model, sampler, variance mode and step count, walked under any divisor on the shared noise of a seed.

    Args:
        yardstick: data and features.
        setting: which.
        seed: of all noise.
        folder: where walks are remembered, None for memory alone.
        compiled: compile the network.
    """

    def __init__(
        self, yardstick: Yardstick, setting: Setting, seed: int, folder: Path | None = None, compiled: bool = False
    ) -> None:
        self.yardstick, self.setting, self.seed, self.folder = yardstick, setting, seed, folder
        self.about, self.denoiser = opened(setting.model, compiled)
        self._known: dict[float, Walked] = {}

    @cached_property
    def path(self) -> tuple[Level, ...]:
        """Return the walk's levels, noisiest first, ending in the clean one."""
        steps = self.setting.steps
        return edm_levels(steps) if self.about.is_edm else levels(self.about.schedule, self.about.T, str(steps))

    @cached_property
    def solver(self) -> Solver:
        """Return the update rule."""
        solvers: dict[str, Solver] = {"heun": Heun(), "euler": Euler(), "ddim": DDIM()}
        return solvers.get(self.setting.sampler) or Ancestral(self.setting.variance)

    @property
    def nfe(self) -> int:
        """Return the network calls of an image."""
        return self.setting.steps * self.solver.stages - (self.solver.stages - 1)

    def walked(self, b: float, stop: int) -> Walked:
        """Return images [0, stop) under divisor b, walking those that are not known yet."""
        known = self._known.get(b) or self._remembered(b)
        have = 0 if known is None else len(known.final)
        if known is None or have < stop:
            parts = [self._walk(b, k, min(k + _BATCH, stop)) for k in range(have, stop, _BATCH)]
            known = Walked(*map(np.concatenate, zip(*([] if known is None else [known]), *parts, strict=True)))
            if self.folder is not None:
                write_atomic(self._file(self.folder, b), partial(np.savez, **known._asdict()))
        self._known[b] = known
        return known.part(0, stop)

    def _walk(self, b: float, start: int, stop: int) -> Walked:
        draws = Draws(Noise(self.seed), torch.arange(start, stop))
        x, norms = prior(self.path[0], draws, self.yardstick.data.shape), []
        correction = EpsilonScaling(self.path, b)
        clip = "vp" in SAMPLER_FRAMES[self.setting.sampler]
        for step in walk(self.denoiser, self.path, x, self.solver, draws, clip=clip, correction=correction):
            if step.stage == 0:
                norms.append(step.prediction.eps.flatten(1).norm(dim=1).float())
            x = step.x_next
        features = self.yardstick.extractor.extract(quantize(x.float()))[0]
        return Walked(x.float().numpy(), features, torch.stack(norms, 1).numpy())

    def _file(self, folder: Path, b: float) -> Path:
        return folder / f"{self.setting.name}-seed{self.seed}-b{b:.5f}.npz"

    def _remembered(self, b: float) -> Walked | None:
        if self.folder is None or not self._file(self.folder, b).exists():
            return None
        with np.load(self._file(self.folder, b)) as kept:
            return Walked(**kept)

    def forced(self, images: int, nudge: float = 0.0) -> Rows:
        """Return raw eps norms [images, steps] on real noised images, the network told the walk's levels.

        Args:
            images: how many training images, the first ones.
            nudge: added to log(sigma / alpha) of the states, not of what the network is told.
        """
        x0 = to_unit(self.yardstick.train[:images])
        draws = Draws(Noise(self.seed), torch.arange(images))
        nudged = (*(_moved(level, nudge) for level in self.path[:-1]), self.path[-1])
        told = dict(zip(nudged, self.path if nudge else nudged, strict=True))

        def denoiser(x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
            return self.denoiser(x, told[level], cond)

        steps = teacher_forced(denoiser, nudged, x0, Ancestral("fixed-small"), draws)
        return torch.stack([s.prediction.eps.flatten(1).norm(dim=1) for s in steps], 1).numpy()


def _moved(level: Level, nudge: float) -> Level:
    """Return the level whose log(sigma / alpha) is larger by nudge, with the same alpha if that is 1."""
    ratio = level.sigma / level.alpha * math.exp(nudge)
    alpha = 1.0 if level.alpha == 1.0 else 1 / math.sqrt(1 + ratio**2)
    return replace(level, alpha=alpha, sigma=ratio * alpha)
