"""The released guided-diffusion checkpoints by name: network, schedule and classifier, from the published commands.

Sources: the README files and ``script_util.py`` of forever208/DDPM-IP, forever208/ADM-ES and openai/guided-diffusion.
There, ``attention_resolutions`` are image sizes; here, as in the network's constructor, the factors by which the image
is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from bench.models.interface import Description

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """A kind of released checkpoint.

    Attributes:
        name: what the command line calls it.
        network: the constructor arguments of guided-diffusion's ``UNetModel``.
        files: the released files it reads, and whose.
        schedule: a name of :func:`bench.diffusion.schedules.betas`.
        T: training length.
        classifier: the arguments of the noisy classifier released with it
            (:func:`bench.models.denoisers.guidance.load_classifier`), or None.
        guidance_scale: the strength the classifier was published with, or None.
    """

    name: str
    network: Mapping[str, Any] = field(repr=False)
    files: str
    schedule: str = "cosine"
    T: int = 1000
    classifier: Mapping[str, Any] | None = field(default=None, repr=False)
    guidance_scale: float | None = None

    def description(self) -> Description:
        """Return what :func:`bench.models.checkpoints.native.load_network` needs to know."""
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
_CLASSIFIER = {
    "in_channels": 3, "out_channels": 1000, "model_channels": 128, "num_head_channels": 64, "pool": "attention",
    "resblock_updown": True, "use_scale_shift_norm": True,
}  # fmt: skip

_ALL = (
    Preset("cifar10", _32, "CIFAR-10 of DDPM-IP (ADM-IP, ADM-baseline) and ADM-ES"),
    Preset("imagenet32", _32, "ImageNet 32x32 of DDPM-IP (ADM-IP)"),
    Preset("lsun-tower64", _64, "LSUN tower 64x64 of DDPM-IP (ADM-IP, ADM-baseline) and ADM-ES"),
    Preset("celeba64", _64, "CelebA 64x64 of DDPM-IP (ADM-IP)"),
    Preset(
        "ffhq128",
        _128 | _DEEP | {"num_head_channels": 64, "dropout": 0.1},
        "FFHQ 128x128 of DDPM-IP (ADM-IP, ADM-baseline) and ADM-ES",
    ),
    Preset(
        "imagenet64",
        _64 | _CLASSES,
        "OpenAI's 64x64_diffusion.pt and 64x64_classifier.pt",
        classifier=_CLASSIFIER
        | {k: _64[k] for k in ("image_size", "channel_mult", "attention_resolutions")}
        | {"num_res_blocks": 4},
        guidance_scale=1.0,
    ),
    Preset(
        "imagenet128",
        _128 | _CLASSES | {"num_res_blocks": 2, "num_heads": 4},  # the only one with the legacy attention order
        "OpenAI's 128x128_diffusion.pt and 128x128_classifier.pt",
        schedule="linear",
        classifier=_CLASSIFIER
        | {k: _128[k] for k in ("image_size", "channel_mult", "attention_resolutions")}
        | {"num_res_blocks": 2},
        guidance_scale=0.5,
    ),
)
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
