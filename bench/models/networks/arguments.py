"""The constructor arguments of guided-diffusion's ``UNetModel``: defaults, checks and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["GROUPS", "CheckpointError", "attended_widths", "complete", "heads", "widths_of"]

GROUPS = 32  # guided-diffusion fixes GroupNorm to 32 groups
_MOST = 2**20  # far above any network's numbers: a damaged file shall not ask for an endless one


class CheckpointError(ValueError):
    """A checkpoint or a network description cannot be used; the message says why and how to mend it."""


class _Rule(NamedTuple):
    """What one argument may be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_positive(value: Any) -> bool:
    return _is_whole(value) and 1 <= value <= _MOST


_POSITIVE = _Rule("a positive integer", _is_positive)
_POSITIVE_OR_NONE = _Rule("a positive integer or left out", lambda v: v is None or _is_positive(v))
_POSITIVE_OR_UNSET = _Rule(
    "a positive integer, or -1 for unset", lambda v: _is_positive(v) or (_is_whole(v) and v == -1)
)
_FEW = _Rule("a positive integer up to 64", lambda v: _is_whole(v) and 1 <= v <= 64)
_SWITCH = _Rule("true or false", lambda v: isinstance(v, bool))
_MULTIPLES = _Rule(
    "a list of positive numbers such as [1, 2, 4]",
    lambda v: isinstance(v, list | tuple) and 0 < len(v) <= 16 and all(_is_number(m) and 0 < m <= 64 for m in v),
)
_FACTORS = _Rule(
    "a list of downsampling factors such as [2, 4]",
    lambda v: isinstance(v, list | tuple | set | frozenset) and all(map(_is_positive, v)),
)
_SHARE = _Rule("a number of at least 0 and below 1", lambda v: _is_number(v) and 0 <= v < 1)

# Every argument of guided-diffusion's UNetModel (plus its script-level `learn_sigma`) with its default and rule.
# `use_checkpoint` and `use_fp16` change memory and storage, never the function.
_ARGUMENTS: Mapping[str, tuple[Any, _Rule]] = {
    "image_size": (None, _POSITIVE_OR_NONE),
    "in_channels": (3, _POSITIVE),
    "model_channels": (None, _POSITIVE),
    "out_channels": (None, _POSITIVE_OR_NONE),
    "num_res_blocks": (None, _FEW),
    "attention_resolutions": ((), _FACTORS),
    "dropout": (0.0, _SHARE),
    "channel_mult": ((1, 2, 4, 8), _MULTIPLES),
    "conv_resample": (True, _SWITCH),
    "dims": (2, _POSITIVE),
    "num_classes": (None, _POSITIVE_OR_NONE),
    "use_checkpoint": (False, _SWITCH),
    "use_fp16": (False, _SWITCH),
    "num_heads": (1, _POSITIVE_OR_UNSET),
    "num_head_channels": (-1, _POSITIVE_OR_UNSET),
    "num_heads_upsample": (-1, _POSITIVE_OR_UNSET),
    "use_scale_shift_norm": (False, _SWITCH),
    "resblock_updown": (False, _SWITCH),
    "use_new_attention_order": (False, _SWITCH),
    "learn_sigma": (False, _SWITCH),
}


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in defaults and refuse arguments the published network does not have or we cannot express.

    Raises:
        CheckpointError: an argument is unknown, of another type or out of range, or the arguments do not fit together.
    """
    unknown = sorted(str(name) for name in config if name not in _ARGUMENTS)
    if unknown:
        raise CheckpointError(f"unknown U-Net argument {unknown[0]!r}; known: {', '.join(_ARGUMENTS)}")
    full = {name: config.get(name, default) for name, (default, _) in _ARGUMENTS.items()}
    for name, (_, rule) in _ARGUMENTS.items():
        if not rule.holds(full[name]):
            raise CheckpointError(f"U-Net argument {name!r} must be {rule.words}, not {_shown(full[name])}")
    full["channel_mult"] = tuple(full["channel_mult"])
    full["attention_resolutions"] = tuple(full["attention_resolutions"])
    if full["out_channels"] is None:
        full["out_channels"] = full["in_channels"] * (2 if full["learn_sigma"] else 1)
    _check_together(full)
    return full


def _shown(value: Any) -> str:
    """Show a value in one short line: it comes from a file."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "..."


def _check_together(full: Mapping[str, Any]) -> None:
    """Refuse arguments that are each valid but make no network we can express."""
    if full["dims"] != 2 or not full["conv_resample"]:
        raise CheckpointError("only two-dimensional networks with convolutional or residual resampling are supported")
    if full["num_head_channels"] == -1:
        if full["num_heads"] == -1:
            raise CheckpointError("U-Net argument 'num_heads' must be a positive integer unless 'num_head_channels' is")
        if full["num_heads_upsample"] not in (-1, full["num_heads"]):
            raise CheckpointError(
                "U-Net argument 'num_heads_upsample' must be -1: one head count serves both directions"
            )
    for width in widths_of(full):
        if width < 1 or width % GROUPS:
            raise CheckpointError(f"U-Net width {width} is not a multiple of {GROUPS}, the number of norm groups")
    for width in attended_widths(full):
        if width % (full["num_heads"] if full["num_head_channels"] == -1 else full["num_head_channels"]):
            raise CheckpointError(f"U-Net width {width} cannot be split into attention heads as configured")


def widths_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the channels of each level, finest first."""
    return tuple(int(mult * config["model_channels"]) for mult in config["channel_mult"])


def attended_widths(config: Mapping[str, Any]) -> set[int]:
    """Return the widths that attention sees: those of the attended levels and of the middle."""
    widths = widths_of(config)
    return {widths[-1]} | {w for level, w in enumerate(widths) if 2**level in config["attention_resolutions"]}


def heads(config: Mapping[str, Any], width: int) -> int:
    """Return the number of attention heads at a width."""
    per_head = config["num_head_channels"]
    return config["num_heads"] if per_head == -1 else width // per_head
