"""Conditional models in a latent space: ``UNet2DConditionModel`` with given embeddings, as denoiser and in training.

Latents and embeddings are made beforehand, by the model's own autoencoder and text encoders (``docs/latent.md``); the
walk, its instruments and the training step know neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.types import Level, Prediction
from bench.models.checkpoints.diffusers_model import build_unet, training_process
from bench.models.checkpoints.hub import Parts, read_json
from bench.models.denoisers.parameterization import CONVERSIONS, as_prediction, per_image
from bench.runtime.errors import CheckpointError


@dataclass(frozen=True)
class Conditioning:
    """What a network is conditioned on.

    Attributes:
        embeddings: [1, L, D] shared by all samples, or [M, L, D] to choose from.
        added: SDXL's ``text_embeds`` [1 or M, P] and ``time_ids`` [1 or M, 6]; None for other models.

    Raises:
        ValueError: embeddings of another shape, or numbers of rows that do not go together.
    """

    embeddings: Tensor
    added: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that no network takes."""
        if self.embeddings.ndim != 3:
            raise ValueError(f"embeddings must be [1 or M, L, D], not {tuple(self.embeddings.shape)}")
        rows = {len(tensor) for tensor in (self.embeddings, *(self.added or {}).values())} - {1}
        if len(rows) > 1:
            raise ValueError(
                f"embeddings and what is added to them have {sorted(rows)} rows; give 1 or as many of each"
            )

    def rows(self, cond: Tensor | None, count: int) -> dict[str, Any]:
        """Return the network's keyword arguments for a batch.

        Args:
            cond: int64 [count], each sample's row; None where all rows are shared, or are the batch's already.
            count: size of the batch.
        """
        added = self.added and {name: _rows(tensor, cond, count) for name, tensor in self.added.items()}
        return {"encoder_hidden_states": _rows(self.embeddings, cond, count), "added_cond_kwargs": added}

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Conditioning:
        """Move to a device and dtype; ``time_ids`` are numbers of pixels, beyond half precision, and stay float32."""
        added = self.added and {
            name: tensor.to(device, torch.float32 if name == "time_ids" else dtype)
            for name, tensor in self.added.items()
        }
        return Conditioning(self.embeddings.to(device, dtype), added)


def _rows(tensor: Tensor, cond: Tensor | None, count: int) -> Tensor:
    if len(tensor) == 1:
        return tensor.expand(count, *tensor.shape[1:])
    if cond is not None:
        return tensor[cond]
    if len(tensor) != count:
        raise ValueError(f"{len(tensor)} embeddings for {count} samples: 'cond' must say which is whose")
    return tensor


class ConditionalDenoiser:
    """A ``UNet2DConditionModel`` as a denoiser of latents, with classifier-free guidance if asked.

    Guided, the output is ``u + scale * (c - u)`` of the outputs without (u) and with (c) the condition (Ho & Salimans
    2022, eq. 6, where w = scale - 1), two network calls for one of the walk's.

    Args:
        unet: called as ``unet(x, t, encoder_hidden_states=..., added_cond_kwargs=...).sample``.
        prediction: ``eps``, ``v`` or ``x0``.
        embeddings: [1, L, D] for all samples, or [M, L, D], of which ``cond`` chooses.
        added: SDXL's ``text_embeds`` and ``time_ids``, with one row or as many as embeddings.
        unconditional: what stands for no condition, with one row or M; needed with ``guidance_scale`` other than 1.
        guidance_scale: 1 is the plain conditional model, bit for bit.

    Raises:
        ValueError: no such prediction, guidance without its embeddings, or a condition the network cannot take.
    """

    def __init__(
        self,
        unet: Any,
        prediction: str,
        embeddings: Tensor,
        added: Mapping[str, Tensor] | None = None,
        *,
        unconditional: Conditioning | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        if prediction not in CONVERSIONS:
            raise ValueError(f"unknown prediction {prediction!r}; choose {', '.join(CONVERSIONS)}")
        if guidance_scale != 1.0 and unconditional is None:
            raise ValueError("guidance needs the embeddings that stand for no condition")
        self.unet, self.prediction, self.scale = unet, prediction, guidance_scale
        self.device, self.dtype = unet.device, unet.dtype
        self.condition = self._fitting(Conditioning(embeddings, added))
        self.unconditional = unconditional and self._fitting(unconditional)

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Predict eps and x0 of latents x [B, C, h, w]; ``cond`` int64 [B] chooses each sample's embeddings."""
        output = self._ask(x, level, self.condition, cond)
        if self.scale != 1.0 and self.unconditional is not None:
            without = self._ask(x, level, self.unconditional, cond)
            output = without + self.scale * (output - without)
        return as_prediction(self.prediction, output, x, level)

    def _fitting(self, condition: Conditioning) -> Conditioning:
        """Return the condition where the network is; refuse one that the network cannot take."""
        config, width = self.unet.config, condition.embeddings.shape[-1]
        if config.encoder_hid_dim is None and config.cross_attention_dim != width:
            raise ValueError(f"the network takes embeddings of {config.cross_attention_dim} numbers, not {width}")
        needed = {"text_embeds", "time_ids"} if config.addition_embed_type == "text_time" else set()
        if needed != set(condition.added or ()):
            names = " and ".join(sorted(needed)) or "nothing"
            raise ValueError(f"the network takes {names} beside the embeddings; see docs/latent.md")
        return condition.to(self.device, self.dtype)

    def _ask(self, x: Tensor, level: Level, condition: Conditioning, cond: Tensor | None) -> Tensor:
        return self.unet(x.to(self.dtype), per_image(level.t, x), **condition.rows(cond, len(x))).sample.to(x.dtype)


@dataclass(frozen=True)
class LatentModel:
    """A conditional network and how it was trained.

    Attributes:
        unet: a ``UNet2DConditionModel`` in evaluation mode, without gradients.
        schedule: a name of :func:`bench.diffusion.schedules.betas`.
        T: training length.
        prediction: ``eps``, ``v`` or ``x0``.
    """

    unet: Any
    schedule: str
    T: int
    prediction: str


def load_latent(path: Path, dtype: torch.dtype = torch.float32) -> LatentModel:
    """Load the U-Net and read the scheduler of a pipeline's folder; autoencoder and text encoders may be missing.

    Args:
        path: with ``unet/`` and ``scheduler/``, or flat.
        dtype: of the weights in memory.

    Raises:
        CheckpointError: a part is missing or damaged, another kind of network, or settings that cannot be used.
    """
    import diffusers  # slow to import: only whoever needs a network pays

    parts = Parts.of(path)
    config = read_json(parts.config)
    if config.get("_class_name") != "UNet2DConditionModel":
        raise CheckpointError(f"{parts.config} describes no UNet2DConditionModel; pixel models need no embeddings")
    schedule, T, prediction = training_process(parts.scheduler)
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    unet = build_unet(diffusers.UNet2DConditionModel, settings, parts, dtype)
    if unet.config.out_channels not in (unet.config.in_channels, 2 * unet.config.in_channels):
        raise CheckpointError(f"{parts.config}: a network of more than latents (inpainting) cannot be used")
    return LatentModel(unet, schedule, T, prediction)
