"""Our side of the comparisons: the suite's own walk of a batch, with or without instruments, and networks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.data import Dataset
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import Euler, Heun, Solver
from bench.diffusion.types import Level
from bench.models.acceleration import Accelerated
from bench.models.denoisers.parameterization import NetworkDenoiser
from bench.models.interface import Description
from bench.models.networks.adm import adm_unet
from bench.models.train.recipes import DIGITS_NETWORK
from bench.runtime.devices import full_float32, keep_freed_memory
from bench.suite.cells.reference import Reference
from bench.suite.cells.walks import CellWalks, WalkContext
from bench.suite.plan import Cell, Unit
from bench.suite.registry.model import Model
from bench.suite.settings import SamplerConfig
from benchmarks.comparison import Setting

SCHEDULE = "linear"
_T = 1000
_EDM_SOLVERS: Mapping[str, Solver] = {"euler": Euler(), "heun": Heun()}


@dataclass(frozen=True)
class Subject:
    """A network of random weights, and the walk that it is asked along: whole strides of a linear schedule.

    Attributes:
        name: how tables call it.
        config: guided-diffusion's arguments.
        batch: images a call.
        steps: solver steps.
        device: where.
    """

    name: str
    config: Mapping[str, Any]
    batch: int
    steps: int
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        size = int(self.config["image_size"])
        return int(self.config["in_channels"]), size, size

    @cached_property
    def network(self) -> Any:
        """Return the network; the same weights every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return adm_unet(self.config).eval().requires_grad_(False).to(self.device)

    @property
    def path(self) -> tuple[Level, ...]:
        """Return the levels, noisiest first, and the clean one: diffusers' spacing ``leading`` without an offset."""
        return levels(SCHEDULE, _T, f"ddim{self.steps}")


def images(setting: Setting) -> Iterator[Subject]:
    """Yield an ADM network for RGB images at each width of a setting, without a learned variance."""
    size, batch = setting.size, setting.batch
    shapes = {"image_size": size, "in_channels": 3, "out_channels": 3}
    blocks = {"channel_mult": (1, 2, 2, 2), "attention_resolutions": (2, 4)}
    for width in setting.widths:
        config = {**DIGITS_NETWORK, **shapes, **blocks, "model_channels": width}
        name = f"{size}x{size}x3, width {width}, batch {batch}"
        yield Subject(name, config, batch, setting.steps, setting.device)


def digits(setting: Setting) -> Subject:
    """Return the network of the embedded family, at the suite's internal batch."""
    config = {**DIGITS_NETWORK, "out_channels": 1}
    return Subject("digits network, 8x8x1, batch 128", config, 128, setting.steps, setting.device)


class Walk:
    """The suite's walk of one batch: what a run does for a shard of samples, down to images of 8 bits.

    Args:
        subject: the network and its levels.
        sampler: ``ddpm`` (fixed-small variance), ``ddim``, ``euler`` or ``heun``.
        clip: clamp x0_hat.
        instruments: measure every step.
        network: called in place of the subject's.
    """

    def __init__(
        self,
        subject: Subject,
        sampler: str = "ddpm",
        *,
        clip: bool = True,
        instruments: bool = True,
        network: Callable[..., Any] | None = None,
    ) -> None:
        self.subject = subject
        about = Model(subject.name, Path(), Description(dict(subject.config), SCHEDULE, _T))
        variance = "fixed-small" if sampler == "ddpm" else None
        name = "ddim" if sampler in _EDM_SOLVERS else sampler
        config = SamplerConfig(name, spacing="ddim", variance=variance, clip=clip)
        measure = ("steps",) if instruments else ()
        cell = Cell(about, config, subject.steps, 0, subject.batch, measure, "none", (1, 0), "none")
        asked = network or subject.network
        if sampler in _EDM_SOLVERS:  # EDM's preconditioning shows states of float64 to a network of float32
            asked = lambda x, *given, network=asked: network(x.float(), *given)  # noqa: E731
        denoiser = NetworkDenoiser(asked)
        reference = Reference(_nothing(subject), None)
        context = WalkContext(lambda model: denoiser, reference, subject.device, subject.batch, lambda calls: None)
        self.arms = CellWalks(cell, context)
        if sampler in _EDM_SOLVERS:  # the suite gives them to EDM models alone; k-diffusion to any
            self.arms.solver = _EDM_SOLVERS[sampler]

    def __call__(self) -> NDArray[np.uint8]:
        """Return the samples, uint8 [B, H, W, C]."""
        samples: NDArray[np.uint8] = self.arms.compute(Unit("free", 0, self.subject.batch))["samples"]
        return samples


def ours(
    subject: Subject,
    sampler: str,
    *,
    clip: bool = True,
    instruments: bool = True,
    precision: str = "fp32",
    compiled: bool = False,
) -> Walk:
    """Return the walk in a process set up as the suite's; arguments as of :class:`Walk` and of ``Accelerated``.

    Raises:
        CompileError: the network cannot be compiled here.
    """
    full_float32()
    keep_freed_memory()
    network = Accelerated(subject.network, precision)
    if compiled:
        x = torch.zeros(subject.batch, *subject.shape, device=subject.device)
        network.compile(x, torch.zeros(subject.batch, device=subject.device))
    return Walk(subject, sampler, clip=clip, instruments=instruments, network=network)


def _nothing(subject: Subject) -> Dataset:
    """Return two black images: walks from noise see none, but the suite asks for shape and mean."""
    black = torch.zeros((2, *subject.shape), dtype=torch.uint8)
    return Dataset("none", black, torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool))
