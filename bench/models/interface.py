"""What every model of the suite has: a description, and the shape of a network's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

_LARGEST_COUNT = 10**12


class Output(NamedTuple):
    """What a network returns, under diffusers' name: ``sample`` [B, outputs, H, W]."""

    sample: Tensor


@dataclass(frozen=True)
class Description:
    """What a checkpoint is besides its numbers.

    Attributes:
        network: the network's arguments, JSON-like, under guided-diffusion's names (``in_channels``, ``image_size``,
            ``num_classes``, ...) where they mean the same.
        schedule: a name of :func:`bench.diffusion.schedules.betas`; ``edm``: levels by sigma, alpha = 1; or ``flow``,
            ``flow(SHIFT)``: alpha = 1 - sigma.
        T: training length. A flow is told T sigma: sigma from 0 to 1 by a T of 1.
        training: the recipe that made it, if the file names one.
        prediction: what the network predicts: ``eps``, ``v``, ``x0``, ``flow`` (the velocity noise - x0), or the name
            of its preconditioning (:mod:`bench.models.denoisers.preconditioning`).
        format: how the file is read, a key of :data:`bench.models.checkpoints.formats.FORMATS`.
        variance: the fixed variance of ancestral steps that the file asks for, ``fixed-small`` or ``fixed-large``.
        content: what describing the file has read already and loading it needs; no part of the description's value.
    """

    network: Mapping[str, Any]
    schedule: str = "cosine"
    T: int = 1000
    training: Mapping[str, Any] = field(default_factory=dict)
    prediction: str = "eps"
    format: str = "guided"
    content: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    variance: str | None = None

    def training_images(self) -> dict[str, Any] | None:
        """Return the ``recipe`` and the number of ``images`` it was trained on, None where the file has neither."""
        name = self.training.get("name")
        if not isinstance(name, str):
            return None
        if images := self._count("images"):
            return {"recipe": name, "images": images}
        iterations, batch = self._count("iterations"), self._count("batch")
        return {"recipe": name, "images": iterations * batch} if iterations and batch else None

    def _count(self, name: str) -> int:
        """Return a count of the recipe, 0 where it is no sensible one: files are written by strangers, too."""
        value = self.training.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LARGEST_COUNT else 0

    @property
    def channels(self) -> int:
        """Return the images' channels."""
        return int(self.network.get("in_channels", 3))

    @property
    def classes(self) -> int | None:
        """Return how many class labels the network takes, None where it takes none."""
        return self.network.get("num_classes") or None

    @property
    def time_factor(self) -> float:
        """Return what the network is asked at over the level's t.

        That is 1000 / T with ``rescale_timesteps``, T / 1000 for a flow, whose levels have t = 1000 sigma, else 1.
        """
        if self.is_flow:
            return self.T / 1000
        return 1000 / self.T if self.network.get("rescale_timesteps") else 1.0

    @property
    def learns_variance(self) -> bool:
        """Tell whether the network predicts a variance beside eps. Only ancestral steps read one."""
        doubled = self.network.get("out_channels") == 2 * self.channels
        return self.frame == "vp" and (bool(self.network.get("learn_sigma")) or doubled)

    @property
    def is_edm(self) -> bool:
        """Tell whether the model walks on EDM levels."""
        return self.schedule == "edm"

    @property
    def is_flow(self) -> bool:
        """Tell whether the model is a flow."""
        return self.schedule.startswith("flow")

    @property
    def frame(self) -> str:
        """Return the frame of the model's levels: ``vp`` (variance preserving), ``edm`` or ``flow``."""
        if self.is_edm:
            return "edm"
        return "flow" if self.is_flow else "vp"
