"""What a run is: parsed, checked and frozen before anything is computed."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.runtime.errors import UserError

__all__ = [
    "EDM_SAMPLERS",
    "LATER_SETTINGS",
    "MEASUREMENTS",
    "RESERVED_SEEDS",
    "SAMPLERS",
    "ConfigError",
    "SamplerConfig",
    "nearest",
    "parse_measure",
    "parse_models",
    "parse_seeds",
    "parse_steps",
    "positive",
    "short_hash",
]

MEASUREMENTS = ("steps", "normality", "chains", "response")
SAMPLERS = ("ddpm", "ddim", "euler", "heun")
EDM_SAMPLERS = ("euler", "heun")  # those of models on EDM levels
# Later than version 0.1, which sampled with these values; a description without them means them.
LATER_SETTINGS: Mapping[str, Any] = {"churn": 0.0, "precision": "fp32"}
RESERVED_SEEDS = 1_000_000  # seeds from here on belong to the tuning of constants; no reported number uses them


class ConfigError(UserError):
    """The user asked for something impossible; the message says what and how to mend it."""


@dataclass(frozen=True)
class SamplerConfig:
    """How samples are drawn, the part of a run that every cell shares.

    ``variance`` is the ancestral sampler's and None under others; ``eta`` is DDIM's and ``churn`` (S_churn) that of
    ``euler`` and ``heun``, 0 under others. ``precision`` is that of the network calls, one of
    :data:`bench.models.acceleration.PRECISIONS`.
    """

    sampler: str = "ddpm"
    spacing: str = "plain"
    eta: float = 0.0
    variance: str | None = "learned"
    clip: bool = True
    quantize: str = "round"
    churn: float = 0.0
    precision: str = "fp32"

    def description(self) -> dict[str, Any]:
        """Return the settings, JSON-like; what version 0.1 did not have is left out where it does nothing."""
        settings = asdict(self).items()
        return {name: value for name, value in settings if name not in LATER_SETTINGS or value != LATER_SETTINGS[name]}

    def respacing(self, steps: int) -> str:
        """Return guided-diffusion's name of this many steps."""
        return f"ddim{steps}" if self.spacing == "ddim" else str(steps)


def short_hash(value: Any) -> str:
    """Return ten hexadecimal digits that change with any part of a JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else asdict(value)


def nearest(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for an unknown name, with the nearest known one."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices)}"
    return ConfigError(f"unknown {kind} {name!r}; {hint}")


def _items(flag: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise ConfigError(f"{flag} is empty; give at least one value")
    twice = sorted({item for item in items if items.count(item) > 1})
    if twice:
        raise ConfigError(f"{flag} names {twice[0]} twice")
    return items


def parse_models(text: str) -> tuple[tuple[str, Path | None], ...]:
    """Read ``NAME[=PATH],...`` into (name, path or None) pairs."""
    pairs = []
    for item in _items("--models", text):
        name, given, path = item.partition("=")
        if not name or (given and not path):
            raise ConfigError(f"--models: {item!r} is not NAME or NAME=PATH")
        pairs.append((name, Path(path) if path else None))
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ConfigError("--models names a model twice; give each weights file a name of its own with --config")
    return tuple(pairs)


def parse_steps(text: str) -> tuple[int, ...]:
    """Read ``80,100,...``; limits that depend on the model are checked with it."""
    steps = []
    for item in _items("--steps", text):
        try:
            steps.append(int(item))
        except ValueError:
            raise ConfigError(f"--steps: {item!r} is not a whole number") from None
        if steps[-1] < 1:
            raise ConfigError(f"--steps: {item} is not positive; a sampler needs at least one step")
    if len(set(steps)) < len(steps):
        raise ConfigError("--steps names a number twice")
    return tuple(steps)


def parse_measure(text: str) -> tuple[str, ...]:
    """Read ``steps,chains,...`` or ``all`` into measurements, in the order they are made."""
    names = _items("--measure", text)
    for name in names:
        if name not in (*MEASUREMENTS, "all"):
            raise nearest("--measure", name, (*MEASUREMENTS, "all"))
    return tuple(name for name in MEASUREMENTS if name in names or "all" in names)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read ``0,3,7`` or ranges ``0-4`` (both ends included), mixed as wished."""
    seeds: list[int] = []
    for item in _items("--seeds", text):
        first, dash, last = item.partition("-")
        try:
            low, high = int(first), int(last) if dash else int(first)
        except ValueError:
            raise ConfigError(f"--seeds: {item!r} is neither a seed (0, 1, ...) nor a range such as 0-4") from None
        if high < low or high - low >= 10_000 or high >= RESERVED_SEEDS:
            raise ConfigError(
                f"--seeds: {item!r} is empty or too large (seeds from {RESERVED_SEEDS} on are for tuning)"
            )
        seeds.extend(range(low, high + 1))
    if len(set(seeds)) < len(seeds):
        raise ConfigError("--seeds names a seed twice")
    return tuple(seeds)


def positive(flag: str, value: float) -> None:
    """Refuse 0, negative numbers, NaN and infinity."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{flag} must be positive, not {value:g}")
