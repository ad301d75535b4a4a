"""Trained networks as denoisers in the general frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.diffusion.types import Level, Prediction

__all__ = ["EpsDenoiser"]


class EpsDenoiser:
    """A network that predicts eps from (x, t), with or without a learned variance.

    Args:
        network: called as ``network(x, t, class_labels).sample`` with t [B]; C or 2C output channels.
    """

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Predict eps and x0 of x [B, C, H, W] at a level of the training index ``level.t`` (from 0)."""
        t = torch.full((len(x),), level.t, device=x.device)
        output = self.network(x, t, cond).sample
        channels = x.shape[1]
        eps = output[:, :channels]
        fraction = output[:, channels:] if output.shape[1] == 2 * channels else None
        return Prediction(eps, (x - level.sigma * eps) / level.alpha, fraction)
