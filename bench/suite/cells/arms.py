"""The arms of a cell: free-running, teacher-forced and paired walks, observed by probes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, paired, prior, teacher_forced, walk
from bench.diffusion.types import Probe, Step
from bench.measure.instruments.probes import ErrorProbe, FiniteWatch, Selected, WalkProbe
from bench.runtime.errors import UserError
from bench.suite.cells.workbench import Workbench, sample_labels
from bench.suite.plan import Cell, Instruments, Unit

Arrays = dict[str, NDArray[Any]]


class RunError(UserError):
    """A computation went wrong in a way the user must know of; the message names model, steps and seed."""


class _RealImages(NamedTuple):
    """Real images x0 [B, C, H, W], the numbers [B] of their noise, and their labels [B]."""

    x0: Tensor
    numbers: Tensor
    cond: Tensor | None


class Arms:
    """The walks of a cell, unit by unit.

    Args:
        cell: the configuration.
        workbench: the network, real images, device and batch size.
    """

    def __init__(self, cell: Cell, workbench: Workbench) -> None:
        self.cell, self.workbench = cell, workbench
        self.denoiser, self.device = workbench.denoiser(cell.model), workbench.device
        self.levels, self.solver, self.correction = cell.levels(), cell.solver(), cell.correction()
        self.noise, self.instruments = Noise(cell.seed), cell.instruments()
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
        for samples, valid in self.workbench.batches(unit.start, unit.stop, self.cell.samples):
            draws = Draws(self.noise, samples)
            x = prior(self.levels[0], draws, self.workbench.data.shape)
            steps = self._walk(x, draws, self.labels(samples))
            x0, nfe = self._observe(steps, [Selected(probe, slice(0, valid)) for probe in probes], valid)
            images.append(self._pixels(x0[:valid]))
        self._require_finite()  # waits for the device, and so for the images that are still being copied
        return {"samples": torch.cat(images).numpy(), "nfe": np.array(nfe), **_records("free", probes)}

    def _forced(self, unit: Unit) -> Arrays:
        """Take single steps from noised real images: training images first, then held-out ones."""
        plan = self._instruments()
        # The network's own variance on training images, for a floor of its own.
        arms = {part: self._probes(paired=True, fraction=part == "train") for part in ("train", "heldout")}
        errors = {part: ErrorProbe(plan.error_indices) for part in arms}
        for rows, valid in self.workbench.batches(unit.start, unit.stop, unit.stop):
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
        plan, model, workbench = self._instruments(), self.cell.model, self.workbench
        rows = rows.clamp(max=plan.train + plan.heldout - 1)  # padding repeats the last image
        held = rows >= plan.train
        index = torch.where(held, rows - plan.train, rows)
        x0, cond = workbench.images("train", index), workbench.labels(model, "train", index)
        if held.any():
            x0[held] = workbench.images("heldout", index[held])
            labels = workbench.labels(model, "heldout", index[held])
            if cond is not None and labels is not None:
                cond[held] = labels
        return _RealImages(x0, 2 * index + held.long(), cond)

    def _errors(self, unit: Unit) -> Arrays:
        """Visit the images that teacher forcing left out, at the error levels alone."""
        plan, workbench = self._instruments(), self.workbench
        more = {"train": range(plan.train, plan.error_train), "heldout": range(plan.heldout, plan.error_heldout)}
        arrays: Arrays = {}
        for offset, (part, numbers) in enumerate(more.items()):
            if not numbers:
                continue
            probe = ErrorProbe(plan.error_indices)
            for rows in torch.arange(numbers.start, numbers.stop, device=self.device).split(workbench.batch):
                x0, cond = workbench.images(part, rows), workbench.labels(self.cell.model, part, rows)
                self._force(_RealImages(x0, 2 * rows + offset, cond), plan.error_indices, [probe], len(rows))
            state = probe.state()
            assert state is not None  # the range is not empty
            arrays[f"errors/{part}"] = state
        return arrays

    def _paired(self, unit: Unit) -> Arrays:
        """Walk from real images noised to the top level: the published multi-step measurement."""
        probes = self._probes(paired=True)
        for rows, valid in self.workbench.batches(unit.start, unit.stop, unit.stop):
            x0 = self.workbench.images("train", rows)
            draws = Draws(self.noise, rows)
            x = paired(self.levels[0], draws, x0)
            steps = self._walk(x, draws, self.workbench.labels(self.cell.model, "train", rows), x0)
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
            self.workbench.progress(images * step.prediction.calls)
        if calls:
            self.finite.update(step, last[:images])
        return last, calls

    def labels(self, samples: Tensor) -> Tensor | None:
        """Return a class label for each sample, int64 [B], None for an unconditional model."""
        return sample_labels(self.cell, self.noise, samples)

    def _pixels(self, x0: Tensor) -> Tensor:
        """Return images uint8 (latents float32) [B, H, W, C] on the host; from CUDA the copy is still under way."""
        pixels = self.workbench.render(x0, self.cell.config.quantize).movedim(1, -1).contiguous()
        if pixels.device.type != "cuda":
            return pixels.cpu()
        host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
        return host.copy_(pixels, non_blocking=True)

    def _probes(self, paired: bool, fraction: bool = False) -> list[WalkProbe]:
        if self.instruments is None or not self.instruments.indices:
            return []
        centre = self.workbench.reference.centre.float().to(self.device)
        free = self.cell.model.classifier_free
        return [
            WalkProbe(
                self.cell.steps, self.instruments.indices, centre, paired, self.solver.stages,
                guided=free is not None and free.scale != 1, clip=self.cell.config.clip,
                fraction=fraction and self.cell.config.variance == "learned",
            )
        ]  # fmt: skip

    def _instruments(self) -> Instruments:
        assert self.instruments is not None  # units of the instruments exist only where something is measured
        return self.instruments


def _records(arm: str, probes: Sequence[WalkProbe]) -> Arrays:
    return {f"{arm}/{name}": value for probe in probes for name, value in probe.state().items()}
