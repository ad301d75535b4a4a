"""Radially averaged power spectral density (RAPSD) of images.

With F the orthonormal 2-D Fourier transform and P = |F|^2 averaged over channels, bin r holds the mean of P over
integer frequencies (u, v) with floor(sqrt(u^2 + v^2) + 1/2) = r. White unit noise gives 1 in every bin; bin 0 is the
constant component; bins above H/2 are the incomplete corner rings. No window is applied.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RadialBins"]


class RadialBins:
    """The rings of an image size, ready to average spectra over.

    Args:
        height: H.
        width: W.
        device: where the images live.
    """

    def __init__(self, height: int, width: int, device: torch.device | str = "cpu") -> None:
        rows = torch.fft.fftfreq(height, 1 / height)
        columns = torch.fft.fftfreq(width, 1 / width)
        radius = torch.floor(torch.sqrt(rows[:, None] ** 2 + columns[None] ** 2) + 0.5).long().flatten()
        self.count = int(radius.max()) + 1
        members = torch.nn.functional.one_hot(radius, self.count).float()
        self._weights = (members / members.sum(0)).to(device)  # [H*W, bins]

    def density(self, images: Tensor) -> Tensor:
        """Return the RAPSD of each image, [B, bins], of float images [B, C, H, W]."""
        power = torch.fft.fft2(images, norm="ortho").abs().square().mean(dim=1)
        return power.flatten(1) @ self._weights
