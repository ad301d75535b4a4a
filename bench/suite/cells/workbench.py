"""The workbench: networks, real images and batches, shared by the walks of cells, experiments and tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.data import Dataset, quantize, to_unit
from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.types import Denoiser
from bench.suite.cells.reference import Reference
from bench.suite.plan import Cell
from bench.suite.registry.model import Model


@dataclass(frozen=True)
class Workbench:
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
