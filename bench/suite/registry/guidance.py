"""Classifier-free guidance of models: what entries and flags ask for, checked against network and data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bench.models.denoisers.guidance import ClassifierFree
from bench.suite.registry.model import Model
from bench.suite.settings import ConfigError

GUIDANCE_KEYS = ("guidance", "guidance_interval", "null_class")


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
