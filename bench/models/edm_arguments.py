"""The constructor arguments of EDM's two networks, DhariwalUNet and SongUNet: order, defaults and checks.

Karras et al. 2022, appendix F; the names are those that the released files record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bench.models.networks.arguments import CheckpointError
from bench.models.networks.shapes import quoted

__all__ = ["ARCHITECTURES", "complete_edm", "groups_of", "levels_of", "named"]

_MOST_GROUPS, _LEAST_PER_GROUP = 32, 4


class _Rule(NamedTuple):
    """What one argument may be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any, least: int, most: int = 1 << 20) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _all_whole(value: Any, most: int, longest: int = 12) -> bool:
    return isinstance(value, list | tuple) and len(value) <= longest and all(_is_whole(v, 1, most) for v in value)


def _one_of(*choices: str) -> _Rule:
    return _Rule(" or ".join(choices), lambda v: isinstance(v, str) and v in choices)


# The upper bounds are far above any released network; they keep a damaged file from asking for an endless one.
_POSITIVE = _Rule("a positive integer", lambda v: _is_whole(v, 1))
_COUNT = _Rule("an integer of at least 0", lambda v: _is_whole(v, 0))
_FEW = _Rule("an integer from 1 to 64", lambda v: _is_whole(v, 1, 64))
_WIDTH = _Rule("an even integer of at least 4", lambda v: _is_whole(v, 4, 1 << 14) and v % 2 == 0)
_MULTIPLES = _Rule("a list of integers such as [1, 2, 2]", lambda v: _all_whole(v, 64) and len(v) > 0)
_SIZES = _Rule("a list of image sizes such as [16]", lambda v: _all_whole(v, 1 << 20, 64))
_TAPS = _Rule(
    "[1, 1], [1, 3, 3, 1] or another even number of weights above 0",
    lambda v: (
        isinstance(v, list | tuple)
        and len(v) in (2, 4, 6, 8)
        and all(isinstance(w, int | float) and not isinstance(w, bool) and 0 < w < math.inf for w in v)
    ),
)
_SHARE = _Rule(
    "a number of at least 0 and below 1",
    lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < 1,
)

_Arguments = Mapping[str, tuple[Any, _Rule]]


def _common(channels: int, multiples: Sequence[int], blocks: int, attended: Sequence[int]) -> _Arguments:
    """Return what both networks take, in the published order."""
    return {
        "img_resolution": (None, _POSITIVE),
        "in_channels": (None, _POSITIVE),
        "out_channels": (None, _POSITIVE),
        "label_dim": (0, _COUNT),
        "augment_dim": (0, _COUNT),
        "model_channels": (channels, _WIDTH),
        "channel_mult": (multiples, _MULTIPLES),
        "channel_mult_emb": (4, _FEW),
        "num_blocks": (blocks, _FEW),
        "attn_resolutions": (attended, _SIZES),
        "dropout": (0.10, _SHARE),
        "label_dropout": (0, _SHARE),
    }


ARCHITECTURES: Mapping[str, _Arguments] = {
    "DhariwalUNet": _common(192, (1, 2, 3, 4), 3, (32, 16, 8)),
    "SongUNet": {
        **_common(128, (1, 2, 2, 2), 4, (16,)),
        "embedding_type": ("positional", _one_of("positional", "fourier")),
        "channel_mult_noise": (1, _FEW),
        "encoder_type": ("standard", _one_of("standard", "skip", "residual")),
        "decoder_type": ("standard", _one_of("standard", "skip")),
        "resample_filter": ((1, 1), _TAPS),
    },
}


def named(order: Sequence[str], positional: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Give positional arguments their names and join the named ones.

    Raises:
        CheckpointError: there are more than names, or one comes twice.
    """
    if len(positional) > len(order):
        raise CheckpointError(f"it records {len(positional)} positional arguments where at most {len(order)} fit")
    result = dict(zip(order, positional, strict=False))
    twice = sorted(str(name) for name in keywords if name in result)
    if twice:
        raise CheckpointError(f"it records the argument {twice[0]!r} twice")
    return {**result, **keywords}


def complete_edm(architecture: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the published defaults and refuse what makes no network.

    Args:
        architecture: ``DhariwalUNet`` or ``SongUNet``.
        given: arguments under their published names.

    Returns:
        Every argument, JSON-like.

    Raises:
        CheckpointError: the architecture or an argument is unknown, or a value is of another type or out of range.
    """
    if architecture not in ARCHITECTURES:
        raise CheckpointError(f"unknown EDM network {_shown(architecture)}; known: {', '.join(ARCHITECTURES)}")
    arguments = ARCHITECTURES[architecture]
    unknown = sorted(_shown(name) for name in given if name not in arguments)
    if unknown:
        raise CheckpointError(f"unknown {architecture} argument {unknown[0]}; known: {', '.join(arguments)}")
    full = {name: given.get(name, default) for name, (default, _) in arguments.items()}
    for name, (_, rule) in arguments.items():
        if not rule.holds(full[name]):
            raise CheckpointError(f"{architecture} argument {name!r} must be {rule.words}, not {_shown(full[name])}")
    full = {name: list(value) if isinstance(value, tuple) else value for name, value in full.items()}
    smallest = 2 ** (len(full["channel_mult"]) - 1)
    if full["img_resolution"] % smallest:
        raise CheckpointError(f"{architecture} argument 'img_resolution' must be a multiple of {smallest}")
    return full


def _shown(value: Any) -> str:
    """Show a value in one short line: it comes from a file and may be anything."""
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 64):
        return repr(value)
    if (
        isinstance(value, list | tuple)
        and len(value) < 10
        and not any(isinstance(v, list | tuple | dict) for v in value)
    ):
        return f"[{', '.join(map(_shown, value))}]"
    return f"a value of the kind {type(value).__name__}"


def levels_of(config: Mapping[str, Any]) -> list[tuple[int, int, bool]]:
    """Return (image size, channels, whether attended) of each level, finest first."""
    sizes = [config["img_resolution"] >> level for level in range(len(config["channel_mult"]))]
    return [
        (size, config["model_channels"] * multiple, size in config["attn_resolutions"])
        for size, multiple in zip(sizes, config["channel_mult"], strict=True)
    ]


def groups_of(channels: int) -> int:
    """Return the groups of a group norm: 32, or fewer so that each holds at least 4 channels.

    Raises:
        CheckpointError: the channels do not divide into them.
    """
    groups = min(_MOST_GROUPS, channels // _LEAST_PER_GROUP)
    if groups < 1 or channels % groups:
        raise CheckpointError(f"{channels} channels do not divide into the norm's {max(groups, 1)} groups")
    return groups
