"""The loss of a training step in a latent space, with input perturbation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.latent.inputs import Conditioning
from bench.models.train.objectives import Process, make_pair


def latent_loss(
    unet: Any,
    latents: Tensor,
    embeddings: Tensor,
    noise: Tensor,
    t: Tensor,
    process: Process,
    *,
    prediction: str = "eps",
    input_perturbation_gamma: float = 0.0,
    xi: Tensor | None = None,
    added: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return the squared error of a training step with input perturbation, float32 [B].

    The network sees ``alpha x0 + sigma (noise + gamma xi)``; its target is made of the unperturbed noise (Ning et al.
    2023, Algorithm 1; ``input_perturbation_gamma`` of diffengine): ``noise`` for eps, ``alpha noise - sigma x0`` for v.
    At gamma = 0 it is the plain loss, bit for bit, and nothing is drawn.

    Args:
        unet: a ``UNet2DConditionModel``, or anything called like one.
        latents: x0, float32 [B, C, h, w], scaled as the model's autoencoder says.
        embeddings: [B, L, D], or [1, L, D] for all.
        noise: unit normals like latents.
        t: int64 [B], training indices from 0.
        process: constants of the training process.
        prediction: ``eps`` or ``v``.
        input_perturbation_gamma: the perturbation's strength; 0.1 in the paper.
        xi: its unit normals; None draws them from torch's generator.
        added: SDXL's ``text_embeds`` and ``time_ids``.

    Raises:
        ValueError: another prediction, or conditions that are neither one nor B.
    """
    if prediction not in ("eps", "v"):
        raise ValueError(f"no training step for the prediction {prediction!r}; choose eps or v")
    gamma = input_perturbation_gamma
    if gamma:
        xi = torch.randn_like(noise) if xi is None else xi
        y, target = make_pair("ddpm-ip", process, latents, t, noise, xi, gamma)
    else:
        y, target = make_pair("ddpm", process, latents, t, noise, noise, 0.0)
    if prediction == "v":
        target = process.alpha[t] * noise - process.sigma[t] * latents
    condition = Conditioning(embeddings, added)
    more = {name: _rows(tensor, len(y)) for name, tensor in (condition.added or {}).items()}
    output = unet(
        y, t, encoder_hidden_states=_rows(condition.embeddings, len(y)), added_cond_kwargs=more or None
    ).sample
    return (output.float() - target).square().flatten(1).mean(1)


def _rows(tensor: Tensor, count: int) -> Tensor:
    """Return one row a sample, [count, ...]."""
    if len(tensor) == 1:
        return tensor.expand(count, *tensor.shape[1:])
    if len(tensor) != count:
        raise ValueError(f"{len(tensor)} conditions for {count} samples; give one, or one a sample")
    return tensor
