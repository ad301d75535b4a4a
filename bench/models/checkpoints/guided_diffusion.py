"""Guided-diffusion's ``.pt`` files: read without executing anything, and loaded only into the network they fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from bench.models.checkpoints.state_dicts import all_finite, not_finite, read_state
from bench.models.denoisers.parameterization import check_process
from bench.models.interface import Description
from bench.models.networks.adm import adm_unet, check_fit, load_guided_diffusion, without_weights
from bench.models.networks.adm_keys import published_shapes
from bench.models.networks.arguments import MisfitError, Shapes, complete, shapes_of
from bench.models.networks.classifier import classifier_network
from bench.runtime.errors import CheckpointError, quoted


@dataclass(frozen=True)
class Preset:
    """A kind of released checkpoint.

    Attributes:
        network: the constructor arguments of guided-diffusion's ``UNetModel``.
        schedule: a name of :func:`bench.diffusion.schedules.betas`.
        T: training length.
        classifier: the arguments of the noisy classifier released with it
            (:func:`bench.models.checkpoints.guided_diffusion.load_classifier`), or None.
        guidance_scale: the strength the classifier was published with, or None.
    """

    network: Mapping[str, Any] = field(repr=False)
    schedule: str = "cosine"
    T: int = 1000
    classifier: Mapping[str, Any] | None = field(default=None, repr=False)
    guidance_scale: float | None = None

    def description(self) -> Description:
        """Return what the file does not say of itself."""
        return Description(dict(self.network), self.schedule, self.T)


_SHARED = {"in_channels": 3, "learn_sigma": True, "resblock_updown": True, "use_scale_shift_norm": True}
_DEEP = {"num_res_blocks": 3, "use_new_attention_order": True}  # DDPM-IP's, and OpenAI's at 64 pixels
_32 = _SHARED | _DEEP | {
    "image_size": 32, "model_channels": 128, "num_head_channels": 32, "channel_mult": (1, 2, 2, 2),
    "attention_resolutions": (2, 4), "dropout": 0.3,
}  # fmt: skip
_64 = _SHARED | _DEEP | {
    "image_size": 64, "model_channels": 192, "num_head_channels": 64, "channel_mult": (1, 2, 3, 4),
    "attention_resolutions": (2, 4, 8), "dropout": 0.1,
}  # fmt: skip
_128 = _SHARED | {
    "image_size": 128, "model_channels": 256, "channel_mult": (1, 1, 2, 3, 4), "attention_resolutions": (4, 8, 16),
}  # fmt: skip
_CLASSES = {"num_classes": 1000}
_OF_BOTH = ("image_size", "channel_mult", "attention_resolutions")  # of a network and a classifier of one size
_CLASSIFIER = {
    "in_channels": 3, "out_channels": 1000, "model_channels": 128, "num_head_channels": 64, "pool": "attention",
    "resblock_updown": True, "use_scale_shift_norm": True,
}  # fmt: skip

# Improved diffusion (Nichol & Dhariwal 2021): plain resampling, four heads, and t * 1000 / T as the network's time.
_IDDPM = {
    "in_channels": 3, "model_channels": 128, "num_res_blocks": 3, "num_heads": 4, "learn_sigma": True,
    "use_scale_shift_norm": True, "rescale_timesteps": True,
}  # fmt: skip
_LSUN256 = {
    "image_size": 256, "in_channels": 3, "model_channels": 128, "num_res_blocks": 2, "num_heads": 1,
    "learn_sigma": True, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_resolutions": (16,),
}  # fmt: skip

_64_CLASSIFIER = _CLASSIFIER | {k: _64[k] for k in _OF_BOTH} | {"num_res_blocks": 4}
_128_CLASSIFIER = _CLASSIFIER | {k: _128[k] for k in _OF_BOTH} | {"num_res_blocks": 2}
_PRESETS = {
    "cifar10": Preset(_32),  # CIFAR-10 of DDPM-IP (ADM-IP, ADM-baseline) and ADM-ES
    "imagenet32": Preset(_32),  # ImageNet 32x32 of DDPM-IP (ADM-IP)
    "lsun-tower64": Preset(_64),  # LSUN tower 64x64 of DDPM-IP (ADM-IP, ADM-baseline) and ADM-ES
    "celeba64": Preset(_64),  # CelebA 64x64 of DDPM-IP (ADM-IP)
    # FFHQ 128x128 of DDPM-IP (ADM-IP, ADM-baseline) and ADM-ES
    "ffhq128": Preset(_128 | _DEEP | {"num_head_channels": 64, "dropout": 0.1}),
    # OpenAI's 64x64_diffusion.pt and 64x64_classifier.pt, 128x128_diffusion.pt and 128x128_classifier.pt
    "imagenet64": Preset(_64 | _CLASSES, classifier=_64_CLASSIFIER, guidance_scale=1.0),
    # The only one with the legacy attention order.
    "imagenet128": Preset(
        _128 | _CLASSES | {"num_res_blocks": 2, "num_heads": 4},
        "linear",
        classifier=_128_CLASSIFIER,
        guidance_scale=0.5,
    ),
    # Improved-diffusion's cifar10_uncond_50M_500K.pt and cifar10_uncond_vlb_50M_500K.pt
    "iddpm-cifar10": Preset(_IDDPM | {k: _32[k] for k in (*_OF_BOTH, "dropout")}, T=4000),
    # Improved-diffusion's imagenet64_uncond_100M_1500K.pt and imagenet64_uncond_vlb_100M_1500K.pt
    "iddpm-imagenet64": Preset(
        _IDDPM | {"image_size": 64, "channel_mult": (1, 2, 3, 4), "attention_resolutions": (4, 8)}, T=4000
    ),
    # Improved-diffusion's lsun_uncond_100M_1200K_bs128.pt and lsun_uncond_100M_2400K_bs64.pt
    "iddpm-lsun256": Preset(_LSUN256, "linear"),
}
PRESETS: Mapping[str, Preset] = MappingProxyType(_PRESETS)
_NO_PRESET = "no preset fits it; describe its network (docs/checkpoints.md)"


def describe_entry(entry: Mapping[str, Any], default: str | None = None) -> Description:
    """Return the description that an entry of a config file gives of a ``.pt`` file.

    Args:
        entry: ``preset``, or ``network`` with ``schedule`` (cosine), ``T`` (1000) and ``rescale_timesteps``; and
            ``prediction`` (eps), ``x0`` for a network trained with ``predict_xstart``, ``flow`` for a velocity.
        default: the preset of an entry that has neither.

    Raises:
        CheckpointError: neither preset nor network, both, or a network, schedule or prediction that cannot be.
    """
    preset = entry.get("preset", None if "network" in entry else default)
    prediction = str(entry.get("prediction", "eps"))
    if preset is not None:
        if preset not in PRESETS:
            raise CheckpointError(f"unknown preset {quoted(preset)}; choose {', '.join(PRESETS)}")
        if extra := [key for key in ("network", "schedule", "T", "rescale_timesteps") if key in entry]:
            raise CheckpointError(f"preset {preset!r} brings its own {extra[0]!r}; drop that, or 'preset'")
        description = replace(PRESETS[preset].description(), prediction=prediction)
    elif "network" in entry:
        network, schedule, T = dict(entry["network"]), str(entry.get("schedule", "cosine")), int(entry.get("T", 1000))
        if entry.get("rescale_timesteps"):
            network["rescale_timesteps"] = True
        complete(network)
        description = Description(network, schedule, T, prediction=prediction)
    else:
        raise CheckpointError("it does not describe itself; give its entry 'preset' or 'network'")
    try:
        check_process(description.schedule, description.T, description.prediction)
    except ValueError as error:
        raise CheckpointError(error) from None
    return description


def load_guided(path: Path, description: Description) -> Any:
    """Load a U-Net from a ``.pt`` file, float32 in evaluation mode.

    Raises:
        CheckpointError: missing, truncated, of another architecture (the message says what differs and which preset
            fits), not plain tensors, or not finite.
    """
    return _load(path, lambda: adm_unet(description.network))


def load_classifier(path: Path, config: Mapping[str, Any]) -> nn.Module:
    """Load a released classifier from a ``.pt`` file, float32 in evaluation mode.

    Args:
        path: the file; nothing in it is executed.
        config: its arguments, e.g. ``PRESETS["imagenet128"].classifier``
            (:func:`bench.models.networks.classifier.classifier_network`).

    Returns:
        A module called as ``classifier(x, t)``, giving logits [B, classes].

    Raises:
        CheckpointError: as :func:`load_guided`.
    """
    return _load(path, lambda: classifier_network(config))


def _load(path: Path, build: Callable[[], Any]) -> Any:
    """Load a file into the network that ``build`` makes, which gets memory once the file is known to fit."""
    state = read_state(path)
    try:
        network = without_weights(build)
        check_fit(network, state)
    except MisfitError as error:
        fitting = " or ".join(presets_that_fit(shapes_of(state)))
        advice = f"it fits preset {fitting}" if fitting else _NO_PRESET
        raise CheckpointError(f"{path} is of another architecture: {error}; {advice}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    network.to_empty(device="cpu")
    load_guided_diffusion(network, state)
    if not all_finite(network):
        raise not_finite(path)
    return network.eval().requires_grad_(False)


def fitting_presets(path: Path) -> list[str]:
    """Return the names of the presets whose network a ``.pt`` file fits; its numbers are not read.

    Raises:
        CheckpointError: it cannot be read, or holds no network.
    """
    return [name for name in presets_that_fit(shapes_of(read_state(path, is_mapped=True))) if name in PRESETS]


def presets_that_fit(shapes: Shapes) -> list[str]:
    """Return the names of the presets whose network, or whose classifier (``NAME's classifier``), a file fits."""
    published = [(name, adm_unet, p.network) for name, p in PRESETS.items()]
    published += [
        (f"{name}'s classifier", classifier_network, p.classifier) for name, p in PRESETS.items() if p.classifier
    ]
    return [name for name, build, config in published if _fits(shapes, build, config)]


def _fits(shapes: Shapes, build: Callable[[Mapping[str, Any]], Any], config: Mapping[str, Any]) -> bool:
    """Tell whether shapes are those of a network, which is built only where three of its tensors have them."""
    width, classes = config["model_channels"], config.get("num_classes")
    same_width = shapes.get("time_embed.0.weight") == (4 * width, width)
    same_labels = shapes.get("label_emb.weight") == (None if classes is None else (classes, 4 * width))
    has_decoder = "output_blocks.0.0.in_layers.0.weight" in shapes
    if not (same_width and same_labels) or has_decoder == ("pool" in config):
        return False
    network = without_weights(partial(build, config))
    return published_shapes(network.state_dict(), network.config["guided_diffusion"]) == shapes
