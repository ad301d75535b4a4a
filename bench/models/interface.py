"""What a checkpoint is besides its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

_MOST = 10**12  # of anything counted


@dataclass(frozen=True)
class Description:
    """What a checkpoint is besides its numbers.

    Attributes:
        network: the network's arguments, JSON-like, under guided-diffusion's names (``in_channels``, ``image_size``,
            ``num_classes``, ...) where they mean the same.
        schedule: a name of :func:`bench.diffusion.schedules.betas`, or ``edm``: levels by sigma, alpha = 1.
        T: training length.
        training: the recipe that made it, if known.
        prediction: what the network says: ``eps``, ``v``, ``x0``, or how it is preconditioned
            (:mod:`bench.models.denoisers.preconditioning`).
        format: how the file is read: ``guided`` (``.pt`` and our own), ``edm``, ``diffusers`` or ``python``.
    """

    network: Mapping[str, Any]
    schedule: str = "cosine"
    T: int = 1000
    training: Mapping[str, Any] = field(default_factory=dict)
    prediction: str = "eps"
    format: str = "guided"

    def seen(self) -> dict[str, Any] | None:
        """Return the recipe's name and how many training images the weights have seen, None where nobody says."""
        name = self.training.get("name")
        if not isinstance(name, str):
            return None
        if images := self._count("images"):
            return {"recipe": name, "images": images}
        iterations, batch = self._count("iterations"), self._count("batch")
        return {"recipe": name, "images": iterations * batch} if iterations and batch else None

    def _count(self, name: str) -> int:
        """Return a number that the recipe tells, 0 where it is none: files are written by strangers, too."""
        value = self.training.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST else 0

    @property
    def channels(self) -> int:
        """Return the images' channels."""
        return int(self.network.get("in_channels", 3))

    @property
    def classes(self) -> int | None:
        """Return how many class labels the network takes, None where it takes none."""
        return self.network.get("num_classes") or None

    @property
    def learns_variance(self) -> bool:
        """Tell whether the network predicts a variance beside eps; on EDM levels nothing would read it."""
        return not self.is_edm and (
            bool(self.network.get("learn_sigma")) or self.network.get("out_channels") == 2 * self.channels
        )

    @property
    def is_edm(self) -> bool:
        """Tell whether the model walks on EDM levels."""
        return self.schedule == "edm"


class Output(NamedTuple):
    """What a network returns, under diffusers' name: ``sample`` [B, outputs, H, W]."""

    sample: Tensor
