"""Walks of one model under uniform divisors of eps, remembered on disk, and what each rule asked of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


@dataclass(frozen=True)
class Walked:
    """Images of one divisor: final states [N, C, H, W], their features [N, d], raw eps norms of first calls [N, steps].

    Columns of ``norms`` are in the order of the walk, the noisiest first.
    """

    final: Rows
    features: Rows
    norms: Rows

    def part(self, start: int, stop: int) -> Walked:
        """Return images [start, stop)."""
        return Walked(self.final[start:stop], self.features[start:stop], self.norms[start:stop])

    def joined(self, more: Walked) -> Walked:
        """Return these images and more."""
        pairs = ((self.final, more.final), (self.features, more.features), (self.norms, more.norms))
        return Walked(*(np.concatenate(pair) for pair in pairs))


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
        denoiser.network = _Compiled(denoiser.network)
    return found.description, denoiser


class _Compiled:
    """A compiled network that sees batches of one size, the last images of a smaller one being repeated."""

    def __init__(self, network: Any) -> None:
        self.network = torch.compile(lambda x, t: network(x, t, return_dict=False)[0], dynamic=False)

    def __call__(self, x: Tensor, t: Tensor, _: Tensor | None = None) -> Any:
        rows = torch.arange(_BATCH).clamp(max=len(x) - 1)
        return SimpleNamespace(sample=self.network(x[rows], t[rows])[: len(x)])


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
        if have < stop:
            parts = [self._walk(b, k, min(k + _BATCH, stop)) for k in range(have, stop, _BATCH)]
            for part in parts:
                known = part if known is None else known.joined(part)
            self._remember(b, known)
        assert known is not None
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

    def _file(self, b: float) -> Path | None:
        return None if self.folder is None else self.folder / f"{self.setting.name}-seed{self.seed}-b{b:.5f}.npz"

    def _remembered(self, b: float) -> Walked | None:
        file = self._file(b)
        if file is None or not file.exists():
            return None
        with np.load(file) as kept:
            return Walked(kept["final"], kept["features"], kept["norms"])

    def _remember(self, b: float, walked: Walked | None) -> None:
        file = self._file(b)
        if file is not None and walked is not None:
            beside = file.with_suffix(".part.npz")
            np.savez(beside, final=walked.final, features=walked.features, norms=walked.norms)
            beside.replace(file)

    def forced(self, images: int, nudge: float = 0.0) -> Rows:
        """Return raw eps norms [images, steps] on real noised images, the network told the walk's levels.

        Args:
            images: how many training images, the first ones.
            nudge: added to log(sigma / alpha) of the states, not of what the network is told.
        """
        x0 = to_unit(self.yardstick.train[:images])
        draws = Draws(Noise(self.seed), torch.arange(images))
        denoiser = self.denoiser if not nudge else self._told_otherwise(nudge)
        steps = teacher_forced(denoiser, self._nudged(nudge), x0, Ancestral("fixed-small"), draws)
        return torch.stack([s.prediction.eps.flatten(1).norm(dim=1) for s in steps], 1).numpy()

    def _nudged(self, nudge: float) -> tuple[Level, ...]:
        return (*(_moved(level, nudge) for level in self.path[:-1]), self.path[-1])

    def _told_otherwise(self, nudge: float) -> Denoiser:
        told = dict(zip(self._nudged(nudge), self.path, strict=True))

        def denoiser(x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
            return self.denoiser(x, told[level], cond)

        return denoiser


def _moved(level: Level, nudge: float) -> Level:
    """Return the level whose log(sigma / alpha) is larger by nudge, with the same alpha if that is 1."""
    ratio = level.sigma / level.alpha * math.exp(nudge)
    alpha = 1.0 if level.alpha == 1.0 else 1 / math.sqrt(1 + ratio**2)
    return replace(level, alpha=alpha, sigma=ratio * alpha)
