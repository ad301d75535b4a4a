"""A named model: its weights, their description, remedies and guidance, and whether it fits the images of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.data import Dataset
from bench.diffusion.types import Level
from bench.latent.autoencoder import hash_decoder
from bench.latent.networks import hash_conditional
from bench.models.checkpoints.formats import checkpoint_hash
from bench.models.checkpoints.guided_diffusion import PRESETS
from bench.models.checkpoints.state_dicts import file_hash
from bench.models.denoisers.guidance import ClassifierFree
from bench.models.denoisers.preconditioning import Preconditioning, make_preconditioning
from bench.models.interface import Description
from bench.suite.registry.remedies import KINDS, Remedy, split_kind
from bench.suite.settings import FRAME_NAMES, ConfigError, samplers_of, short_hash

# By format: where the network's arguments list its levels, and how many there are where they do not.
_LEVELS = {
    "native": ("channel_mult", 4), "guided": ("channel_mult", 4), "diffusers": ("block_out_channels", 4),
    "conditional": ("block_out_channels", 1),
}  # fmt: skip
GUIDANCE_KEYS = ("guidance", "guidance_interval", "null_class")


@dataclass(frozen=True)
class Guidance:
    """Classifier guidance: a classifier's weights and arguments, and the strength s of its score."""

    classifier: Path
    network: Mapping[str, Any]
    scale: float

    @cached_property
    def description(self) -> dict[str, Any]:
        """Return what determines the guidance, JSON-like."""
        return {"classifier": file_hash(self.classifier), "classifier_scale": self.scale}


@dataclass(frozen=True)
class LatentFiles:
    """The files of a latent model's entry: its real latents, and the autoencoder that decodes, None for none."""

    latents: Path
    vae: Path | None = None

    @cached_property
    def vae_hash(self) -> str | None:
        """Return the sha256 of the autoencoder."""
        return None if self.vae is None else hash_decoder(self.vae)


@dataclass(frozen=True)
class Model:
    """A named model: weights and their description, remedies in the order they act, perhaps guidance.

    ``guidance_keys`` are those of its entry; :func:`settle_guidance` makes of them
    ``classifier_free``, None for a model without a null class, and ``label_count``, how many labels samples are drawn
    from.
    """

    name: str
    weights: Path
    description: Description
    remedies: tuple[Remedy, ...] = ()
    base: str = ""  # the name of the plain model that the remedies were added to; empty where it has none
    given: Path | None = None  # weights of the command line, in place of its own
    guidance: Guidance | None = None
    latent: LatentFiles | None = None
    guidance_keys: Mapping[str, Any] = field(default_factory=dict)
    classifier_free: ClassifierFree | None = None
    label_count: int | None = None

    @property
    def labels(self) -> int | None:
        """Return how many class labels samples are drawn from, None for an unconditional model."""
        return self.label_count or self.description.classes

    def network_calls(self, level: Level, sampler: str, steps: int) -> int:
        """Return the network calls of one prediction at a level of a walk of ``steps`` steps."""
        guided = self.classifier_free.calls(level) if self.classifier_free else 1
        return guided * math.prod(KINDS[r.kind].calls(r.at(sampler, steps)) for r in self.remedies)

    def is_guided(self, sampler: str, steps: int) -> bool:
        """Tell whether a walk's predictions are made of several of the network's."""
        free = self.classifier_free
        remedies = (KINDS[r.kind].calls(r.at(sampler, steps)) > 1 for r in self.remedies)
        return (free is not None and free.scale != 1) or any(remedies)

    @cached_property
    def weights_hash(self) -> str:
        """Return the sha256 of the weights, read once."""
        hashed = hash_conditional if self.latent else checkpoint_hash
        return hashed(self.weights, self.description)

    def preconditioning(self) -> Preconditioning:
        """Return how an EDM model's network is wrapped."""
        return make_preconditioning(self.description.prediction, self.description.network.get("preconditioning"))

    def additions(self) -> dict[str, Any]:
        """Return what determines the function besides weights, network and schedule; empty for plain eps models."""
        prediction = self.description.prediction
        additions: dict[str, Any] = {} if prediction == "eps" else {"prediction": prediction}
        if self.latent is not None and self.latent.vae is not None:
            additions["vae"] = self.latent.vae_hash
        if free := self.classifier_free:
            additions["null_class"] = free.null
            if free.scale != 1:
                high = None if math.isinf(free.high) else free.high
                additions |= {"guidance": free.scale, "guidance_interval": [free.low, high]}
        return additions | (self.guidance.description if self.guidance else {})

    def identity(self) -> dict[str, Any]:
        """Return what determines the function besides the weights, remedies apart, JSON-like."""
        about = self.description
        network = short_hash(dict(about.network))
        return {"network": network, "schedule": about.schedule, "T": about.T, **self.additions()}

    def scale_at(self, sampler: str, steps: int) -> tuple[float, float]:
        """Return epsilon scaling's (b, k), (1, 0) for a model without it."""
        scalings = [remedy.at(sampler, steps) for remedy in self.remedies if remedy.kind == "epsilon-scaling"]
        return (scalings[0]["b"], scalings[0]["k"]) if scalings else (1.0, 0.0)

    def intervention(self, sampler: str, steps: int) -> dict[str, Any]:
        """Return the remedies at a step count, JSON-like; plain epsilon scaling has no list ``remedies``."""
        b, k = self.scale_at(sampler, steps)
        intervention: dict[str, Any] = {"eps_scale": b, "eps_slope": k}
        if [remedy.kind for remedy in self.remedies] not in ([], ["epsilon-scaling"]):
            intervention["remedies"] = [remedy.description(sampler, steps) for remedy in self.remedies]
        return intervention

    def remedies_by_steps(self, sampler: str, counts: Sequence[int]) -> dict[str, Any]:
        """Return ``remedies`` with a list for each step count, or nothing where epsilon scaling is all there is."""
        remedies = [self.intervention(sampler, count).get("remedies") for count in counts]
        return {"remedies": remedies} if any(remedies) else {}

    def refuse(self, sampler: str, purpose: str = "") -> None:
        """Refuse a sampler that a remedy does not work with, or has no constants for.

        Args:
            sampler: the run's.
            purpose: the measurement that needs it, for the message.

        Raises:
            ConfigError: naming the remedy.
        """
        shifts = [remedy.kind for remedy in self.remedies if split_kind(remedy.kind)[0] == "time-shift"]
        if len(shifts) > 1:
            raise ConfigError(f"model {self.name!r} has {' and '.join(shifts)}; a walk takes one time shift")
        for remedy in self.remedies:
            kind = KINDS[remedy.kind]
            if sampler not in kind.samplers:
                others = [name for name in kind.samplers if name in samplers_of(self.description.frame)]
                raise ConfigError(
                    f"{remedy.kind} of model {self.name!r} does not work with --sampler {sampler}{purpose}:"
                    f" {kind.reason}; " + (f"use {' or '.join(others)}" if others else "leave the remedy out")
                )
            if self.description.frame not in kind.frames:
                frames = " and ".join(FRAME_NAMES[frame] for frame in kind.frames)
                raise ConfigError(
                    f"{remedy.kind} of model {self.name!r} is for {frames}: {kind.reason}; leave the remedy out"
                )
            if kind.null_time and not self.description.network.get("null_time"):
                raise ConfigError(
                    f"{remedy.kind} of model {self.name!r} asks its network without a time, for which it was not"
                    " trained (--recipe adm-null-time is); leave the remedy out"
                )
            missing = remedy.missing(sampler)
            if missing == "b":
                raise ConfigError(
                    f"no {sampler} scaling constants were tuned for {self.name!r} with these weights{purpose};"
                    " give --eps-scale, or find them with --tune b=fit"
                )
            if missing:
                raise ConfigError(
                    f"{remedy.kind} of model {self.name!r} needs {missing!r} for {sampler}{purpose}; find it with"
                    f" --tune {missing}=fit, or give it in the config file"
                )

    def rescaled(self, b: float | None, k: float | None) -> Model:
        """Return the model with epsilon scaling's constants replaced at every step count; None keeps one."""
        constants = {name: value for name, value in (("b", b), ("k", k)) if value is not None}
        remedies = [r.overridden(constants) if "b" in r.defaults else r for r in self.remedies]
        return replace(self, remedies=tuple(remedies))


def read_guidance(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of :data:`GUIDANCE_KEYS` that a model's entry has.

    Raises:
        ConfigError: a number that cannot be one.
    """
    keys = {key: entry[key] for key in GUIDANCE_KEYS if key in entry}
    if not 0 <= keys.get("guidance", 1) < math.inf:
        raise ConfigError(f"'guidance' of model {name!r} must be a finite number of at least 0")
    interval = keys.get("guidance_interval", [0, 1])
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in interval)
    if not (numbers and len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise ConfigError(f"'guidance_interval' of model {name!r} must be [low, high] with 0 <= low < high")
    return keys


def settle_guidance(model: Model, data_classes: int, flags: Mapping[str, Any]) -> Model:
    """Return the model with its null class, and the guidance that entry and flags ask for.

    Without ``null_class`` a network of one label more than the data has the last one for its null class. Labels of
    samples are drawn among the data's classes, or, where the data have none, among the labels below the null class.

    Args:
        model: with the keys of its entry.
        data_classes: classes of the run's images, 1 where they have none.
        flags: ``guidance`` and ``guidance_interval`` of the command line, those that were given; they replace the
            entry's.

    Raises:
        ConfigError: no labels, no null class, or one that is no label of its own.
    """
    classes, keys = model.description.classes, {**model.guidance_keys, **flags}
    if model.latent is not None:
        rows = (classes or 0) - ("null_class" in model.guidance_keys)
        if data_classes > rows:
            raise ConfigError(
                f"'cond' of {model.latent.latents} names condition {data_classes - 1}, but model {model.name!r} has"
                f" {rows}, counted from 0"
            )
        model = replace(model, label_count=data_classes)
    if not classes:
        if keys:
            key = next(iter(keys))
            given = f"--{key.replace('_', '-')}" if key in flags else f"{key!r}"
            raise ConfigError(f"model {model.name!r} takes no class labels and cannot be guided; leave out {given}")
        return model
    null = keys.get("null_class", classes - 1 if classes == data_classes + 1 else None)
    scale, interval = float(keys.get("guidance", 1.0)), keys.get("guidance_interval")
    if interval is not None and scale == 1 and "guidance_interval" not in flags:
        raise ConfigError(f"the guidance interval of model {model.name!r} has no effect at scale 1; give --guidance")
    if null is None:
        if scale != 1:
            if model.latent is not None:
                raise ConfigError(f"model {model.name!r} has no 'negative_embeddings' to be guided from; add them")
            raise ConfigError(
                f"model {model.name!r} has no null class to be guided from: the data have {data_classes} classes, it"
                f" takes {classes}; give its entry 'null_class', or leave the guidance out"
            )
        return model
    least = data_classes if data_classes > 1 else 1
    if not least <= null < classes:
        labels = " or ".join(map(str, range(least, classes)[:3]))
        remedy = f"it must be {labels}" if labels else "there is none: leave out 'null_class'"
        raise ConfigError(f"null class {null} of model {model.name!r} is no label of it beyond the data's; {remedy}")
    low, high = map(float, interval or (0.0, math.inf))
    guidance = ClassifierFree(scale, null, low, high)
    count = model.label_count or (data_classes if data_classes > 1 else null)
    return replace(model, classifier_free=guidance, label_count=count)


def check_fit(model: Model, data: Dataset, measured: bool) -> None:
    """Refuse images that the model was not made for.

    Args:
        model: with its description.
        data: the run's images.
        measured: whether real images are shown to the model too, with their class labels.

    Raises:
        ConfigError: channels, size or classes differ.
    """
    about, (_, height, width) = model.description, data.shape
    (_check_latents if model.latent else _check_pixels)(model, data)
    needs_even = [remedy.kind for remedy in model.remedies if KINDS[remedy.kind].even]
    if needs_even and (height % 2 or width % 2):
        remedy = "" if model.latent else ", or see --resize"
        raise ConfigError(
            f"{needs_even[0]} of model {model.name!r} needs images of even size, dataset {data.name!r} has"
            f" {height}x{width}; use its variant pixel{remedy}"
        )
    if about.classes and measured and data.classes != model.labels:
        raise ConfigError(
            f"model {model.name!r} takes {model.labels} class labels, dataset {data.name!r} has {data.classes}"
            " classes; give its images in one folder a class, or use --no-probes"
        )


def _check_pixels(model: Model, data: Dataset) -> None:
    """Refuse images of other channels, or of a size that the network does not take."""
    about, (channels, height, width) = model.description, data.shape
    if about.channels != channels:
        raise ConfigError(f"model {model.name!r} takes {about.channels} channels, dataset {data.name!r} has {channels}")
    size = about.network.get("image_size")
    # A guided-diffusion network runs at any size its levels divide, but a released one was trained at its own.
    is_released = any(preset.description() == about for preset in PRESETS.values())
    fixed = is_released or about.format not in ("native", "guided")
    if fixed and size and (height, width) != (size, size):
        raise ConfigError(
            f"model {model.name!r} takes {size}x{size} images, dataset {data.name!r} has {height}x{width}; see --resize"
        )
    factor = 2 ** (_levels(about.network, about.format) - 1)
    if height % factor or width % factor:
        raise ConfigError(
            f"model {model.name!r} halves images {factor}-fold; {data.name!r} has {data.shape[1:]} pixels"
        )


def _check_latents(model: Model, data: Dataset) -> None:
    """Refuse latents of another shape than the network takes."""
    assert model.latent is not None  # its caller asked
    about, path, (channels, *size) = model.description, model.latent.latents, data.shape
    given = f"{path} has {size[0]}x{size[1]}"
    if about.channels != channels:
        raise ConfigError(f"model {model.name!r} takes latents of {about.channels} channels, {path} has {channels}")
    fixed, factor = about.network.get("image_size"), 2 ** (_levels(about.network, about.format) - 1)
    # A U-Net takes latents of any size that its levels divide, a transformer those of its positions.
    if about.network["kind"] != "UNet2DConditionModel" and fixed and size != [fixed, fixed]:
        raise ConfigError(
            f"model {model.name!r} takes latents of {fixed}x{fixed}, {given}; encode images of the size that it was"
            " trained on"
        )
    if any(length % factor for length in size):
        raise ConfigError(f"model {model.name!r} halves latents {factor}-fold; {given}")


def _levels(network: Mapping[str, Any], kind: str) -> int:
    """Return the levels of a network that takes images of any size they divide; 1 where others see to the size."""
    name, default = _LEVELS.get(kind, ("", 1))
    return len(network[name]) if name in network else default
