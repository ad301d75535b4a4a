"""``--tune NAME=fit``: constants that have a rule of their own, in place of a grid of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.data import Dataset, to_unit
from bench.diffusion.corrections.variance_matching import x0_std
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, teacher_forced, walk
from bench.measure.features.extractors import Extractor
from bench.suite.cells.walks import WalkContext, sample_labels
from bench.suite.plan import Cell
from bench.suite.settings import RESERVED_SEEDS, ConfigError
from bench.suite.tuning.epsilon_scaling import Sampled
from bench.suite.tuning.epsilon_scaling import fit as fit_divisor

_LEVELS = 25  # of a reference along the walk
_IMAGES = 512
_BLOCK = 8192  # images in float64 at a time


@dataclass(frozen=True)
class FittedConstant:
    """A fitted constant, and diagnostics of the fit: images, network calls, slopes and errors."""

    value: Any
    diagnostics: Mapping[str, float]


def fit(constant: str, cell: Cell, context: WalkContext) -> FittedConstant:
    """Return a constant by its rule.

    Args:
        constant: its name; see :data:`RULES`.
        cell: model, sampler and step count that it is fitted for.
        context: the network, data and features.

    Raises:
        ConfigError: the constant has no rule.
    """
    if constant not in RULES:
        rules = ", ".join(RULES)
        raise ConfigError(
            f"--tune: no rule is known for {constant!r}, only for {rules}; give {constant}=LOW:HIGH:COUNT"
        )
    return RULES[constant](cell, context)


def _variance_within(data: Dataset) -> float:
    """Return the variance of the pixels within an image in [-1, 1], averaged over the training images."""
    blocks = torch.arange(data.count("train")).split(_BLOCK)
    sums = [to_unit(data.pick("train", rows)).double().flatten(1).var(1).sum().item() for rows in blocks]
    return float(sum(sums)) / data.count("train")


def _data_variance(cell: Cell, context: WalkContext, power: float = 1.0) -> FittedConstant:
    """Return a power of the mean variance within an image."""
    value = float(f"{_variance_within(context.data) ** power:.6g}")
    return FittedConstant(value, {"images": context.data.count("train")})


def _spread_reference(cell: Cell, context: WalkContext) -> FittedConstant:
    """Return [t, root mean square of x0_hat's spread within an image] on real noised training images.

    x0_hat is clamped where the walk clamps it: near pure noise that of an eps network is far too wide.
    """
    model = replace(cell.model, remedies=())
    cell = replace(cell, model=model, steps=min(_LEVELS, model.description.T), measure=())
    sums = torch.zeros(cell.steps, dtype=torch.float64)
    count = min(_IMAGES, context.data.count("train"))
    denoiser = context.denoiser(model)
    for rows in torch.arange(count).split(context.batch):
        x0, cond = context.images("train", rows), context.labels(model, "train", rows)
        draws = Draws(Noise(RESERVED_SEEDS), rows.to(context.device))
        steps = teacher_forced(denoiser, cell.levels(), x0, cell.solver(), draws, clip=cell.config.clip, cond=cond)
        first_calls = (step for step in steps if step.stage == 0)
        squares = [x0_std(replace(step.prediction, x0=step.x0_used)).square().sum() for step in first_calls]
        sums += torch.stack(squares).cpu().double()
        context.progress(len(rows) * cell.steps)
    levels = zip(cell.levels()[:-1], (sums / count).sqrt().tolist(), strict=True)
    pairs = sorted([float(f"{max(level.t, 0.0):.6g}"), float(f"{std:.5g}")] for level, std in levels)
    return FittedConstant(pairs, {"images": count, "network_calls": count * cell.steps})


def _divisor(cell: Cell, context: WalkContext) -> FittedConstant:
    """Return epsilon scaling's b, with the model's other remedies in place.

    Raises:
        ConfigError: the model's divisor has a slope, which the rule cannot fit.
    """
    reference = context.reference
    scalings = [remedy for remedy in cell.model.remedies if "b" in remedy.defaults]
    if any(remedy.at(cell.config.sampler, cell.steps).get("k") for remedy in scalings):
        raise ConfigError(
            f"--tune b=fit is for a uniform divisor, and that of {cell.model.name!r} has a slope; use -es"
        )
    assert reference.extractor is not None  # the command line refuses --tune without features
    samples = _sampled(cell, context, reference.extractor)
    moments = reference.features().moments
    spread = float(reference.statistics.variance.mean()) ** 0.5
    fitted = fit_divisor(samples, moments.mean, moments.cov, spread)
    whole = replace(cell, samples=fitted.images, measure=())
    diagnostics = {
        "vertex": fitted.vertex,
        "slope": fitted.slope,
        "slope_error": fitted.error,
        "gain": fitted.gain,
        "unit": fitted.unit,
        "images": fitted.images,
        "network_calls": whole.cost()[0],
    }
    return FittedConstant(fitted.b, diagnostics)


def _sampled(cell: Cell, context: WalkContext, extractor: Extractor) -> Sampled:
    """Return what draws samples of a cell on reserved noise, under any divisor b."""
    denoiser, noise, levels, solver = context.denoiser(cell.model), Noise(RESERVED_SEEDS), cell.levels(), cell.solver()

    def sampled(b: float, start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        correction = replace(cell, model=cell.model.rescaled(b, None)).correction()
        states = []
        for rows in torch.arange(start, stop, device=context.device).split(context.batch):
            draws, cond = Draws(noise, rows), sample_labels(cell, noise, rows)
            x = prior(levels[0], draws, context.data.shape)
            clip = cell.config.clip
            for step in walk(denoiser, levels, x, solver, draws, clip=clip, correction=correction, cond=cond):
                x = step.x_next
                context.progress(len(rows))
            states.append(x)
        x = torch.cat(states)
        return x.float().cpu().numpy(), extractor.extract(context.render(x, cell.config.quantize).cpu())[0]

    return sampled


RULES: Mapping[str, Callable[[Cell, WalkContext], FittedConstant]] = {
    "b": _divisor,
    "data_variance": _data_variance,
    "std": partial(_data_variance, power=0.5),
    "reference": _spread_reference,
}
