"""Guided-diffusion's noisy classifier, ``EncoderUNetModel``, made from the encoder of :func:`adm_unet`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from bench.models.networks.adm import adm_unet
from bench.models.networks.arguments import GROUPS, widths_of
from bench.runtime.errors import CheckpointError

_POOLS = ("adaptive", "attention")


class AttentionPool(nn.Module):
    """Read an image of features out by attention from its mean (``AttentionPool2d``, after CLIP's).

    Args:
        size: height and width of the features.
        width: their channels.
        head_width: channels of each attention head.
        out_channels: channels of the answer.
    """

    def __init__(self, size: int, width: int, head_width: int, out_channels: int) -> None:
        super().__init__()
        self.heads = width // head_width
        self.positional_embedding = nn.Parameter(torch.randn(width, size**2 + 1) / width**0.5)
        self.qkv_proj = nn.Conv1d(width, 3 * width, 1)
        self.c_proj = nn.Conv1d(width, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, C, H, W] to [B, out_channels]."""
        flat = features.flatten(2)
        tokens = torch.cat([flat.mean(2, keepdim=True), flat], dim=2) + self.positional_embedding
        fused = self.qkv_proj(tokens).unflatten(1, (3, self.heads, -1)).mT  # [B, 3, heads, tokens, head width]
        query, key, value = fused.unbind(1)
        # Only the mean's answer is read, so only the mean asks.
        answer = scaled_dot_product_attention(query[:, :, :1], key, value)  # [B, heads, 1, head width]
        return self.c_proj(answer.flatten(1)[..., None])[..., 0]


class EncoderClassifier(nn.Module):
    """Class logits of a noisy image. Made by :func:`classifier_network`, which checks the arguments.

    Args:
        config: the completed arguments with ``pool``; kept as ``config["guided_diffusion"]``, as :func:`adm_unet` does.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        unet = adm_unet({name: value for name, value in config.items() if name != "pool"})
        self.config = {"guided_diffusion": {**unet.config["guided_diffusion"], "pool": config["pool"]}}
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.conv_in, self.down_blocks, self.mid_block = unet.conv_in, unet.down_blocks, unet.mid_block
        width, classes = widths_of(config)[-1], config["out_channels"]
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-5)
        self.pool: nn.Module
        if config["pool"] == "attention":
            size = config["image_size"] // 2 ** (len(config["channel_mult"]) - 1)
            self.pool = AttentionPool(size, width, config["num_head_channels"], classes)
        else:
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, classes, 1), nn.Flatten())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits [B, classes] of images x [B, C, H, W] in [-1, 1] plus noise, at training indices t [B] from 0.

        The size is fixed to ``image_size`` where the pool is ``attention``.
        """
        embedding = self.time_embedding(self.time_proj(t).to(x.dtype))
        hidden = self.conv_in(x)
        for block in self.down_blocks:
            hidden, _ = block(hidden_states=hidden, temb=embedding)
        hidden = self.mid_block(hidden, embedding)
        return self.pool(silu(self.norm(hidden)))


def classifier_network(config: Mapping[str, Any]) -> EncoderClassifier:
    """Build guided-diffusion's ``EncoderUNetModel`` with fresh weights.

    Args:
        config: its constructor arguments, as of :func:`adm_unet`; ``out_channels`` is the number of classes, ``pool``
            ``attention`` or ``adaptive`` (the default).

    Raises:
        CheckpointError: an argument is unknown or out of range, or ``pool`` is one of the two that no released
            classifier uses.
    """
    full = {"pool": "adaptive", "in_channels": 3, "channel_mult": (1, 2, 4, 8), "num_head_channels": -1, **config}
    if full["pool"] not in _POOLS:
        raise CheckpointError(f"classifier argument 'pool' must be {' or '.join(_POOLS)}, not {full['pool']!r}")
    if not full.get("out_channels") or full.get("num_classes") or full.get("learn_sigma"):
        raise CheckpointError("a classifier needs 'out_channels', the number of classes, and takes no labels itself")
    if full["pool"] == "attention" and (not full.get("image_size") or full["num_head_channels"] == -1):
        raise CheckpointError("a classifier with attention pooling needs 'image_size' and 'num_head_channels'")
    return EncoderClassifier(full)
