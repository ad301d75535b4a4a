"""Loops and their tapes: what a loop recorded, and walks of our own after it, of networks and of exact denoisers.

Every walk of our own uses a copy of the user's scheduler, so that a step is the user's step. A multistep method has no
memory at the start of a teacher-forced step, which is then of first order.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.types import Step
from bench.hooks.frames import Frame, primed, restarted, used
from bench.measure.instruments.exact_denoisers import ClassMixture, ExactDenoiser, FiniteSet
from bench.measure.instruments.gaussian import LARGEST
from bench.measure.instruments.probes import WalkProbe
from bench.measure.instruments.spectra import RadialBins

# A network as a loop asks it: the state, the same as the scheduler scales it, the timestep and the call's position, to
# its output and, under guidance, the output without.
Ask = Callable[[Tensor, Tensor, Any, int], tuple[Tensor, Tensor | None]]

# What takes the steps of a free arm: a step, the scale of the noise that its walk begins with, None after the first
# step, and whether it is the walk's last.
Take = Callable[[Step, float | None, bool], None]

_MANY, _FEW = 1024, 256  # walks of an exact denoiser: many at up to 20 steps, fewer beyond
_FEWEST = 128  # of images of more values than _SMALL
_SMALL = 768
_WORK = 20 * _MANY  # walks times steps
_LARGE = 2**24  # values of all real images, beyond which the empirical denoiser is too slow
_BATCH = 256
_SEED = 0  # of the exact denoisers' walks


class Tape:
    """Streaming records of one arm; its size grows with the steps of a loop, not with its images.

    Args:
        centre: the data's mean image, float [C, H, W], on the loop's device.
        paired: whether the steps know x0.
        stages: the most network calls of a step.
        chosen: solver indices with records of each pixel; None is all.
    """

    def __init__(self, centre: Tensor, paired: bool, stages: int = 1, chosen: Collection[int] | None = None) -> None:
        self.centre, self.paired, self.stages, self.chosen = centre, paired, stages, chosen
        self.guided = False
        self._bins = RadialBins(centre.shape[1], centre.shape[2], centre.device)
        self._probes: dict[int, WalkProbe] = {}

    def _probe(self, rows: Sequence[int]) -> WalkProbe:
        return WalkProbe(1, rows, self.centre, self.paired, self.stages, guided=self.guided, bins=self._bins)

    def records(self, i: int) -> bool:
        """Tell whether the pixels of a solver index are recorded."""
        return self.chosen is None or i in self.chosen

    @torch.no_grad()
    def update(self, step: Step) -> None:
        """Add the images of a step, without waiting for the device."""
        if step.i not in self._probes:
            self.guided = self.guided or step.prediction.plain is not None
            self._probes[step.i] = self._probe((0,) if self.records(step.i) else ())
        self._probes[step.i].update(replace(step, i=0))

    def count_down(self) -> None:
        """Renumber steps that were numbered from the first as solver indices, which count down to 0."""
        last = len(self._probes) - 1
        self._probes = {last - number: probe for number, probe in self._probes.items()}

    def state(self, indices: Sequence[int], steps: int) -> dict[str, NDArray[Any]]:
        """Return what one probe of the whole walk would have gathered.

        Args:
            indices: solver indices of the pixels' rows, ascending.
            steps: solver steps; those that were not taken have a count of 0.
        """
        states = {i: probe.state() for i, probe in self._probes.items()}
        empty = self._probe((0,)).state()
        arrays = {}
        for name, zero in empty.items():
            if name.startswith(("scalars/", "guided/")):  # [stages] a step, to row i + steps * stage
                rows = np.stack([states.get(i, empty).get(name, zero) for i in range(steps)], axis=1)
                arrays[name] = rows.reshape(-1, *zero.shape[1:])
            else:
                arrays[name] = np.concatenate([states.get(i, empty)[name] for i in indices])
        return arrays


@dataclass(frozen=True)
class Loop:
    """A user's loop, as far as it can be taken up again.

    Attributes:
        scheduler: a copy, its timesteps set and no step taken.
        frame: of the calls that the loop made.
        offset: timesteps that the loop left out at its start, as image-to-image pipelines do.
        arguments: of ``scheduler.step`` besides output, timestep, sample and generator.
        scales: whether the loop scales states for the network as its scheduler asks.
    """

    scheduler: Any
    frame: Frame
    offset: int
    arguments: Mapping[str, Any]
    scales: bool = True

    def walk(
        self, x: Tensor, ask: Ask, start: int = 0, single: bool = False, x0: Tensor | None = None
    ) -> Iterator[Step]:
        """Yield the steps from a state [B, C, H, W] at the call ``start``: one solver step, or all that remain.

        The noise of a stochastic step is drawn from a generator whose seed is the call's position.
        """
        scheduler = restarted(self.scheduler, self.offset + start)
        for k in range(start, len(self.frame.calls)):
            call, t = self.frame.calls[k], scheduler.timesteps[self.offset + k]
            output, plain = ask(x, scaled(scheduler, x, t) if self.scales else x, t, k)
            if k == start:
                primed(scheduler, output)
            random = {"generator": torch.Generator(x.device).manual_seed(_SEED + k)}
            if "generator" not in inspect.signature(scheduler.step).parameters:
                random = {}
            x_next = scheduler.step(output, t, x, return_dict=False, **random, **self.arguments)[0]
            yield self.step(k, x, x_next, output, plain, x0)
            if single and call.completes:
                return
            x = x_next

    def step(
        self,
        k: int,
        x: Tensor,
        x_next: Tensor,
        output: Tensor,
        plain: Tensor | None = None,
        x0: Tensor | None = None,
        raw: Tensor | None = None,
    ) -> Step:
        """Return the typed step of call k.

        Args:
            k: position of the call in the frame.
            x: the state before.
            x_next: the state after.
            output: what the update got.
            plain: the network's output without guidance, None where ``output`` is that.
            x0: real images that the states were made of.
            raw: the network's output where the user changed it before the update, None where that is ``output``.
        """
        call, x, x_next = self.frame.calls[k], x.float(), x_next.float()
        given = self.frame.prediction(output.float(), x, call.level)
        said = given if raw is None else self.frame.prediction(raw.float(), x, call.level)
        if plain is not None:
            said = replace(said, plain=self.frame.prediction(plain.float(), x, call.level), calls=2)
        final = used(self.scheduler, given, x, call.level, self.arguments)
        place = (self.frame.indices[k], call.stage, call.level, call.level_next)
        return Step(*place, x, x_next, said, final.x0, final.eps, x0, call.completes)


def scaled(scheduler: Any, x: Tensor, t: Any) -> Tensor:
    """Return a state as a scheduler hands it to the network; flow matching hands it on as it is."""
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def force(loop: Loop, tape: Tape, x0: Tensor, ask: Ask, numbers: Tensor, seed: int, dtype: torch.dtype) -> None:
    """Record the network on real noised data: at every level that the loop visited, one solver step.

    The noise is that of :func:`bench.diffusion.samplers.teacher_forced`.

    Args:
        loop: whose levels.
        tape: takes the steps.
        x0: real images [B, C, H, W].
        ask: the network.
        numbers: of the images' noise, int64 [B].
        seed: of the noise.
        dtype: of the loop's states.
    """
    noise = Noise(seed)
    for k, (call, i) in enumerate(zip(loop.frame.calls, loop.frame.indices, strict=True)):
        if call.stage == 0 and tape.records(i):
            level = call.level
            x = level.alpha * x0 + level.sigma * noise.normal(numbers, Purpose.FORCED, i, x0.shape[1:])
            for step in loop.walk(x.to(dtype), ask, k, single=True, x0=x0):
                tape.update(step)


def exact_laws(images: Tensor) -> dict[str, ExactDenoiser]:
    """Return the Gaussian with the images' mean and covariance, and their finite set, each where it is affordable."""
    laws: dict[str, ExactDenoiser] = {}
    if math.prod(images.shape[1:]) <= LARGEST and len(images) > 1:
        laws["gaussian"] = ClassMixture(images, torch.zeros(len(images), dtype=torch.int64))
    if images.numel() <= _LARGE:
        laws["empirical"] = FiniteSet(images)
    return laws


def walk_exact(loop: Loop, law: ExactDenoiser, free: Tape, forced: Tape) -> None:
    """Record an exact denoiser in the loop, free running and teacher forced; nothing is clipped nor thresholded."""
    scheduler, frame = copy.deepcopy(loop.scheduler), loop.frame
    unclipped = {name: False for name in ("clip_sample", "thresholding") if name in scheduler.config}
    scheduler.register_to_config(**unclipped)
    loop = replace(loop, scheduler=scheduler)

    def ask(x: Tensor, scaled: Tensor, t: Any, k: int) -> tuple[Tensor, None]:
        level = frame.calls[k].level
        return frame.output(law(x, level), x, level), None

    count = min(max(_WORK // len(frame.calls), _FEW), _MANY) if free.centre.numel() <= _SMALL else _FEWEST
    images, noise, first = law.sample(count, _SEED).to(free.centre.device), Noise(_SEED), frame.calls[0].level
    for rows in torch.arange(count, device=images.device).split(_BATCH):
        x0, z = images[rows], noise.normal(rows, Purpose.START, 0, images.shape[1:])
        x = first.alpha * x0 + first.sigma * z if loop.offset else start_scale(loop.scheduler) * z
        for step in loop.walk(x, ask):
            free.update(step)
        force(loop, forced, x0, ask, rows, _SEED, x.dtype)


def start_scale(scheduler: Any) -> float:
    """Return the factor of unit noise that pipelines start from."""
    return float(getattr(scheduler, "init_noise_sigma", 1.0))
