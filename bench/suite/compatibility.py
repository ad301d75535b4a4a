"""Whether a model and the run's images go together, told before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.data import Dataset
from bench.models.presets import PRESETS
from bench.suite.registry.model import Model
from bench.suite.registry.remedies import KINDS
from bench.suite.settings import ConfigError

__all__ = ["check_fit"]

# By format: where the network's arguments list its levels, and how many there are where they do not.
_LEVELS = {"guided": ("channel_mult", 4), "diffusers": ("block_out_channels", 4)}


def check_fit(model: Model, data: Dataset, measured: bool) -> None:
    """Refuse images that the model was not made for.

    Args:
        model: what the file says of itself, its preset or entry.
        data: the run's images.
        measured: whether real images are shown to the model too, with their class labels.

    Raises:
        ConfigError: channels, size or classes differ.
    """
    channels, height, width = data.shape
    about = model.description
    if about.channels != channels:
        raise ConfigError(f"model {model.name!r} takes {about.channels} channels, dataset {data.name!r} has {channels}")
    size = about.network.get("image_size")
    # A guided-diffusion network runs at any size its levels divide, but a released one was trained at its own.
    fixed = about.format != "guided" or any(preset.description() == about for preset in PRESETS.values())
    if fixed and size and (height, width) != (size, size):
        raise ConfigError(
            f"model {model.name!r} takes {size}x{size} images, dataset {data.name!r} has {height}x{width}; see --resize"
        )
    factor = 2 ** (_levels(about.network, about.format) - 1)
    if height % factor or width % factor:
        raise ConfigError(
            f"model {model.name!r} halves images {factor}-fold; {data.name!r} has {data.shape[1:]} pixels"
        )
    needs_even = [remedy.kind for remedy in model.remedies if KINDS[remedy.kind].even]
    if needs_even and (height % 2 or width % 2):
        raise ConfigError(
            f"{needs_even[0]} of model {model.name!r} needs images of even size, dataset {data.name!r} has"
            f" {height}x{width}; use dcw-pixel, or see --resize"
        )
    if about.classes and measured and data.classes != about.classes:
        raise ConfigError(
            f"model {model.name!r} takes {about.classes} class labels, dataset {data.name!r} has {data.classes}"
            " classes; give its images in one folder a class, or use --no-probes"
        )


def _levels(network: Mapping[str, Any], kind: str) -> int:
    """Return the levels of a network that takes images of any size they divide; 1 where others see to the size."""
    name, default = _LEVELS.get(kind, ("", 1))
    return len(network[name]) if name in network else default
