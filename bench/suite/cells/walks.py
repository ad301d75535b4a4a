"""The walks of a cell: free-running, teacher-forced and paired ones, observed by probes, and what they stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data import Dataset, quantize, to_unit
from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.samplers import Draws, paired, prior, teacher_forced, walk
from bench.diffusion.types import Denoiser, Probe, Step
from bench.measure.instruments.probes import ErrorProbe, FiniteWatch, Selected, WalkProbe
from bench.runtime.errors import UserError
from bench.suite.cells.reference import Reference
from bench.suite.plan import Cell, Unit
from bench.suite.registry.model import Model

Arrays = dict[str, NDArray[Any]]


class RunError(UserError):
    """A computation went wrong in a way the user must know of; the message names model, steps and seed."""


@dataclass(frozen=True)
class WalkContext:
    """What a walk needs besides its own settings.

    Attributes:
        denoiser: returns a model's network on ``device``, without the model's corrections.
        reference: statistics of the data, and the data themselves.
        device: where networks compute.
        batch: internal batch size.
        progress: called with the number of network calls just made (a call is one image at one level).
        render: makes of finished states [B, C, H, W] what is stored and scored: uint8 images, or float32 latents.
    """

    denoiser: Callable[[Model], Denoiser]
    reference: Reference
    device: torch.device
    batch: int
    progress: Callable[[int], None]
    render: Callable[[Tensor, str], Tensor] = quantize

    @property
    def data(self) -> Dataset:
        """Return the dataset that real images come from."""
        return self.reference.data

    def batches(self, start: int, stop: int, total: int) -> Iterator[tuple[Tensor, int]]:
        """Yield the batches of samples ``start`` to ``stop - 1`` as (sample numbers int64 [B], samples that count).

        Every batch has ``min(batch, total)`` rows. The last one is padded with the numbers that follow: a network gives
        a sample the same result to the last bit only in a batch of the same size.
        """
        size = min(self.batch, total)
        for first in range(start, stop, size):
            yield torch.arange(first, first + size, device=self.device), min(size, stop - first)

    def images(self, part: str, rows: Tensor) -> Tensor:
        """Return real images, [B, C, H, W] in [-1, 1] on the device; rows beyond the part (padding) wrap around."""
        return to_unit(self.data.pick(part, rows)).to(self.device)

    def labels(self, model: Model, part: str, rows: Tensor) -> Tensor | None:
        """Return the class labels of real images, int64 [B] on the device, None for an unconditional model."""
        if not model.description.classes:
            return None
        return self.data.pick_labels(part, rows).to(self.device)


def sample_labels(cell: Cell, noise: Noise, samples: Tensor) -> Tensor | None:
    """Return a class label for each sample, int64 [B], None for an unconditional model.

    A random label comes from the sample's own stream, so models of one seed share it; balanced ones take turns.
    """
    labels = cell.model.labels
    if not labels or cell.config.class_labels == "balanced":
        return samples % labels if labels else None
    return noise.integers(samples, Purpose.LABEL, 0, labels)


class _RealImages(NamedTuple):
    """Real images x0 [B, C, H, W], the numbers [B] of their noise, and their labels [B]."""

    x0: Tensor
    numbers: Tensor
    cond: Tensor | None


class CellWalks:
    """The walks of a cell, unit by unit.

    Args:
        cell: the configuration.
        context: the network, real images, device and batch size.
    """

    def __init__(self, cell: Cell, context: WalkContext) -> None:
        self.cell, self.context = cell, context
        self.denoiser, self.device = context.denoiser(cell.model), context.device
        self.levels, self.solver, self.correction = cell.levels(), cell.solver(), cell.correction()
        self.noise, self.instruments = Noise(cell.seed), cell.instruments
        self.finite = FiniteWatch()

    def compute(self, unit: Unit) -> Arrays:
        """Return the arrays of a unit's shard.

        Raises:
            RunError: a prediction is not finite.
        """
        arms = {"free": self._free, "forced": self._forced, "errors": self._errors, "paired": self._paired}
        arrays = arms[unit.arm](unit)
        self._require_finite()
        return arrays

    def _require_finite(self) -> None:
        """Wait for the device, and refuse a walk in which a prediction was NaN or infinite."""
        first, cell = self.finite.first(), self.cell
        if first is not None:
            raise RunError(
                f"model {cell.model.name!r} at {cell.steps} steps, seed {cell.seed}, gave values that are not"
                f" finite, first at step i = {first[0]} (t = {first[1]:g}); check the weights, or the constants of its"
                " remedies"
            )

    def _free(self, unit: Unit) -> Arrays:
        """Sample from noise: x_T = sigma_T * noise."""
        probes = self._probes(paired=False)
        images, nfe = [], 0
        for samples, valid in self.context.batches(unit.start, unit.stop, self.cell.samples):
            draws = Draws(self.noise, samples)
            x = prior(self.levels[0], draws, self.context.data.shape)
            steps = self._walk(x, draws, sample_labels(self.cell, self.noise, samples))
            x0, nfe = self._observe(steps, [Selected(probe, slice(0, valid)) for probe in probes], valid)
            images.append(self._pixels(x0[:valid]))
        self._require_finite()  # waits for the device, and so for the images that are still being copied
        return {"samples": torch.cat(images).numpy(), "nfe": np.array(nfe), **_records("free", probes)}

    def _forced(self, unit: Unit) -> Arrays:
        """Take single steps from noised real images: training images first, then held-out ones."""
        plan = self.instruments
        # The network's own variance on training images, for a floor of its own.
        arms = {part: self._probes(paired=True, fraction=part == "train") for part in ("train", "heldout")}
        errors = {part: ErrorProbe(plan.error_indices) for part in arms}
        for rows, valid in self.context.batches(unit.start, unit.stop, unit.stop):
            boundary = min(max(plan.train - int(rows[0]), 0), valid)  # training images in this batch
            probes: list[Probe] = []
            if boundary:
                probes += [Selected(probe, slice(0, boundary)) for probe in arms["train"]]
                count = min(boundary, max(plan.error_train - int(rows[0]), 0))
                probes += [Selected(errors["train"], slice(0, count))] if count else []
            if boundary < valid:
                probes += [Selected(probe, slice(boundary, valid)) for probe in arms["heldout"]]
                first = int(rows[0]) + boundary - plan.train
                count = min(valid - boundary, max(plan.error_heldout - first, 0))
                probes += [Selected(errors["heldout"], slice(boundary, boundary + count))] if count else []
            self._force(self._forced_images(rows), plan.indices, probes, valid)
        records = _records("forced-train", arms["train"]) | _records("forced-heldout", arms["heldout"])
        states = {f"errors/{part}": probe.state() for part, probe in errors.items()}
        return records | {name: state for name, state in states.items() if state is not None}

    def _forced_images(self, rows: Tensor) -> _RealImages:
        """Return training images, then held-out ones: training image k draws as 2k, held-out image k as 2k + 1."""
        plan, model, context = self.instruments, self.cell.model, self.context
        rows = rows.clamp(max=plan.train + plan.heldout - 1)  # padding repeats the last image
        held = rows >= plan.train
        index = torch.where(held, rows - plan.train, rows)
        x0, cond = context.images("train", index), context.labels(model, "train", index)
        if held.any():
            x0[held] = context.images("heldout", index[held])
            labels = context.labels(model, "heldout", index[held])
            if cond is not None and labels is not None:
                cond[held] = labels
        return _RealImages(x0, 2 * index + held.long(), cond)

    def _errors(self, unit: Unit) -> Arrays:
        """Visit the images that teacher forcing left out, at the error levels alone."""
        plan, context = self.instruments, self.context
        more = {"train": range(plan.train, plan.error_train), "heldout": range(plan.heldout, plan.error_heldout)}
        arrays: Arrays = {}
        for offset, (part, numbers) in enumerate(more.items()):
            if not numbers:
                continue
            probe = ErrorProbe(plan.error_indices)
            for rows in torch.arange(numbers.start, numbers.stop, device=self.device).split(context.batch):
                x0, cond = context.images(part, rows), context.labels(self.cell.model, part, rows)
                self._force(_RealImages(x0, 2 * rows + offset, cond), plan.error_indices, [probe], len(rows))
            state = probe.state()
            assert state is not None  # the range is not empty
            arrays[f"errors/{part}"] = state
        return arrays

    def _paired(self, unit: Unit) -> Arrays:
        """Walk from real images noised to the top level: the published multi-step measurement."""
        probes = self._probes(paired=True)
        for rows, valid in self.context.batches(unit.start, unit.stop, unit.stop):
            x0 = self.context.images("train", rows)
            draws = Draws(self.noise, rows)
            x = paired(self.levels[0], draws, x0)
            steps = self._walk(x, draws, self.context.labels(self.cell.model, "train", rows), x0)
            self._observe(steps, [Selected(probe, slice(0, valid)) for probe in probes], valid)
        return _records("paired", probes)

    def _walk(self, x: Tensor, draws: Draws, cond: Tensor | None, x0: Tensor | None = None) -> Iterator[Step]:
        """Walk the cell's levels from x [B, C, H, W], paired with x0 where it is given."""
        clip, correction = self.cell.config.clip, self.correction
        return walk(
            self.denoiser, self.levels, x, self.solver, draws, clip=clip, correction=correction, x0=x0, cond=cond
        )

    def _force(self, batch: _RealImages, indices: Sequence[int], probes: Sequence[Probe], images: int) -> None:
        """Take a step from x_t ~ q(x_t | x_0) at each of the solver indices."""
        draws, clip = Draws(self.noise, batch.numbers), self.cell.config.clip
        steps = teacher_forced(
            self.denoiser, self.levels, batch.x0, self.solver, draws,
            clip=clip, correction=self.correction, cond=batch.cond, indices=set(indices),
        )  # fmt: skip
        self._observe(steps, probes, images)

    def _observe(self, steps: Iterator[Step], probes: Sequence[Probe], images: int) -> tuple[Tensor, int]:
        """Run a walk, and show each step to the probes; return the last state and the network calls an image.

        The first ``images`` rows of a batch count; the others are padding.
        """
        last, calls = torch.empty(0), 0
        for step in steps:
            for probe in probes:
                probe.update(step)
            for values in (step.prediction.eps, step.prediction.variance_fraction, step.prediction.guidance):
                if values is not None:
                    self.finite.update(step, values[:images])
            last, calls = step.x_next, calls + step.prediction.calls
            self.context.progress(images * step.prediction.calls)
        if calls:
            self.finite.update(step, last[:images])
        return last, calls

    def _pixels(self, x0: Tensor) -> Tensor:
        """Return images uint8 (latents float32) [B, H, W, C] on the host; from CUDA the copy is still under way."""
        pixels = self.context.render(x0, self.cell.config.quantize).movedim(1, -1).contiguous()
        if pixels.device.type != "cuda":
            return pixels.cpu()
        host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
        return host.copy_(pixels, non_blocking=True)

    def _probes(self, paired: bool, fraction: bool = False) -> list[WalkProbe]:
        if not self.instruments.indices:
            return []
        centre = self.context.reference.centre.float().to(self.device)
        cell = self.cell
        return [
            WalkProbe(
                cell.steps, self.instruments.indices, centre, paired, self.solver.stages,
                guided=cell.model.is_guided(cell.config.sampler, cell.steps), clip=cell.config.clip,
                fraction=fraction and cell.config.variance == "learned",
            )
        ]  # fmt: skip


def _records(arm: str, probes: Sequence[WalkProbe]) -> Arrays:
    return {f"{arm}/{name}": value for probe in probes for name, value in probe.state().items()}
