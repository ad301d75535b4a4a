"""Real images or latents with the conditions of each: the data that a recorded loop is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data import Dataset, quantize, to_unit
from bench.hooks.frames import HookError
from bench.hooks.quality import Samples, are_pictures, extractor_for
from bench.suite.cells.reference import Reference

_NAME = "real images"  # what tables call them
_HOW = "give real= as [N, C, H, W]: uint8, or floats as the network takes them"


@dataclass(frozen=True, eq=False)
class RealData:
    """What is known of the data.

    Attributes:
        reference: its images, float32 [N, C, H, W] on the host as the network takes them, with their statistics; it has
            an extractor where samples shall be compared with them.
        conditions: keyword arguments of the network, a tensor [N, ...] or [1, ...] or a mapping of such.
        without: the same for no condition, which guidance needs; None where it was not given.
    """

    reference: Reference
    conditions: Mapping[str, Any]
    without: Mapping[str, Any] | None

    @property
    def images(self) -> Tensor:
        """Return the images, float32 [N, C, H, W]."""
        return self.reference.data.images

    @property
    def note(self) -> str:
        """Return what is suspicious of the images, empty for nothing."""
        images = self.images
        if images.shape[1] not in (1, 3) or images.min() < 0 or images.max() > 1:
            return ""
        return "real images are within 0 and 1; if the network takes -1 to 1, give 2 * images - 1"

    @classmethod
    def of(cls, real: Any, compared: bool = False) -> RealData:
        """Read images, or a pair of images or latents and their conditions.

        Args:
            real: tensor or array [N, C, H, W], uint8 or float; or a tuple of that, a mapping from the names of the
                network's arguments to tensors of N rows or one, and perhaps another that stands for no condition.
            compared: whether samples shall be compared with the images.

        Raises:
            HookError: another shape or kind, fewer than two images, or values that are not finite.
        """
        parts = real if isinstance(real, tuple) else (real,)
        if not 1 <= len(parts) <= 3:
            raise HookError(
                "real= is a tensor, or (tensor, conditions), or (tensor, conditions, those of no condition)"
            )
        conditions, without = parts[1] if len(parts) > 1 else {}, parts[2] if len(parts) == 3 else None
        images = _images(parts[0])
        for given in (conditions, {} if without is None else without):
            _check_conditions(given, len(images))
        none = torch.zeros(len(images), dtype=torch.int64)
        data = Dataset(_NAME, images, none, none.bool())
        pictures = replace(data, images=quantize(images)) if are_pictures(images) else data
        extractor = extractor_for(images) if compared else None
        return cls(Reference(data, extractor, pictures=pictures), conditions, without)

    def samples(self, kept: bool) -> Samples | None:
        """Return where the samples of a loop go, None where they are not compared; see :class:`Samples`."""
        return None if self.reference.extractor is None else Samples(self.reference, kept)


def _images(data: Any) -> Tensor:
    """Return float32 images [N, C, H, W] on the host.

    Raises:
        HookError: another shape or kind, fewer than two images, or values that are not finite.
    """
    if isinstance(data, np.ndarray) and data.dtype.kind in "uif":
        data = torch.from_numpy(np.require(data, requirements=["C", "W"]))
    if not isinstance(data, Tensor) or data.ndim != 4 or len(data) < 2 or min(data.shape[2:]) < 2:
        what = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise HookError(f"real images are {what}; {_HOW}, at least two of at least 2x2")
    if not (data.is_floating_point() or data.dtype == torch.uint8):
        raise HookError(f"real images are {data.dtype}; {_HOW}")
    images = (data if data.is_floating_point() else to_unit(data)).detach().float().cpu()
    if not torch.isfinite(images).all():
        raise HookError("real images hold values that are not finite; remove them")
    if images.min() >= 0 and images.max() > 1 and bool((images == images.round()).all()):
        raise HookError(f"real images are whole numbers up to {images.max():g} as floats; give pixels as uint8")
    return images


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
