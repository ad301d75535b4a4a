"""Trained networks as denoisers in the general frame, whatever they were trained to predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.schedules import alpha_bars, flow_shift
from bench.diffusion.types import Level, Prediction

# By what a network predicts: its output to (eps, x0), of x = alpha x0 + sigma eps. ``v`` is alpha eps - sigma x0
# (Salimans & Ho 2022, appendix D), which determines both only where alpha^2 + sigma^2 = 1. ``flow`` is the velocity
# eps - x0, which does where alpha + sigma = 1. diffusers calls the four epsilon, v_prediction, sample and
# flow_prediction.
CONVERSIONS: Mapping[str, Callable[[Tensor, Tensor, Level], tuple[Tensor, Tensor]]] = {
    "eps": lambda output, x, level: (output, (x - level.sigma * output) / level.alpha),
    "v": lambda output, x, level: (level.sigma * x + level.alpha * output, level.alpha * x - level.sigma * output),
    "x0": lambda output, x, level: ((x - level.alpha * output) / level.sigma, output),
    "flow": lambda output, x, level: (x + level.alpha * output, x - level.sigma * output),
}


def check_process(schedule: str, T: int, prediction: str) -> None:
    """Refuse a training process that no walk could follow.

    Raises:
        ValueError: an unknown prediction or schedule, or two that do not go together.
    """
    if prediction not in CONVERSIONS:
        raise ValueError(f"unknown prediction {prediction!r}; choose {', '.join(CONVERSIONS)}")
    if not schedule.startswith("flow"):
        if alpha_bars(schedule, T)[-1] == 0 and prediction == "eps":
            raise ValueError(
                f"the schedule {schedule} ends without signal, where eps says nothing of x0; it takes v or x0"
            )
        if prediction == "flow":
            raise ValueError(f"prediction 'flow' needs the schedule flow or flow(SHIFT), not {schedule!r}")
        return
    flow_shift(schedule)
    if prediction not in ("flow", "x0"):
        raise ValueError(f"the schedule {schedule} takes the prediction flow or x0, not {prediction!r}")
    if T < 1:
        raise ValueError(f"a flow's T, what the network is told at pure noise, must be at least 1, not {T}")


def per_image(number: Any, x: Tensor) -> Tensor:
    """Return one of a level's numbers for each image of x [B, C, H, W], [B] on its device.

    A host number is repeated: an int as int64, a float as float32. A tensor [B, 1, 1, 1], of a level that differs
    between images, becomes float32.
    """
    if isinstance(number, Tensor):
        return number.flatten().float()
    return torch.full((len(x),), number, device=x.device)


def as_prediction(prediction: str, output: Tensor, x: Tensor, level: Level) -> Prediction:
    """Split and convert a network's output.

    Args:
        prediction: a name of :data:`CONVERSIONS`.
        output: [B, C or 2C, H, W]; the second half is a raw variance fraction.
        x: the state [B, C, H, W] the network saw.
        level: where it saw it, with sigma above 0.
    """
    channels = x.shape[1]
    fraction = output[:, channels:] if output.shape[1] == 2 * channels else None
    return Prediction(*CONVERSIONS[prediction](output[:, :channels], x, level), fraction)


class NetworkDenoiser:
    """A network asked at (x, t), whatever it predicts, with or without a learned variance.

    Args:
        network: called as ``network(x, t, class_labels).sample`` with t [B]; C or 2C output channels.
        prediction: what the output is, a name of :data:`CONVERSIONS`. ``v`` needs variance-preserving levels, ``flow``
            those of a flow.
        time_factor: the network is asked at this multiple of the level's t.

    Raises:
        ValueError: no such prediction.
    """

    def __init__(self, network: Any, prediction: str = "eps", time_factor: float = 1.0) -> None:
        if prediction not in CONVERSIONS:
            raise ValueError(f"unknown prediction {prediction!r}; choose {', '.join(CONVERSIONS)}")
        self.network, self.prediction, self.time_factor = network, prediction, time_factor

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Predict eps and x0 of x [B, C, H, W] in its own dtype; the network gets float32.

        ``level.t`` is the training index (from 0), of a flow 1000 sigma.
        """
        t = per_image(level.t if self.time_factor == 1 else level.t * self.time_factor, x)
        return as_prediction(self.prediction, self.network(x.float(), t, cond).sample.to(x.dtype), x, level)
