"""The arms of a cell: free running, teacher forced and paired walks under the eyes of the probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
from bench.suite.plan import Cell, Instruments, Unit

Arrays = dict[str, NDArray[Any]]


class RunError(UserError):
    """A computation went wrong in a way the user must know of; the message names model, steps and seed."""


class Arms:
    """The walks of a cell, unit by unit.

    Args:
        cell: whose.
        denoiser: the cell's model, on ``device``.
        data: real images for teacher forcing and paired walks.
        centre: their mean image, float64 [C, H, W].
        device: where to walk.
        batch: internal batch size; the last batch is padded to it.
        progress: called with the network calls just made.
    """

    def __init__(
        self,
        cell: Cell,
        denoiser: Denoiser,
        data: Dataset,
        centre: Tensor,
        device: torch.device,
        batch: int,
        progress: Callable[[int], None],
    ) -> None:
        self.cell, self.denoiser, self.data, self.centre = cell, denoiser, data, centre
        self.device, self.batch, self.progress = device, batch, progress
        self.levels, self.solver, self.correction = cell.levels(), cell.solver(), cell.correction()
        self.noise, self.look, self.shape = Noise(cell.seed), cell.instruments(), data.shape
        self.finite = FiniteWatch()

    def compute(self, unit: Unit) -> Arrays:
        """Return the arrays of a unit's shard.

        Raises:
            RunError: a prediction is not finite.
        """
        runs = {"free": self._free, "forced": self._forced, "errors": self._errors, "paired": self._paired}
        arrays = runs[unit.arm](unit)
        self._refuse_infinite()
        return arrays

    def _refuse_infinite(self) -> None:
        found, cell = self.finite.first(), self.cell
        if found is not None:
            raise RunError(
                f"model {cell.model.name!r} at {cell.steps} steps, seed {cell.seed}, gave values that are not"
                f" finite, first at step i = {found[0]} (t = {found[1]:g}); check the weights, or the constants of its"
                " remedies"
            )

    def _chunks(self, unit: Unit) -> Iterator[tuple[Tensor, int]]:
        """Yield (sample numbers padded to the internal batch, how many of them are real)."""
        size = min(self.batch, self.cell.samples) if unit.arm == "free" else min(self.batch, unit.stop)
        for start in range(unit.start, unit.stop, size):
            yield torch.arange(start, start + size, device=self.device), min(size, unit.stop - start)

    def _watch(self, steps: Iterator[Step], probes: Sequence[Probe], images: int) -> tuple[Tensor, int]:
        """Drive a walk, showing each step to the probes; return the last state and the network calls an image."""
        last, calls = torch.empty(0), 0
        for step in steps:
            for probe in probes:
                probe.update(step)
            for said in (step.prediction.eps, step.prediction.variance_fraction, step.prediction.guidance):
                if said is not None:
                    self.finite.update(step, said[:images])
            last, calls = step.x_next, calls + 1
            self.progress(images)
        if calls:
            self.finite.update(step, last[:images])
        return last, calls

    def labels(self, samples: Tensor) -> Tensor:
        """Draw a class label for each sample from its own stream, int64 [B], so that models of one seed share them."""
        classes = self.cell.model.description.classes
        assert classes is not None  # only conditional networks ask
        return self.noise.integers(samples, Purpose.LABEL, 0, classes)

    def _drawn_cond(self, samples: Tensor) -> Tensor | None:
        return self.labels(samples) if self.cell.model.description.classes else None

    def _data_cond(self, part: str, rows: Tensor) -> Tensor | None:
        """Return the labels of real images, as :meth:`_images` returns the images."""
        if not self.cell.model.description.classes:
            return None
        return self.data.pick_labels(part, rows).to(self.device)

    def _free(self, unit: Unit) -> Arrays:
        """Sample from noise, with instruments looking on."""
        probes = self._probes(paired=False)
        parts, nfe = [], 0
        for samples, valid in self._chunks(unit):
            draws = Draws(self.noise, samples)
            x = prior(self.levels[0], draws, self.shape)
            steps = self._walk(x, draws, self._drawn_cond(samples))
            x0, nfe = self._watch(steps, [Selected(probe, slice(0, valid)) for probe in probes], valid)
            parts.append(self._pixels(x0[:valid]))
        self._refuse_infinite()  # which waits for the device, and so for the copies of the images
        records = _named("free", probes)
        return {"samples": torch.cat(parts).numpy(), "nfe": np.array(nfe), **records}

    def _walk(self, x: Tensor, draws: Draws, cond: Tensor | None, x0: Tensor | None = None) -> Iterator[Step]:
        """Walk the cell's levels from x, paired with x0 where it is given."""
        clip, correction = self.cell.config.clip, self.correction
        return walk(
            self.denoiser, self.levels, x, self.solver, draws, clip=clip, correction=correction, x0=x0, cond=cond
        )

    def _pixels(self, x0: Tensor) -> Tensor:
        """Return images as uint8 [B, H, W, C] on the host; from CUDA the copy is still under way."""
        pixels = quantize(x0, self.cell.config.quantize).movedim(1, -1).contiguous()
        if pixels.device.type != "cuda":
            return pixels.cpu()
        host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
        return host.copy_(pixels, non_blocking=True)

    def _probes(self, paired: bool) -> list[WalkProbe]:
        if self.look is None or not self.look.indices:
            return []
        centre = self.centre.float().to(self.device)
        return [WalkProbe(self.cell.steps, self.look.indices, centre, paired, self.solver.stages)]

    def _images(self, part: str, rows: Tensor) -> Tensor:
        """Return real images as the network sees them; rows beyond the part (padding) wrap around."""
        return to_unit(self.data.pick(part, rows)).to(self.device)

    def _forced(self, unit: Unit) -> Arrays:
        """Take single steps from real images: training images first, then held-out ones."""
        look = self._looking()
        arms = {"forced-train": self._probes(paired=True), "forced-heldout": self._probes(paired=True)}
        errors = {"train": ErrorProbe(look.error_indices), "heldout": ErrorProbe(look.error_indices)}
        for rows, valid in self._chunks(unit):
            boundary = min(max(look.train - int(rows[0]), 0), valid)  # training images in this batch
            x0, numbers, cond = self._forced_images(rows, look.train)
            probes: list[Probe] = []
            if boundary:
                probes += [Selected(probe, slice(0, boundary)) for probe in arms["forced-train"]]
                kept = min(boundary, max(look.error_train - int(rows[0]), 0))
                probes += [Selected(errors["train"], slice(0, kept))] if kept else []
            if boundary < valid:
                probes += [Selected(probe, slice(boundary, valid)) for probe in arms["forced-heldout"]]
                first = int(rows[0]) + boundary - look.train
                kept = min(valid - boundary, max(look.error_heldout - first, 0))
                probes += [Selected(errors["heldout"], slice(boundary, boundary + kept))] if kept else []
            self._force(x0, numbers, cond, look.indices, probes, valid)
        records = _named("forced-train", arms["forced-train"]) | _named("forced-heldout", arms["forced-heldout"])
        states = {f"errors/{part}": probe.state() for part, probe in errors.items()}
        return records | {name: state for name, state in states.items() if state is not None}

    def _forced_images(self, rows: Tensor, train: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return images, noise numbers (training image k draws as 2k, held-out image k as 2k + 1) and labels."""
        rows = rows.clamp(max=train + self._looking().heldout - 1)  # padding repeats the last image
        held = rows >= train
        index = torch.where(held, rows - train, rows)
        x0, cond = self._images("train", index), self._data_cond("train", index)
        if held.any():
            x0[held] = self._images("heldout", index[held])
            labels = self._data_cond("heldout", index[held])
            if cond is not None and labels is not None:
                cond[held] = labels
        return x0, 2 * index + held.long(), cond

    def _force(
        self,
        x0: Tensor,
        numbers: Tensor,
        cond: Tensor | None,
        indices: Sequence[int],
        probes: Sequence[Probe],
        images: int,
    ) -> None:
        steps = teacher_forced(
            self.denoiser,
            self.levels,
            x0,
            self.solver,
            Draws(self.noise, numbers),
            clip=self.cell.config.clip,
            correction=self.correction,
            cond=cond,
            indices=set(indices),
        )
        self._watch(steps, probes, images)

    def _errors(self, unit: Unit) -> Arrays:
        """Visit the images that teacher forcing left out, at the error levels alone."""
        look = self._looking()
        more = {"train": range(look.train, look.error_train), "heldout": range(look.heldout, look.error_heldout)}
        result: Arrays = {}
        for offset, (part, range_) in enumerate(more.items()):
            if not range_:
                continue
            probe = ErrorProbe(look.error_indices)
            for rows in torch.arange(range_.start, range_.stop, device=self.device).split(self.batch):
                x0, cond = self._images(part, rows), self._data_cond(part, rows)
                self._force(x0, 2 * rows + offset, cond, look.error_indices, [probe], len(rows))
            state = probe.state()
            assert state is not None  # the range is not empty
            result[f"errors/{part}"] = state
        return result

    def _paired(self, unit: Unit) -> Arrays:
        """Walk from noised real images at the top level: the published multi-step measurement."""
        probes = self._probes(paired=True)
        for rows, valid in self._chunks(unit):
            x0 = self._images("train", rows)
            draws = Draws(self.noise, rows)
            x = paired(self.levels[0], draws, x0)
            steps = self._walk(x, draws, self._data_cond("train", rows), x0)
            self._watch(steps, [Selected(probe, slice(0, valid)) for probe in probes], valid)
        return _named("paired", probes)

    def _looking(self) -> Instruments:
        assert self.look is not None  # units of the instruments exist only where something is measured
        return self.look


def _named(arm: str, probes: Sequence[WalkProbe]) -> Arrays:
    return {f"{arm}/{name}": value for probe in probes for name, value in probe.state().items()}
