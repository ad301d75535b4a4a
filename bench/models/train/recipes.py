"""Training recipes of the embedded family: one frozen description per checkpoint.

All recipes of a dataset share network, seed, data order and noise; they differ only in the thing studied. ``edm`` and
``flow`` predict no variance, so their networks have half as many outputs, and draw noise levels where the others draw
indices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# guided-diffusion's UNetModel arguments: ADM's choices (scale-shift norm, residual resampling, attention with a
# fixed width per head, learned variance) at a width two CPU cores can afford.
DIGITS_NETWORK: Mapping[str, Any] = {
    "image_size": 8,
    "in_channels": 1,
    "model_channels": 32,
    "out_channels": 2,
    "num_res_blocks": 1,
    "channel_mult": (1, 1),
    "attention_resolutions": (2,),
    "num_head_channels": 32,
    "dropout": 0.0,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "use_new_attention_order": True,
}
# The shape of the published CIFAR-10 networks (three residual blocks a level at width 128), as small as the data allow.
_CIFAR10_NETWORK: Mapping[str, Any] = {
    **DIGITS_NETWORK,
    "image_size": 32,
    "in_channels": 3,
    "out_channels": 6,
    "channel_mult": (1, 2, 2, 2),
    "attention_resolutions": (2, 4),
}
_CIFAR10_16_NETWORK: Mapping[str, Any] = {**_CIFAR10_NETWORK, "image_size": 16, "channel_mult": (1, 2, 2)}
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "digits": DIGITS_NETWORK,
    "digits-affine": DIGITS_NETWORK,
    "digits-affine-small": {**DIGITS_NETWORK, "channel_mult": (1,), "attention_resolutions": ()},
    "cifar10": _CIFAR10_NETWORK,
    "cifar10-wide": {**_CIFAR10_NETWORK, "model_channels": 64},
    "cifar10-16": _CIFAR10_16_NETWORK,
}

CONTINUOUS = ("edm", "flow")  # objectives of noise levels, without a learned variance


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a checkpoint."""

    name: str
    objective: str = "ddpm"  # of bench.models.train.objectives, or one of CONTINUOUS
    gamma: float = 0.0  # strength of input perturbation
    gamma_schedule: str = "constant"  # how gamma depends on the index
    gradient_penalty: float = 0.0  # lambda_GP, on an eighth of each batch
    weight_decay: float = 0.0  # lambda_WD, decoupled (AdamW)
    dream_power: float | None = None  # DREAM's exponent, None for none
    scheduled_sampling: float = 0.0  # the largest share of a batch that scheduled sampling replaces
    rollout_steps: int = 4  # how many steps lead to a replaced input
    rollout_stride: int = 1  # how many indices each of them spans
    dataset: str = "digits"
    schedule: str = "cosine"
    T: int = 1000
    iterations: int = 8000  # optimiser steps
    batch: int = 128  # images, of all processes together
    learning_rate: float = 1e-3
    warmup: int = 200  # iterations of linear rise
    ema: float = 0.999  # decay of the averaged weights, per iteration
    seed: int = 0
    network: str = "digits"  # a key of NETWORKS
    precision: str = "fp32"  # of the network's calls: fp32, or bf16 by autocast
    decay: str = "linear"  # of the rate after the warm-up: to a hundredth, or constant, so that a training can go on
    dropout: float = 0.0  # in the residual blocks
    index_sampling: str = "uniform"  # how training indices are drawn, or loss-second-moment
    slowed: float = 0.0  # MixFlow's gamma: how far beyond its label an input's noise may reach, of what is left
    start: str = ""  # sha256 of the weights that a post-training starts from; random ones where it is empty
    # Share of labels replaced by the null class, one more than the data's (Ho & Salimans 2022, algorithm 1); None for a
    # network without labels.
    label_dropout: float | None = None
    time_dropout: float = 0.0  # share of images whose time the network is not told, for noise awareness guidance

    @property
    def is_continuous(self) -> bool:
        """Tell whether noise levels are drawn, not indices, and no variance is learned."""
        return self.objective in CONTINUOUS

    @property
    def open_ended(self) -> bool:
        """Tell whether no iteration depends on how many there are, so that a finished training can go on."""
        return self.decay == "constant" and not self.scheduled_sampling


_ADM = Recipe("adm")
_ALL = (
    _ADM,
    replace(_ADM, name="adm-ip", objective="ddpm-ip", gamma=0.1),
    replace(_ADM, name="adm-ip-t", objective="ddpm-ip", gamma=0.1, gamma_schedule="linear"),
    replace(_ADM, name="adm-ip-equivalent", objective="ip-equivalent", gamma=0.1),  # a check of theory: not embedded
    replace(_ADM, name="ddpm-y", objective="ddpm-y", gamma=0.1),
    replace(_ADM, name="adm-gp", gradient_penalty=1e-4),
    replace(_ADM, name="adm-wd", weight_decay=0.3),
    replace(_ADM, name="adm-mdss", scheduled_sampling=0.5),
    replace(_ADM, name="adm-dream", dream_power=1.0),
    replace(_ADM, name="edm", objective="edm", schedule="edm"),
    replace(_ADM, name="adm-cond", label_dropout=0.1),
    replace(_ADM, name="adm-null-time", time_dropout=0.1),  # noise awareness guidance asks it without a time
    replace(_ADM, name="flow", objective="flow", schedule="flow"),
    replace(_ADM, name="flow-mix", objective="flow", schedule="flow", slowed=0.8),  # these two go on from a finished
    replace(_ADM, name="adm-mix", slowed=0.8),  # training: --start
)
_CONTROLS = (
    replace(_ADM, name="adm-dropout", dropout=0.1),  # is input perturbation more than a regulariser?
    replace(_ADM, name="adm-lsm", index_sampling="loss-second-moment"),  # as the papers trained
)
# One length for two CPU cores, and one for an accelerator (docs/training.md); bf16 in both.
_CIFAR10 = replace(
    _ADM, dataset="cifar10", network="cifar10", precision="bf16", batch=32, iterations=3200, learning_rate=1e-3
)
_WIDE = replace(_CIFAR10, network="cifar10-wide", batch=128, iterations=40_000, learning_rate=3e-4, ema=0.9995)
# The state at 0.5 million images is also that of a longer training there: the average anneals, not the rate.
_CIFAR10_16 = replace(
    _CIFAR10, dataset="cifar10-16", network="cifar10-16", batch=64, iterations=8000, ema=0.9995, decay="constant"
)
# 384,000 images, each seen three times or so.
_AFFINE = replace(_ADM, dataset="digits-affine", network="digits-affine", iterations=3000)
_AFFINE_SMALL = replace(_AFFINE, network="digits-affine-small")
_STUDIED_ON_CIFAR10 = ("adm", "adm-ip", "ddpm-y", "adm-gp", "adm-wd", "edm", "flow")


def _on(base: Recipe, name: str) -> Recipe:
    """Return the recipe of the digits that is called ``name``, with what ``base`` has beside the thing studied."""
    shared = ("dataset", "network", "precision", "batch", "iterations", "learning_rate", "ema", "decay")
    studied = next(recipe for recipe in (*_ALL, *_CONTROLS) if recipe.name == name)
    return replace(studied, **{field: getattr(base, field) for field in shared})


RECIPES: Mapping[str, Recipe] = {
    **{recipe.name: recipe for recipe in _ALL},
    **{f"{base.network}/{name}": _on(base, name) for base in (_CIFAR10, _WIDE) for name in _STUDIED_ON_CIFAR10},
    **{f"{base.network}/{name}": _on(base, name) for base in (_AFFINE, _AFFINE_SMALL) for name in ("adm", "adm-ip")},
    **{f"cifar10-16/{name}": _on(_CIFAR10_16, name) for name in (*_STUDIED_ON_CIFAR10, "adm-dropout", "adm-lsm")},
}
