"""``--tune NAME=fit``: constants that are measured, each by the rule of its own, instead of tried one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data import quantize, to_unit
from bench.diffusion.corrections.variance_matching import x0_std
from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.samplers import Draws, prior, teacher_forced, walk
from bench.diffusion.types import Denoiser
from bench.measure.features.extractors import Extractor
from bench.suite.cells.reference import Reference
from bench.suite.plan import Cell
from bench.suite.registry.remedies import KINDS, Remedy
from bench.suite.settings import RESERVED_SEEDS, ConfigError
from bench.suite.tuning.divisor import fit as fit_divisor

_LEVELS = 25  # of a reference along the walk
_IMAGES = 512
_BLOCK = 8192  # images in float64 at a time


@dataclass(frozen=True)
class Subject:
    """What a constant is fitted for.

    Attributes:
        cell: model, sampler and step count; the model's remedies are left out.
        denoiser: the model's network.
        reference: data and features.
        device: where to walk.
        batch: internal batch size.
        progress: called with the network calls just made.
    """

    cell: Cell
    denoiser: Denoiser
    reference: Reference
    device: torch.device
    batch: int
    progress: Callable[[int], None]


@dataclass(frozen=True)
class Found:
    """A fitted constant, and what the fit says of itself: images and network calls it took, slopes and errors."""

    value: Any
    about: Mapping[str, float]


def fit(constant: str, subject: Subject) -> Found:
    """Return a constant by its rule.

    Raises:
        ConfigError: there is none.
    """
    if constant not in FITTED:
        known = ", ".join(FITTED)
        raise ConfigError(
            f"--tune: no rule is known for {constant!r}, only for {known}; give {constant}=LOW:HIGH:COUNT"
        )
    return FITTED[constant](subject)


def _spread(subject: Subject) -> float:
    """Return the variance of the pixels within an image, over the training images, block by block."""
    data = subject.reference.data
    blocks = torch.arange(data.count("train")).split(_BLOCK)
    sums = [to_unit(data.pick("train", rows)).double().flatten(1).var(1).sum().item() for rows in blocks]
    return float(sum(sums)) / data.count("train")


def _data_variance(subject: Subject) -> Found:
    return Found(float(f"{_spread(subject):.6g}"), {"images": subject.reference.data.count("train")})


def _data_std(subject: Subject) -> Found:
    return Found(float(f"{_spread(subject) ** 0.5:.6g}"), {"images": subject.reference.data.count("train")})


def _spread_reference(subject: Subject) -> Found:
    """Return [t, root mean square of x0_hat's spread within an image] on real noised training images.

    x0_hat is clamped where the walk clamps it: near pure noise that of an eps network is far too wide.
    """
    model = replace(subject.cell.model, remedies=())
    cell = replace(subject.cell, model=model, steps=min(_LEVELS, model.description.T), measure=())
    data = subject.reference.data
    sums = torch.zeros(cell.steps, dtype=torch.float64)
    count = min(_IMAGES, data.count("train"))
    for rows in torch.arange(count).split(subject.batch):
        x0 = to_unit(data.pick("train", rows)).to(subject.device)
        draws = Draws(Noise(RESERVED_SEEDS), rows.to(subject.device))
        cond = data.pick_labels("train", rows).to(subject.device) if model.description.classes else None
        steps = teacher_forced(
            subject.denoiser, cell.levels(), x0, cell.solver(), draws, clip=cell.config.clip, cond=cond
        )
        found = [x0_std(replace(step.prediction, x0=step.x0_used)).square().sum() for step in steps if step.stage == 0]
        sums += torch.stack(found).double().cpu()
        subject.progress(len(rows) * cell.steps)
    levels = zip(cell.levels()[:-1], (sums / count).sqrt().tolist(), strict=True)
    pairs = sorted([float(f"{max(level.t, 0.0):.6g}"), float(f"{std:.5g}")] for level, std in levels)
    return Found(pairs, {"images": count, "network_calls": count * cell.steps})


def _divisor(subject: Subject) -> Found:
    """Return epsilon scaling's b, other remedies of the model acting too.

    Raises:
        ConfigError: the model's divisor has a slope, which the rule knows nothing of.
    """
    reference, extractor, cell = subject.reference, subject.reference.extractor, subject.cell
    if any(remedy.at(cell.config.sampler, cell.steps).get("k") for remedy in cell.model.remedies if _scales(remedy)):
        raise ConfigError(
            f"--tune b=fit is for a uniform divisor, and that of {cell.model.name!r} has a slope; use -es"
        )
    assert extractor is not None  # the command line refuses --tune without features
    drawn = _Drawn(subject, extractor)
    moments = reference.features().moments
    spread = float(reference.statistics.variance.mean()) ** 0.5
    found = fit_divisor(drawn, moments.mean, moments.cov, spread)
    whole = replace(cell, samples=found.images, measure=())
    about = {
        "vertex": found.vertex,
        "slope": found.slope,
        "slope_error": found.error,
        "gain": found.gain,
        "unit": found.unit,
    }
    return Found(found.b, {**about, "images": found.images, "network_calls": whole.cost()[0]})


def _scales(remedy: Remedy) -> bool:
    return "b" in KINDS[remedy.kind].defaults


class _Drawn:
    """Samples of a subject on reserved noise, under any b."""

    def __init__(self, subject: Subject, extractor: Extractor) -> None:
        self.subject, self.extractor, self.noise = subject, extractor, Noise(RESERVED_SEEDS)

    def __call__(self, b: float, start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return final states [n, C, H, W] and features [n, d] of images start..stop-1."""
        subject = self.subject
        cell = replace(subject.cell, model=subject.cell.model.rescaled(b, None))
        numbers = torch.arange(start, stop, device=subject.device)
        x = torch.cat([self._walk(cell, rows) for rows in numbers.split(subject.batch)])
        return x.float().cpu().numpy(), self.extractor.extract(quantize(x, cell.config.quantize).cpu())[0]

    def _walk(self, cell: Cell, rows: Tensor) -> Tensor:
        subject, path, classes = self.subject, cell.levels(), cell.model.description.classes
        draws = Draws(self.noise, rows)
        x = prior(path[0], draws, subject.reference.data.shape)
        cond = self.noise.integers(rows, Purpose.LABEL, 0, classes) if classes else None
        for step in walk(
            subject.denoiser, path, x, cell.solver(), draws,
            clip=cell.config.clip, correction=cell.correction(), cond=cond,
        ):  # fmt: skip
            x = step.x_next
            subject.progress(len(rows))
        return x


FITTED: Mapping[str, Callable[[Subject], Found]] = {
    "b": _divisor,
    "data_variance": _data_variance,
    "std": _data_std,
    "reference": _spread_reference,
}
