"""Features of latents, or of pixels that no classifier reads: their own moments."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from bench.data import to_unit

_SQUARES = 4


class LatentFeatures(nn.Module):
    """Means over 4x4 squares, and the standard deviation, of each channel: 17 numbers a channel.

    A Frechet distance on them compares mean, covariance and spread of latents at low resolution. It is no FID.
    """

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return (pooled [B, 17 C], spatial [B, C]), the latter the means alone, of float latents or uint8 pixels."""
        latents = to_unit(latents)
        squares = adaptive_avg_pool2d(latents, _SQUARES).flatten(1)
        spread = latents.flatten(2).std(2)
        return torch.cat([squares, spread], dim=1), latents.flatten(2).mean(2)
