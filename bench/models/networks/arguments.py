"""The constructor arguments of the published networks, and whether a file's tensors are those a network needs.

``UNetModel`` of guided-diffusion, and ``DhariwalUNet`` and ``SongUNet`` of EDM (Karras et al. 2022, appendix F).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from bench.runtime.errors import CheckpointError, quoted

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
_SHOWN = 2  # examples of each kind in a message


class _Rule(NamedTuple):
    """What one argument may be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# The upper bounds are far above any network's numbers: a damaged file shall not ask for an endless one.
def _is_whole(value: Any, least: int = 1, most: int = 2**20) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_list(value: Any, holds: Callable[[Any], bool], longest: int) -> bool:
    return isinstance(value, list | tuple) and len(value) <= longest and all(map(holds, value))


def _one_of(*choices: str) -> _Rule:
    return _Rule(" or ".join(choices), lambda v: isinstance(v, str) and v in choices)


_POSITIVE = _Rule("a positive integer", _is_whole)
_POSITIVE_OR_NONE = _Rule("a positive integer or left out", lambda v: v is None or _is_whole(v))
_POSITIVE_OR_UNSET = _Rule("a positive integer, or -1 for unset", lambda v: _is_whole(v, -1) and v != 0)
_COUNT = _Rule("an integer of at least 0", lambda v: _is_whole(v, 0))
_FEW = _Rule("an integer from 1 to 64", lambda v: _is_whole(v, 1, 64))
_EVEN_WIDTH = _Rule("an even integer of at least 4", lambda v: _is_whole(v, 4, 2**14) and v % 2 == 0)
_SWITCH = _Rule("true or false", lambda v: isinstance(v, bool))
_SHARE = _Rule("a number of at least 0 and below 1", lambda v: _is_number(v) and 0 <= v < 1)
_MULTIPLES = _Rule(
    "a list of positive numbers such as [1, 2, 4]",
    lambda v: _is_list(v, lambda m: _is_number(m) and 0 < m <= 64, 16) and len(v) > 0,
)
_WHOLE_MULTIPLES = _Rule(
    "a list of integers such as [1, 2, 2]", lambda v: _is_list(v, lambda m: _is_whole(m, 1, 64), 12) and len(v) > 0
)
_FACTORS = _Rule(
    "a list of downsampling factors such as [2, 4]",
    lambda v: isinstance(v, list | tuple | set | frozenset) and all(map(_is_whole, v)),
)
_SIZES = _Rule("a list of image sizes such as [16]", lambda v: _is_list(v, _is_whole, 64))
_TAPS = _Rule(
    "[1, 1], [1, 3, 3, 1] or another even number of weights above 0",
    lambda v: _is_list(v, lambda w: _is_number(w) and w > 0, 8) and len(v) in (2, 4, 6, 8),
)

_Arguments = Mapping[str, tuple[Any, _Rule]]

# Every argument of guided-diffusion's UNetModel with its default and rule, two of its scripts: `learn_sigma`, and
# `rescale_timesteps`, which the denoiser heeds, and one of ours: `null_time`, a learned embedding of a missing time.
# `use_checkpoint` and `use_fp16` never change the function.
_UNET_MODEL: _Arguments = {
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
    "rescale_timesteps": (False, _SWITCH),
    "null_time": (False, _SWITCH),
}


def _edm(channels: int, multiples: Sequence[int], blocks: int, attended: Sequence[int]) -> _Arguments:
    """Return what both of EDM's networks take, in the order of their constructors."""
    return {
        "img_resolution": (None, _POSITIVE),
        "in_channels": (None, _POSITIVE),
        "out_channels": (None, _POSITIVE),
        "label_dim": (0, _COUNT),
        "augment_dim": (0, _COUNT),
        "model_channels": (channels, _EVEN_WIDTH),
        "channel_mult": (multiples, _WHOLE_MULTIPLES),
        "channel_mult_emb": (4, _FEW),
        "num_blocks": (blocks, _FEW),
        "attn_resolutions": (attended, _SIZES),
        "dropout": (0.10, _SHARE),
        "label_dropout": (0, _SHARE),
    }


ARCHITECTURES: Mapping[str, _Arguments] = {
    "DhariwalUNet": _edm(192, (1, 2, 3, 4), 3, (32, 16, 8)),
    "SongUNet": {
        **_edm(128, (1, 2, 2, 2), 4, (16,)),
        "embedding_type": ("positional", _one_of("positional", "fourier")),
        "channel_mult_noise": (1, _FEW),
        "encoder_type": ("standard", _one_of("standard", "skip", "residual")),
        "decoder_type": ("standard", _one_of("standard", "skip")),
        "resample_filter": ((1, 1), _TAPS),
    },
}


def _filled(network: str, arguments: _Arguments, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument, the defaults filled in; refuse what is unknown or out of range."""
    unknown = sorted(quoted(name) for name in given if name not in arguments)
    if unknown:
        raise CheckpointError(f"unknown {network} argument {unknown[0]}; known: {', '.join(arguments)}")
    full = {name: given.get(name, default) for name, (default, _) in arguments.items()}
    for name, (_, rule) in arguments.items():
        if not rule.holds(full[name]):
            raise CheckpointError(f"{network} argument {name!r} must be {rule.words}, not {quoted(full[name])}")
    return full


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of ``UNetModel``.

    Raises:
        CheckpointError: an argument is unknown, of another type or out of range, or the arguments do not fit together.
    """
    full = _filled("U-Net", _UNET_MODEL, config)
    full["channel_mult"] = tuple(full["channel_mult"])
    full["attention_resolutions"] = tuple(full["attention_resolutions"])
    if full["out_channels"] is None:
        full["out_channels"] = full["in_channels"] * (2 if full["learn_sigma"] else 1)
    _check_together(full)
    return full


def _check_together(full: Mapping[str, Any]) -> None:
    """Refuse arguments that are each valid but make no network that diffusers can express."""
    if full["dims"] != 2 or not full["conv_resample"]:
        raise CheckpointError("only two-dimensional networks with convolutional or residual resampling are supported")
    if full["num_head_channels"] == -1:
        if full["num_heads"] == -1:
            raise CheckpointError("U-Net argument 'num_heads' must be a positive integer unless 'num_head_channels' is")
        if full["num_heads_upsample"] not in (-1, full["num_heads"]):
            raise CheckpointError("U-Net argument 'num_heads_upsample' must be -1: both directions have the same heads")
    widths = widths_of(full)
    for width in widths:
        if width < 1 or width % GROUPS:
            raise CheckpointError(f"U-Net width {width} is not a multiple of {GROUPS}, the number of norm groups")
    attended = {w for level, w in enumerate(widths) if 2**level in full["attention_resolutions"]}
    for width in {*attended, widths[-1]}:  # the middle has attention, too
        if width % (full["num_heads"] if full["num_head_channels"] == -1 else full["num_head_channels"]):
            raise CheckpointError(f"U-Net width {width} cannot be split into attention heads as configured")


GROUPS = 32  # of every GroupNorm of guided-diffusion


def widths_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the channels of each level of ``UNetModel``, finest first."""
    return tuple(int(mult * config["model_channels"]) for mult in config["channel_mult"])


def heads(config: Mapping[str, Any], width: int) -> int:
    """Return the number of attention heads at a width of ``UNetModel``."""
    per_head = config["num_head_channels"]
    return config["num_heads"] if per_head == -1 else width // per_head


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
    """Return every argument of one of EDM's networks, JSON-like.

    Args:
        architecture: ``DhariwalUNet`` or ``SongUNet``.
        given: arguments under their published names.

    Raises:
        CheckpointError: the architecture or an argument is unknown, or a value is of another type or out of range.
    """
    if architecture not in ARCHITECTURES:
        raise CheckpointError(f"unknown EDM network {quoted(architecture)}; known: {', '.join(ARCHITECTURES)}")
    full = _filled(architecture, ARCHITECTURES[architecture], given)
    full = {name: list(value) if isinstance(value, tuple) else value for name, value in full.items()}
    smallest = 2 ** (len(full["channel_mult"]) - 1)
    if full["img_resolution"] % smallest:
        raise CheckpointError(f"{architecture} argument 'img_resolution' must be a multiple of {smallest}")
    return full


def levels_of(config: Mapping[str, Any]) -> list[tuple[int, int, bool]]:
    """Return (image size, channels, whether attended) of each level of one of EDM's networks, finest first."""
    sizes = [config["img_resolution"] >> level for level in range(len(config["channel_mult"]))]
    return [
        (size, config["model_channels"] * multiple, size in config["attn_resolutions"])
        for size, multiple in zip(sizes, config["channel_mult"], strict=True)
    ]


def groups_of(channels: int) -> int:
    """Return the groups of EDM's group norms: 32, or fewer so that each holds at least 4 channels.

    Raises:
        CheckpointError: the channels do not divide into them.
    """
    groups = min(32, channels // 4)
    if groups < 1 or channels % groups:
        raise CheckpointError(f"{channels} channels do not divide into the norm's {max(groups, 1)} groups")
    return groups


class MisfitError(CheckpointError):
    """A file's names or shapes are not the network's."""


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def misfit(shapes: Shapes, expected: Shapes) -> str | None:
    """Say in one line how a file differs from what a network needs, or None where it does not.

    Args:
        shapes: the file's names and shapes.
        expected: the network's, under the same names.
    """
    lacking = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    shaped = [name for name in expected if name in shapes and shapes[name] != expected[name]]
    parts = [
        _some("lacks ", lacking, quoted),
        _some("has ", extra, quoted, " which it should not"),
        _some("", shaped, lambda name: f"{quoted(name)} is {_shown(shapes[name])} and not {_shown(expected[name])}"),
    ]
    return "; ".join(filter(None, parts)) or None


def _some(before: str, names: Sequence[str], describe: Callable[[str], str], after: str = "") -> str:
    """Name the first few of the names and count the rest."""
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{before}{', '.join(map(describe, names[:_SHOWN]))}{more}{after}"


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
