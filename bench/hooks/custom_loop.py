"""Loops of one's own and k-diffusion samplers: steps that their owner tells, checked, as typed steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, teacher_forced
from bench.diffusion.solvers import Solver
from bench.diffusion.types import CLEAN, Level, Prediction, Step
from bench.hooks.frames import KINDS, HookError, converted
from bench.hooks.loops import Take, Tape
from bench.hooks.updates import StepProducts, update_of
from bench.runtime.errors import reason

_ROUNDING = 1e-4  # of levels

Network = Callable[[Tensor, Level], Tensor]  # a state and its level to an output of the loop's kind


@dataclass
class _Pending:
    """A step whose next level the next one will tell; ``x_next`` is None where the next one tells that too."""

    level: Level
    x: Tensor
    x_next: Tensor | None
    output: Tensor


class CustomLoop:
    """The steps of a loop of one's own.

    Args:
        begin: called with the first state.
        take: called with each step, see :meth:`bench.hooks.record.Log.take`; steps are numbered from the first.
        reads_update: whether to read from the states by which update the loop takes its steps.

    Attributes:
        levels: of the steps, noisiest first.
        kind: of the outputs, empty before the first step.
        samples: images of whole walks.
        refused: whether a step was refused; its error was told then.
    """

    def __init__(self, begin: Callable[[Tensor], None], take: Take, reads_update: bool) -> None:
        self.levels: list[Level] = []
        self.kind, self.samples, self.refused = "", 0, False
        self._begin, self._take_step, self._reads_update = begin, take, reads_update
        self._products: list[StepProducts] = []
        self._number = 0  # of the next step of the walk
        self._pending: _Pending | None = None

    @torch.no_grad()
    def add(self, level: Level, x: Tensor, output: Tensor, x_next: Tensor | None, kind: str) -> None:
        """Finish the step before, whose next level is known now, and keep this one.

        Raises:
            HookError: shapes that differ, an impossible level or kind, or walks of different levels.
        """
        try:
            _check(level, kind, {"x": x, "prediction": output, **({} if x_next is None else {"x_next": x_next})})
            if self.kind and kind != self.kind:
                raise HookError(f"kind is {kind!r}, in the steps before it was {self.kind!r}")
            if not self.kind:
                self._begin(x)
                self.kind = kind
            before = self._pending
            if before is not None:
                if level.sigma * before.level.alpha > before.level.sigma * level.alpha:  # noisier: a further walk
                    self.end()
                elif x.shape != before.x.shape:
                    raise HookError(f"x is {tuple(x.shape)}, in the step before it was {tuple(before.x.shape)}")
                else:
                    self._take(level, x.float())
        except HookError:
            self.refused = True
            raise
        # Copies, since loops may work in place.
        state = None if x_next is None else x_next.detach().float().clone()
        self._pending = _Pending(level, x.detach().float().clone(), state, output.detach().float().clone())

    def callback(self, info: Mapping[str, Any]) -> None:
        """Add a step of a k-diffusion sampler, see :meth:`bench.hooks.record.Log.callback`."""
        try:
            sigma = float(info["sigma_hat"] if "sigma_hat" in info else info["sigma"])
            x, denoised = info["x"], info["denoised"]
        except (KeyError, TypeError, ValueError) as error:
            raise HookError(f"a k-diffusion callback gets x, sigma and denoised; {reason(error)} is wrong") from None
        self.add(Level(sigma, 1.0, sigma), x, denoised, None, "x0")

    def _take(self, level_next: Level, x_next: Tensor) -> None:
        """Record the step that waited for its next level."""
        step, number = self._pending, self._number
        assert step is not None  # its callers asked
        if not self.samples:
            self.levels.append(step.level)
        elif number >= len(self.levels) or self.levels[number] != step.level:
            raise HookError(f"step {number + 1} has another level than in the walk before; record each loop in a block")
        said = converted(self.kind, step.output, step.x, step.level)
        reached = x_next if step.x_next is None else step.x_next
        taken = Step(number, 0, step.level, level_next, step.x, reached, said, said.x0, said.eps, None)
        self._take_step(taken, None if number else step.level.sigma, level_next is CLEAN)
        if self._reads_update:
            if number == len(self._products):
                self._products.append(StepProducts())
            self._products[number].add(reached, step.x, said.x0)
        self._number, self._pending = number + 1, None

    @torch.no_grad()
    def end(self) -> None:
        """End a walk in clean data.

        Raises:
            HookError: it has other levels than the walk before.
        """
        step = self._pending
        if step is None:
            return
        self._take(CLEAN, converted(self.kind, step.output, step.x, step.level).x0)
        if self._number != len(self.levels):
            raise HookError(f"a walk has {self._number} steps, the first had {len(self.levels)}; record whole loops")
        self.samples, self._number = self.samples + len(step.x), 0

    def update(self) -> tuple[Solver | None, str]:
        """Return the solver that the whole walks took their steps by, or None and the reason."""
        return update_of(self.levels, self._products)

    def force(self, network: Network, tape: Tape, x0: Tensor, numbers: Tensor, seed: int, solver: Solver) -> None:
        """Ask a network about real noised data [B, C, H, W] at the loop's levels, take a step, and record that.

        Raises:
            HookError: the network returned something of another shape.
        """

        def denoiser(x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
            output = network(x, level)
            if not isinstance(output, Tensor) or output.shape != x.shape:
                raise HookError("network= must return a tensor of its state's shape")
            return converted(self.kind, output.float(), x, level)

        draws = Draws(Noise(seed), numbers)
        for step in teacher_forced(denoiser, (*self.levels, CLEAN), x0, solver, draws, clip=False):
            tape.update(step)


def _check(level: Level, kind: str, tensors: Mapping[str, Any]) -> None:
    """Refuse what cannot be a step.

    Raises:
        HookError: naming what is wrong.
    """
    if kind not in KINDS:
        raise HookError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if not (0 <= level.alpha < math.inf and 0 < level.sigma < math.inf and math.isfinite(level.t)):
        raise HookError(f"a level needs alpha >= 0 and sigma > 0, not {level.alpha:g} and {level.sigma:g}")
    if kind == "eps" and not level.alpha:
        raise HookError("an eps prediction says nothing of the data where alpha is 0")
    if kind == "flow" and abs(level.alpha + level.sigma - 1) > _ROUNDING:
        raise HookError(f"a flow has alpha + sigma = 1, not {level.alpha:g} + {level.sigma:g}")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.ndim != 4 or not tensor.is_floating_point():
            raise HookError(f"{name} must be a float tensor [B, C, H, W]")
        if tensor.shape != tensors["x"].shape:
            raise HookError(f"{name} is {tuple(tensor.shape)}, x is {tuple(tensors['x'].shape)}; they must agree")
        if name == "x_next" and tensor.data_ptr() == tensors["x"].data_ptr():
            raise HookError("x and x_next are one tensor; give x as it was before the step: x.clone()")
