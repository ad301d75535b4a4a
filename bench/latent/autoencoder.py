"""The autoencoder of a latent model as a decoder: samples and real latents become images, which then are scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.data import Dataset, quantize
from bench.latent.inputs import LatentData
from bench.models.checkpoints.diffusers_model import build_unet
from bench.models.checkpoints.hub import Parts, read_json
from bench.models.checkpoints.state_dicts import joint_hash
from bench.runtime.errors import CheckpointError, quoted

_BATCH = 8


class Decoder:
    """An ``AutoencoderKL`` in diffusers format, of which the decoder is used.

    Args:
        path: its folder, with ``config.json`` and its weights as safetensors.
        device: where it computes.

    Raises:
        CheckpointError: missing, damaged or of another kind.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        import diffusers  # slow to import: only whoever needs a network pays

        parts, config = _read(path)
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        self.network: Any = build_unet(diffusers.AutoencoderKL, settings, parts).to(device)
        self.device = torch.device(device)

    def __call__(self, latents: Tensor, mode: str = "round") -> Tensor:
        """Return images, uint8 [B, 3, H, W] on the device, of scaled latents [B, C, h, w]; ``mode`` as for pixels."""
        config = self.network.config
        shift = getattr(config, "shift_factor", None) or 0.0
        x = latents.to(self.device, torch.float32) / config.scaling_factor + shift
        with torch.no_grad():
            images = torch.cat([self.network.decode(part).sample for part in x.split(_BATCH)])
        return quantize(images, mode)

    def decoded(self, data: LatentData) -> Dataset:
        """Return the images of real latents, which samples are compared with."""
        images = torch.cat([self(part).cpu() for part in data.images.split(_BATCH)])
        return Dataset("decoded-latents", images, data.labels, data.heldout)


def check_decoder(path: Path, channels: int) -> None:
    """Refuse an autoencoder of latents with another number of channels, without loading it.

    Raises:
        CheckpointError: or one that is missing or of another kind.
    """
    latent = _read(path)[1].get("latent_channels", 4)
    if latent != channels:
        raise CheckpointError(f"the autoencoder {path} takes latents of {latent} channels, the model's have {channels}")


def hash_decoder(path: Path) -> str:
    """Return a sha256 over the configuration and the weights, hexadecimal."""
    parts, _ = _read(path)
    return joint_hash(parts.config, parts.weights)


def _read(path: Path) -> tuple[Parts, dict[str, Any]]:
    parts = Parts.alone(path)
    config = read_json(parts.config)
    if config.get("_class_name") != "AutoencoderKL":
        raise CheckpointError(f"{parts.config} is of a {quoted(config.get('_class_name'))}; only AutoencoderKL decodes")
    return parts, config
