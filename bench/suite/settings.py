"""What a run is: parsed, checked and frozen before anything is computed."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.runtime.errors import UserError

DEFAULT_DATASET = "digits"
MEASUREMENTS = ("steps", "normality", "chains", "response")
IN_CELLS = ("steps", "normality")  # measurements made while a cell is sampled
SPACINGS = ("plain", "ddim", "leading", "linspace", "trailing")
FRAME_NAMES = {"vp": "variance-preserving levels", "edm": "EDM levels", "flow": "the levels of a flow"}
_ALL_FRAMES = tuple(FRAME_NAMES)
SAMPLER_FRAMES: Mapping[str, Sequence[str]] = {  # a sampler, and the frames of the models that it samples
    "ddpm": ("vp",),
    "ddim": ("vp",),
    "euler": ("edm", "flow"),
    "heun": ("edm", "flow"),
    "sde": ("flow",),
    "dpmpp-2m": _ALL_FRAMES,
    "unipc": _ALL_FRAMES,
}
SAMPLERS = tuple(SAMPLER_FRAMES)
MULTISTEP_SAMPLERS = ("dpmpp-2m", "unipc")
# Values with which a setting does nothing; a description leaves them out, so that new settings change no key.
NEUTRAL_SETTINGS: Mapping[str, Any] = {
    "churn": 0.0, "precision": "fp32", "s_min": 0.0, "s_max": None, "s_noise": 1.0, "class_labels": "random",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(@[0-9]+[A-Za-z0-9._-]*)?")
_FEW_NAMES = 20  # that an error lists
_LONGEST_NAME = 100  # file systems take 255 bytes, of which sampler, steps and seed need some
RESERVED_SEEDS = 1_000_000  # seeds from here on belong to the tuning of constants; no reported number uses them


def samplers_of(frame: str) -> tuple[str, ...]:
    """Return the samplers of models on a frame's levels: ``vp``, ``edm`` or ``flow``."""
    return tuple(name for name, frames in SAMPLER_FRAMES.items() if frame in frames)


class ConfigError(UserError):
    """The user asked for something impossible; the message says what and how to mend it."""


@dataclass(frozen=True)
class SamplerConfig:
    """How samples are drawn, the part of a run that every cell shares.

    ``variance`` is the ancestral sampler's, None for its mean alone and under others; ``eta`` is DDIM's and ``churn``
    (S_churn) that of ``euler`` and ``heun``, 0 under others; ``s_min``, ``s_max`` (None for infinity) and ``s_noise``
    are its bounds and the factor of its noise. ``precision`` is that of the network calls, one of
    :data:`bench.models.acceleration.PRECISIONS`. ``class_labels`` of samples are ``random``, or ``balanced``: sample k
    has label k modulo their number.
    """

    sampler: str = "ddpm"
    spacing: str = "plain"
    eta: float = 0.0
    variance: str | None = "learned"
    clip: bool = True
    quantize: str = "round"
    churn: float = 0.0
    precision: str = "fp32"
    s_min: float = 0.0
    s_max: float | None = None
    s_noise: float = 1.0
    class_labels: str = "random"

    def description(self) -> dict[str, Any]:
        """Return the settings, JSON-like; a setting of :data:`NEUTRAL_SETTINGS` is left out where it does nothing."""
        settings = asdict(self).items()
        return {
            name: value for name, value in settings if name not in NEUTRAL_SETTINGS or value != NEUTRAL_SETTINGS[name]
        }

    def respacing(self, steps: int) -> str:
        """Return the name of this many steps, as :func:`bench.diffusion.schedules.respace` reads it."""
        return str(steps) if self.spacing == "plain" else f"{self.spacing}{steps}"


def short_hash(value: Any) -> str:
    """Return ten hexadecimal digits that change with any part of a JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else asdict(value)


def nearest(kind: str, name: str, known: Iterable[str], advice: str = "") -> ConfigError:
    """Return the error for an unknown name: the nearest known one, or else the advice and the known names if few."""
    choices = sorted(known)
    folded = {choice.casefold(): choice for choice in choices}
    close = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.45)]
    few = f"known: {', '.join(choices)}" if len(choices) <= _FEW_NAMES or not advice else ""
    hints = (f"did you mean {close[0]!r}?", advice) if close else (advice, few)
    return ConfigError(f"unknown {kind} {name!r}; {'; '.join(filter(None, hints))}")


def check_name(name: str, place: str) -> None:
    """Refuse a name that cannot be a folder's, since results are filed under it.

    Args:
        name: of a model or dataset; ``@`` with a number, as in ``adm@2-es``, is another training.
        place: where the name stands, for the message.

    Raises:
        ConfigError: it has other signs than letters, digits, ``.``, ``_`` and ``-``, or more than 100.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"{name!r} in {place} is no name; use up to {_LONGEST_NAME} letters, digits, '.', '_', '-' (and @2, ... for"
            " another training)"
        )


def is_folder_name(name: str) -> bool:
    """Tell whether a folder of results may have a name: that of a cell or measurement of a run."""
    return bool(_NAME.fullmatch(name)) and "@" not in name


def positive(flag: str, value: float) -> None:
    """Refuse 0, negative numbers, NaN and infinity."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{flag} must be positive, not {value:g}")
