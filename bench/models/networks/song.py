"""DDPM++ and NCSN++ (Song et al. 2021) in the form of EDM's SongUNet (Karras et al. 2022, appendix F).

Written from the published description. Parameters and buffers carry the names of the released files, so a state dict
needs no renaming.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.interface import Output
from bench.models.networks.arguments import complete_edm, groups_of, levels_of

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


class SongUNet(nn.Module):
    """DDPM++ (the defaults) or NCSN++ (``fourier``, noise multiplier 2, ``residual`` encoder, filter [1, 3, 3, 1]).

    Args:
        config: the published constructor's arguments, see :data:`bench.models.edm_arguments.ARCHITECTURES`;
            ``img_resolution``, ``in_channels`` and ``out_channels`` have no default.

    Raises:
        CheckpointError: an argument is unknown or out of range.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config = complete_edm("SongUNet", config)
        base = config["model_channels"]
        width, hidden = base * config["channel_mult_noise"], base * config["channel_mult_emb"]
        self.map_noise = Fourier(width) if config["embedding_type"] == "fourier" else Sinusoids(width)
        self.map_label = nn.Linear(config["label_dim"], width) if config["label_dim"] else None
        if config["augment_dim"]:  # held for the file's sake: it adds nothing to images that were not augmented
            self.map_augment = nn.Linear(config["augment_dim"], width, bias=False)
        self.map_layer0 = nn.Linear(width, hidden)
        self.map_layer1 = nn.Linear(hidden, hidden)
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        self._add_decoder(self._add_encoder())

    def _add_encoder(self) -> list[int]:
        """Make the way down; return the channels of the states it keeps."""
        config = self.config
        taps, carried, width = config["resample_filter"], config["in_channels"], config["model_channels"]
        skips: list[int] = []
        for level, (size, out, attended) in enumerate(levels_of(config)):
            if level == 0:
                self.enc[_name(size, "conv")] = Conv(config["in_channels"], width, 3)
            else:
                self.enc[_name(size, "down")] = Block(width, width, config, direction="down")
                if config["encoder_type"] == "skip":
                    self.enc[_name(size, "aux_down")] = Resample("down", taps)
                    self.enc[_name(size, "aux_skip")] = Conv(carried, width, 1)
                elif config["encoder_type"] == "residual":
                    self.enc[_name(size, "aux_residual")] = ConvThenHalve(carried, width, taps)
                    carried = width
            skips.append(width)
            for block in range(config["num_blocks"]):
                self.enc[_name(size, f"block{block}")] = Block(width, out, config, attended=attended)
                width = out
                skips.append(width)
        return skips

    def _add_decoder(self, skips: list[int]) -> None:
        """Make the way up; only the last block of an attended level has attention."""
        config = self.config
        levels = levels_of(config)
        width = skips[-1]
        for level, (size, out, attended) in reversed(list(enumerate(levels))):
            deepest = level == len(levels) - 1
            if deepest:
                self.dec[_name(size, "in0")] = Block(width, width, config, attended=True)
                self.dec[_name(size, "in1")] = Block(width, width, config)
            else:
                self.dec[_name(size, "up")] = Block(width, width, config, direction="up")
            for block in range(config["num_blocks"] + 1):
                attends = attended and block == config["num_blocks"]
                self.dec[_name(size, f"block{block}")] = Block(width + skips.pop(), out, config, attended=attends)
                width = out
            if config["decoder_type"] == "skip" and not deepest:
                self.dec[_name(size, "aux_up")] = Resample("up", config["resample_filter"])
            if config["decoder_type"] == "skip" or level == 0:
                self.dec[_name(size, "aux_norm")] = norm(width)
                self.dec[_name(size, "aux_conv")] = Conv(width, config["out_channels"], 3)

    def forward(self, x: Tensor, noise: Tensor, class_labels: Tensor | None = None) -> Output:
        """Run the network.

        Args:
            x: scaled states, float32 [B, C, H, W], of any size that is a multiple of the config's smallest.
            noise: c_noise, float32 [B].
            class_labels: int64 [B]; None is no class, in EDM an all-zero label. Ignored by an unconditional network.
        """
        emb = self._embed(noise, class_labels)
        return Output(self._decode(self._encode(x, emb), emb))

    def _embed(self, noise: Tensor, class_labels: Tensor | None) -> Tensor:
        emb = self.map_noise(noise)
        if self.map_label is not None:
            classes = self.map_label.in_features
            label = torch.zeros(len(noise), classes, device=noise.device, dtype=noise.dtype)
            if class_labels is not None:
                label = F.one_hot(class_labels, classes).to(noise.dtype)
            emb = emb + self.map_label(math.sqrt(classes) * label)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def _encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Return the states that the decoder takes up again, the last of them where it starts."""
        skips: list[Tensor] = []
        carried = x
        for level, (size, _, _) in enumerate(levels_of(self.config)):
            x = self.enc[_name(size, "conv")](x) if level == 0 else self.enc[_name(size, "down")](x, emb)
            if level > 0 and self.config["encoder_type"] == "skip":
                carried = self.enc[_name(size, "aux_down")](carried)
                x = x + self.enc[_name(size, "aux_skip")](carried)
            elif level > 0 and self.config["encoder_type"] == "residual":
                x = carried = SQRT_HALF * (x + self.enc[_name(size, "aux_residual")](carried))
            skips.append(x)
            for block in range(self.config["num_blocks"]):
                x = self.enc[_name(size, f"block{block}")](x, emb)
                skips.append(x)
        return skips

    def _decode(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        x = skips[-1]
        image: Tensor | None = None
        for size, _, _ in reversed(levels_of(self.config)):
            for entry in ("in0", "in1", "up"):
                if _name(size, entry) in self.dec:
                    x = self.dec[_name(size, entry)](x, emb)
            for block in range(self.config["num_blocks"] + 1):
                x = self.dec[_name(size, f"block{block}")](torch.cat([x, skips.pop()], dim=1), emb)
            if _name(size, "aux_conv") in self.dec:
                added = self.dec[_name(size, "aux_conv")](F.silu(self.dec[_name(size, "aux_norm")](x)))
                image = added if image is None else self.dec[_name(size, "aux_up")](image) + added
        assert image is not None  # the finest level always draws
        return image


def _name(size: int, role: str) -> str:
    return f"{size}x{size}_{role}"
