"""Real images or latents with the conditions of each: the data that a recorded loop is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data import to_unit
from bench.hooks.frames import HookError
from bench.measure.instruments.moments import PixelMoments
from bench.measure.instruments.step_table import PixelStatistics

_BLOCK = 8192  # images in float64 at a time
_HOW = "give real= as [N, C, H, W]: uint8, or floats as the network takes them"


@dataclass(frozen=True, eq=False)
class RealData:
    """What is known of the data.

    Attributes:
        images: float32 [N, C, H, W] on the host, as the network takes them; latents have no range.
        conditions: keyword arguments of the network, a tensor [N, ...] or [1, ...] or a mapping of such.
        without: the same for no condition, which guidance needs; None where it was not given.
        statistics, spectrum, haar: their moments, as :class:`bench.suite.cells.reference.Reference` has them.
    """

    images: Tensor
    conditions: Mapping[str, Any]
    without: Mapping[str, Any] | None
    statistics: PixelStatistics
    spectrum: NDArray[np.float64]
    haar: NDArray[np.float64]

    @classmethod
    def of(cls, real: Any) -> RealData:
        """Read images, or a pair of images or latents and their conditions.

        Args:
            real: tensor or array [N, C, H, W], uint8 or float; or a tuple of that, a mapping from the names of the
                network's arguments to tensors of N rows or one, and perhaps another that stands for no condition.

        Raises:
            HookError: another shape or kind, fewer than two images, or values that are not finite.
        """
        parts = real if isinstance(real, tuple) else (real,)
        if not 1 <= len(parts) <= 3:
            raise HookError(
                "real= is a tensor, or (tensor, conditions), or (tensor, conditions, those of no condition)"
            )
        data, conditions, without = parts[0], {}, None
        if len(parts) > 1:
            conditions, without = parts[1], (parts[2] if len(parts) == 3 else None)
        if isinstance(data, np.ndarray):
            data = torch.from_numpy(data)
        if not isinstance(data, Tensor) or data.ndim != 4 or len(data) < 2 or min(data.shape[2:]) < 2:
            what = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
            raise HookError(f"real images are {what}; {_HOW}, at least two of at least 2x2")
        if not (data.is_floating_point() or data.dtype == torch.uint8):
            raise HookError(f"real images are {data.dtype}; {_HOW}")
        images = (data if data.is_floating_point() else to_unit(data)).detach().float().cpu()
        if not torch.isfinite(images).all():
            raise HookError("real images hold values that are not finite; remove them")
        for given in (conditions, {} if without is None else without):
            _check_conditions(given, len(images))
        moments = PixelMoments.of_blocks(images.split(_BLOCK))
        statistics = PixelStatistics(moments.mean.numpy(), moments.variance.numpy())
        return cls(images, conditions, without, statistics, moments.spectrum.numpy(), moments.haar.numpy())

    def content_hash(self) -> str:
        """Return the sha256 of the images."""
        return hashlib.sha256(self.images.contiguous().numpy().tobytes()).hexdigest()[:16]


def _check_conditions(conditions: Any, count: int) -> None:
    if not isinstance(conditions, Mapping):
        raise HookError("the second of real= must map names of the network's arguments to tensors, one row an image")
    for name, value in conditions.items():
        if isinstance(value, Mapping):
            _check_conditions(value, count)
        elif not isinstance(value, Tensor) or value.ndim < 1 or len(value) not in (1, count):
            raise HookError(f"condition {name!r} must be a tensor of {count} rows, as many as real images, or of one")


def rows_of(conditions: Mapping[str, Any], rows: slice, device: Any) -> dict[str, Any]:
    """Return the conditions of some images, with a row for each, on a device."""
    chosen: dict[str, Any] = {}
    for name, value in conditions.items():
        if isinstance(value, Mapping):
            chosen[name] = rows_of(value, rows, device)
        else:
            count = rows.stop - rows.start
            part = value[rows] if len(value) > 1 else value.expand(count, *value.shape[1:])
            chosen[name] = part.to(device)
    return chosen
