"""Radially averaged power spectral density (RAPSD) of images.

With F the orthonormal 2-D Fourier transform and P = |F|^2 averaged over channels, bin r holds the mean of P over
integer frequencies (u, v) with floor(sqrt(u^2 + v^2) + 1/2) = r. White unit noise gives 1 in every bin; bin 0 is the
constant component; bins above H/2 are the incomplete corner rings. No window is applied.

The energies of the four sub-bands of one orthonormal Haar step are the ones that W++ and DCW (Yu & Zhan 2025, Yu et al.
2026) refer to. White unit noise gives 1 in each of these too.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RadialBins:
    """The rings of integer frequencies of an image size.

    Args:
        height: H.
        width: W.
        device: device of the images.
    """

    def __init__(self, height: int, width: int, device: torch.device | str = "cpu") -> None:
        rows = torch.fft.fftfreq(height, 1 / height)  # u
        columns = torch.fft.fftfreq(width, 1 / width)  # v
        radius = torch.floor(torch.sqrt(rows[:, None] ** 2 + columns[None] ** 2) + 0.5).long().flatten()
        self.count = int(radius.max()) + 1
        members = torch.nn.functional.one_hot(radius, self.count).float()
        self._weights = (members / members.sum(0)).to(device)  # [H*W, bins]

    def density(self, images: Tensor) -> Tensor:
        """Return the RAPSD of each image, [B, bins], of float images [B, C, H, W]."""
        power = torch.fft.fft2(images, norm="ortho").abs().square().mean(dim=1)  # P, [B, H, W]
        return power.flatten(1) @ self._weights.to(power.dtype)


def haar_energy(images: Tensor) -> Tensor:
    """Return the mean squared Haar coefficient of each sub-band, [B, 4] in the order LL, LH, HL, HH.

    The first letter is the band along rows (vertically), the second along columns; L is (a + b) / sqrt(2), H is
    (a - b) / sqrt(2) of neighbours. A last odd row or column is left out.

    Args:
        images: float [B, C, H, W], H and W at least 2.
    """
    # Pairs of neighbours only: an odd last row or column is left out.
    even = images[..., : images.shape[-2] // 2 * 2, : images.shape[-1] // 2 * 2]
    top, bottom = even[..., ::2, :], even[..., 1::2, :]
    bands = []
    for rows in (top + bottom, top - bottom):
        left, right = rows[..., ::2], rows[..., 1::2]
        bands += [(left + right) / 2, (left - right) / 2]  # two steps of 1 / sqrt(2)
    return torch.stack([band.square().flatten(1).mean(1) for band in bands], dim=1)
