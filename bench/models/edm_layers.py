"""The layers of DDPM++ and NCSN++ (Song et al. 2021), as Karras et al. 2022, appendix F, set them.

Parameters and buffers carry the names of EDM's released files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.edm_arguments import groups_of

__all__ = ["SQRT_HALF", "Block", "Conv", "ConvThenHalve", "Fourier", "Resample", "Sinusoids", "norm"]

SQRT_HALF = math.sqrt(0.5)  # every sum of two branches is scaled back to unit variance
_LONGEST_PERIOD = 10000.0

Direction = Literal["up", "down"]


def _low_pass(taps: Sequence[float]) -> Tensor:
    """Return the separable filter [1, 1, n, n] of sum 1."""
    row = torch.tensor(taps, dtype=torch.float32)
    square = torch.outer(row, row)
    return (square / row.sum() ** 2)[None, None]


def _halve(x: Tensor, taps: Tensor, padding: int) -> Tensor:
    channels = x.shape[1]
    return F.conv2d(x, taps.expand(channels, -1, -1, -1), stride=2, padding=padding, groups=channels)


def _resample(x: Tensor, taps: Tensor, direction: Direction) -> Tensor:
    """Filter and halve, or double and filter, each channel of x [B, C, H, W]."""
    padding = (taps.shape[-1] - 1) // 2
    if direction == "down":
        return _halve(x, taps, padding)
    channels = x.shape[1]
    spread = 4 * taps.expand(channels, -1, -1, -1)  # zeros between the pixels take three quarters of the mean
    return F.conv_transpose2d(x, spread, stride=2, padding=padding, groups=channels)


class Resample(nn.Module):
    """Resampling alone, of the image that the ``skip`` architectures carry along, to half or double its size."""

    resample_filter: Tensor

    def __init__(self, direction: Direction, taps: Sequence[float]) -> None:
        super().__init__()
        self.direction = direction
        self.register_buffer("resample_filter", _low_pass(taps))

    def forward(self, x: Tensor) -> Tensor:
        """Resample x."""
        return _resample(x, self.resample_filter, self.direction)


class Conv(nn.Conv2d):
    """A convolution that keeps the size, after resampling where a direction is given."""

    resample_filter: Tensor

    def __init__(
        self, into: int, out: int, kernel: int, direction: Direction | None = None, taps: Sequence[float] = ()
    ) -> None:
        super().__init__(into, out, kernel, padding=kernel // 2)
        self.direction = direction
        if direction is not None:
            self.register_buffer("resample_filter", _low_pass(taps))

    def forward(self, x: Tensor) -> Tensor:
        """Resample x, where a direction was given, and convolve it."""
        return super().forward(x if self.direction is None else _resample(x, self.resample_filter, self.direction))


class ConvThenHalve(Conv):
    """NCSN++'s residual input path convolves at the finer size, then filters and halves once over the padded result."""

    def __init__(self, into: int, out: int, taps: Sequence[float]) -> None:
        super().__init__(into, out, 3, "down", taps)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, out, H / 2, W / 2] for x [B, into, H, W]."""
        padding = 1 + (self.resample_filter.shape[-1] - 1) // 2
        return _halve(F.conv2d(x, self.weight, self.bias, padding=padding), self.resample_filter, 0)


def norm(channels: int) -> nn.GroupNorm:
    """Return a group norm with EDM's number of groups and Song et al.'s epsilon."""
    return nn.GroupNorm(groups_of(channels), channels, eps=1e-6)


class Block(nn.Module):
    """A residual block, optionally resampling, optionally followed by attention with one head."""

    def __init__(
        self,
        into: int,
        out: int,
        config: Mapping[str, Any],
        *,
        attended: bool = False,
        direction: Direction | None = None,
    ) -> None:
        super().__init__()
        taps = config["resample_filter"]
        self.dropout = config["dropout"]
        self.norm0 = norm(into)
        self.conv0 = Conv(into, out, 3, direction, taps)
        self.affine = nn.Linear(config["model_channels"] * config["channel_mult_emb"], out)
        self.norm1 = norm(out)
        self.conv1 = Conv(out, out, 3)
        self.skip = Conv(into, out, 1, direction, taps) if into != out or direction else None
        self.attended = attended
        if attended:
            self.norm2 = norm(out)
            self.qkv = Conv(out, 3 * out, 1)
            self.proj = Conv(out, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return the block's output for x [B, C, H, W] and the embedding [B, E]."""
        hidden = self.conv0(F.silu(self.norm0(x)))
        hidden = F.silu(self.norm1(hidden + self.affine(emb)[:, :, None, None]))
        hidden = self.conv1(F.dropout(hidden, self.dropout, self.training))
        x = SQRT_HALF * (hidden + (x if self.skip is None else self.skip(x)))
        return SQRT_HALF * (x + self._attention(x)) if self.attended else x

    def _attention(self, x: Tensor) -> Tensor:
        """Return every pixel's weighted mean over all pixels; q, k and v of a channel lie side by side."""
        batch, channels = x.shape[:2]
        q, k, v = self.qkv(self.norm2(x)).reshape(batch, channels, 3, -1).permute(2, 0, 3, 1)
        mixed = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))


class Fourier(nn.Module):
    """Random Fourier features of the noise, scale 16 (Song et al. 2021): sines, then cosines."""

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(width // 2))

    def forward(self, noise: Tensor) -> Tensor:
        """Return [B, width] for noise [B]."""
        return _waves(noise, 2 * math.pi * self.freqs)


class Sinusoids(nn.Module):
    """Sines, then cosines, of periods that grow geometrically up to 2 pi 10000, both ends included."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pairs = width // 2

    def forward(self, noise: Tensor) -> Tensor:
        """Return [B, width] for noise [B]."""
        steps = torch.arange(self.pairs, dtype=torch.float32, device=noise.device)
        return _waves(noise, (1 / _LONGEST_PERIOD) ** (steps / (self.pairs - 1)))


def _waves(noise: Tensor, frequencies: Tensor) -> Tensor:
    angles = torch.outer(noise, frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
