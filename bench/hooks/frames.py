"""Frames of schedulers: the levels at which a loop asks its network, and what the answers mean.

Every state is x = alpha x0 + sigma eps. The schedulers are those of diffusers, told by the names of their classes.
Variance-preserving ones have alpha^2 + sigma^2 = 1, sigma-frame ones alpha = 1, flows alpha = 1 - sigma. t is what the
scheduler calls a timestep, counted from 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.types import Call, Level, Prediction
from bench.models.denoisers.parameterization import as_prediction
from bench.runtime.errors import UserError

KINDS = ("eps", "v", "x0", "flow")
_NAMES = {
    "epsilon": "eps", "v_prediction": "v", "sample": "x0", "original_sample": "x0", "flow_prediction": "flow",
}  # fmt: skip
_ROUNDING = 1e-6  # of alpha_bar in float32
_END = -1  # t of a last level that no call is made at


class HookError(UserError):
    """A loop cannot be recorded; the message says why and how to mend it."""


def preserving(sigma: float) -> tuple[float, float]:
    """Return (alpha, sigma) of a variance-preserving state, from the ratio sigma / alpha."""
    alpha = (1 + sigma**2) ** -0.5
    return alpha, sigma * alpha


def _exploding(sigma: float) -> tuple[float, float]:
    return 1.0, sigma


def _flowing(sigma: float) -> tuple[float, float]:
    return 1 - sigma, sigma


@dataclass(frozen=True)
class Frame:
    """What a loop's calls mean.

    Attributes:
        calls: the network calls of one walk, in order; each has the levels of a typed step.
        times: what the scheduler calls the timestep of each call.
        kind: one of KINDS, what the network predicts.
        data_scale: EDM's sigma_data where the network is preconditioned as there (Karras et al. 2022, table 1).
    """

    calls: tuple[Call, ...]
    times: tuple[float, ...]
    kind: str
    data_scale: float | None = None

    @property
    def stages(self) -> int:
        """Return the most calls that a step makes."""
        return 1 + max(call.stage for call in self.calls)

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """Return the solver index of each call: steps that remain, 0 for the last."""
        remaining = sum(call.completes for call in self.calls)
        indices = []
        for call in self.calls:
            indices.append(remaining - 1)
            remaining -= call.completes
        return tuple(indices)

    def prediction(self, output: Tensor, x: Tensor, level: Level) -> Prediction:
        """Return what an output [B, C or 2C, H, W] says of the state x [B, C, H, W] at a level."""
        if self.data_scale is None:
            return converted(self.kind, output, x, level)
        skip, scale = self._preconditioning(level)
        x0 = skip * x + scale * output
        return Prediction((x - x0) / level.sigma, x0)

    def output(self, prediction: Prediction, x: Tensor, level: Level) -> Tensor:
        """Return what a network would have said to mean a prediction: the inverse of :meth:`prediction`."""
        if self.data_scale is not None:
            skip, scale = self._preconditioning(level)
            return (prediction.x0 - skip * x) / scale
        if self.kind == "v":
            level = _normalised(level)
            return level.alpha * prediction.eps - level.sigma * prediction.x0
        return {"eps": prediction.eps, "x0": prediction.x0, "flow": prediction.eps - prediction.x0}[self.kind]

    def _preconditioning(self, level: Level) -> tuple[float, float]:
        """Return c_skip and c_out; a v network has the other sign."""
        assert self.data_scale is not None  # its callers asked
        total = level.sigma**2 + self.data_scale**2
        sign = -1 if self.kind == "v" else 1
        return self.data_scale**2 / total, sign * level.sigma * self.data_scale / total**0.5


def _normalised(level: Level) -> Level:
    """Return the level of the same signal-to-noise ratio with alpha^2 + sigma^2 = 1."""
    size = (level.alpha**2 + level.sigma**2) ** 0.5
    return replace(level, alpha=level.alpha / size, sigma=level.sigma / size)


def converted(kind: str, output: Tensor, x: Tensor, level: Level) -> Prediction:
    """Return what an output of one of KINDS says of the state x [B, C, H, W] at a level.

    v is alpha eps - sigma x0 of the state scaled to alpha^2 + sigma^2 = 1; flow is eps - x0 where alpha + sigma = 1.
    """
    if kind == "v":
        size = (level.alpha**2 + level.sigma**2) ** 0.5
        return as_prediction("v", output, x / size, _normalised(level))
    return as_prediction(kind, output, x, level)


def used(scheduler: Any, prediction: Prediction, x: Tensor, level: Level, arguments: Mapping[str, Any]) -> Prediction:
    """Return the prediction that a scheduler's update uses: x0 clipped or thresholded where its settings say so.

    Args:
        scheduler: of diffusers.
        prediction: what the network says, guided.
        x: the state.
        level: of the state.
        arguments: of ``scheduler.step``. DDIM keeps the raw eps unless ``use_clipped_model_output`` is set.
    """
    config, x0 = scheduler.config, prediction.x0
    if config.get("thresholding"):
        x0 = scheduler._threshold_sample(x0)
    elif config.get("clip_sample"):
        bound = config.get("clip_sample_range", 1.0)
        x0 = x0.clamp(-bound, bound)
    else:
        return prediction
    if type(scheduler).__name__ == "DDIMScheduler" and not arguments.get("use_clipped_model_output"):
        return replace(prediction, x0=x0)
    return replace(prediction, x0=x0, eps=(x - level.alpha * x0) / level.sigma)


def frame_of(scheduler: Any) -> Frame:
    """Return the frame of a scheduler that :func:`check_scheduler` lets through and whose timesteps are set.

    Raises:
        HookError: its timesteps are another number than its calls.
    """
    config = scheduler.config
    times = tuple(float(t) for t in scheduler.timesteps.tolist())
    calls = SCHEDULERS[type(scheduler).__name__](scheduler, times)
    if len(calls) != len(times) or not calls:
        raise HookError(f"{type(scheduler).__name__} has {len(times)} timesteps for {len(calls)} calls")
    kind = _NAMES[config.get("prediction_type", "flow_prediction")]
    return Frame(calls, times, kind, config.get("sigma_data"))


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler of another kind.

    Raises:
        HookError: naming it, and what a description would need.
    """
    name = type(scheduler).__name__
    if name not in SCHEDULERS:
        raise HookError(
            f"no frame of {name} is known; a description would need alpha and sigma of the state at each call, what the"
            " network predicts, and which calls belong to one step: give them to log.step(...) in a loop of your own"
        )
    prediction = scheduler.config.get("prediction_type", "flow_prediction")
    if prediction not in _NAMES or scheduler.config.get("invert_sigmas"):
        raise HookError(f"{name} with prediction_type {prediction!r} or inverted sigmas has no known frame")


def _levels(times: tuple[float, ...], numbers: list[tuple[float, float]]) -> list[Level]:
    """Return levels of (alpha, sigma), one more than there are times; KDPM2 has further numbers, all 0."""
    return [Level(t, *pair) for t, pair in zip((*times, _END), numbers, strict=False)]


def _by_sigma(frame: Callable[[float], tuple[float, float]]) -> Callable[..., tuple[Call, ...]]:
    """Return the reader of schedulers with a sigma for each call and one at the end."""

    def calls(scheduler: Any, times: tuple[float, ...]) -> tuple[Call, ...]:
        chosen = _flowing if scheduler.config.get("use_flow_sigmas") else frame
        levels = _levels(times, [chosen(sigma) for sigma in scheduler.sigmas.tolist()])
        return tuple(Call(0, level, level_next, True) for level, level_next in pairwise(levels))

    return calls


def _corrected(
    frame: Callable[[float], tuple[float, float]], second: str = "sigmas"
) -> Callable[..., tuple[Call, ...]]:
    """Return the reader of schedulers whose calls alternate between a step's first and second stage; the last is alone.

    Of Heun's every level but the first and last stands there twice; KDPM2's ``second`` stage stands between the levels.
    """

    def calls(scheduler: Any, times: tuple[float, ...]) -> tuple[Call, ...]:
        outer = _levels(times, [frame(sigma) for sigma in scheduler.sigmas.tolist()])
        between = _levels(times, [frame(sigma) for sigma in getattr(scheduler, second).tolist()])
        return tuple(
            Call(1, between[k], outer[k + 1], True) if k % 2 else Call(0, level, between[k + 1], k == len(outer) - 2)
            for k, level in enumerate(outer[:-1])
        )

    return calls


def _training(scheduler: Any, t: float) -> Level:
    """Return the level of a training index; below 0 it is the one that the scheduler ends at.

    The scheduler's alpha_bar is float32, which leaves 1 - alpha_bar three digits at the end; its betas give them all.
    """
    end = float(getattr(scheduler, "final_alpha_cumprod", 1.0))  # DDPM has none and ends in clean data
    index = int(t) if t >= 0 else 0
    kept, betas = float(scheduler.alphas_cumprod[index]), scheduler.betas.cpu().double()
    exact = float((1 - betas)[: index + 1].prod())
    is_rounded = scheduler.alphas_cumprod.dtype != torch.float64 and abs(kept - exact) < _ROUNDING
    kept = exact if is_rounded else kept
    kept = 1.0 if t < 0 and end == 1 else kept
    return Level(t if t >= 0 else _END, kept**0.5, max(1 - kept, 0.0) ** 0.5)


def _ddpm(scheduler: Any, times: tuple[float, ...]) -> tuple[Call, ...]:
    level, before = partial(_training, scheduler), scheduler.previous_timestep
    return tuple(Call(0, level(t), level(float(before(int(t)))), True) for t in times)


def _spacing(scheduler: Any) -> int:
    return int(scheduler.config.num_train_timesteps // scheduler.num_inference_steps)


def _ddim(scheduler: Any, times: tuple[float, ...]) -> tuple[Call, ...]:
    far = _spacing(scheduler)
    return tuple(Call(0, _training(scheduler, t), _training(scheduler, t - far), True) for t in times)


def _pndm(scheduler: Any, times: tuple[float, ...]) -> tuple[Call, ...]:
    """Return the calls of PNDM: Runge-Kutta steps of four calls unless skipped, then multistep ones.

    Without Runge-Kutta the second call corrects the first step, as Heun's does.
    """
    far, rk = _spacing(scheduler), 0 if scheduler.config.skip_prk_steps else len(scheduler.prk_timesteps)
    calls = []
    for k, t in enumerate(times):
        stage, reached = 0, t - far
        if k < rk:
            stage, reached = k % 4, t - (0 if k % 2 else far // 2)
        elif not rk and k == 1:
            stage, reached = 1, t
        completes = stage == 3 if k < rk else k > 0 or bool(rk) or len(times) == 1
        calls.append(Call(stage, _training(scheduler, t), _training(scheduler, reached), completes))
    return tuple(calls)


SCHEDULERS: Mapping[str, Callable[[Any, tuple[float, ...]], tuple[Call, ...]]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": _ddim,
    "PNDMScheduler": _pndm,
    "DEISMultistepScheduler": _by_sigma(preserving),
    "DPMSolverMultistepScheduler": _by_sigma(preserving),
    "DPMSolverSinglestepScheduler": _by_sigma(preserving),
    "UniPCMultistepScheduler": _by_sigma(preserving),
    "EulerDiscreteScheduler": _by_sigma(_exploding),
    "EulerAncestralDiscreteScheduler": _by_sigma(_exploding),
    "EDMEulerScheduler": _by_sigma(_exploding),
    "EDMDPMSolverMultistepScheduler": _by_sigma(_exploding),
    "HeunDiscreteScheduler": _corrected(_exploding),
    "KDPM2DiscreteScheduler": _corrected(_exploding, "sigmas_interpol"),
    "FlowMatchEulerDiscreteScheduler": _by_sigma(_flowing),
    "FlowMatchHeunDiscreteScheduler": _corrected(_flowing),
}


def restarted(scheduler: Any, position: int) -> Any:
    """Return a copy of a scheduler, without memory, for a step that begins at the call of a position.

    Args:
        scheduler: as it was after its timesteps were set and before its first step.
        position: of a call, 0 the first of all timesteps.
    """
    fresh = copy.deepcopy(scheduler)
    if hasattr(fresh, "set_begin_index"):
        fresh._step_index = None  # scaling the first input may have set it
        fresh.set_begin_index(position)
    elif hasattr(fresh, "ets"):
        fresh.counter = position
    return fresh


def primed(fresh: Any, output: Tensor) -> None:
    """Give a restarted PNDM its memory: as if all outputs before had been this one, its step is one of first order.

    The other multistep methods begin with a step of first order by themselves.
    """
    if hasattr(fresh, "ets") and fresh.counter:
        is_multistep = fresh.config.skip_prk_steps or fresh.counter >= len(fresh.prk_timesteps)
        fresh.ets = [output] * 3 if is_multistep else []
