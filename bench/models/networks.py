"""The ADM U-Net as a library network, with the published parameter names mapped onto it.

The network of guided-diffusion (Dhariwal & Nichol 2021, ``unet.py``) is expressible as
``diffusers.UNet2DModel``; this file translates its constructor arguments and its state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["CheckpointError", "adm_unet", "guided_keys", "load_guided_diffusion"]

# Constructor arguments of guided-diffusion's UNetModel (plus its script-level `learn_sigma`) with their defaults.
# `use_checkpoint` and `use_fp16` change memory and storage, never the function.
_DEFAULTS: Mapping[str, Any] = {
    "image_size": None,
    "in_channels": 3,
    "model_channels": None,
    "out_channels": None,
    "num_res_blocks": None,
    "attention_resolutions": (),
    "dropout": 0.0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "use_checkpoint": False,
    "use_fp16": False,
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
}
_GROUPS = 32  # guided-diffusion fixes GroupNorm to 32 groups


class CheckpointError(ValueError):
    """A checkpoint or a network description cannot be used; the message says why and how to mend it."""


class _Part(NamedTuple):
    """One block of the network under its two names; ``kind`` is conv, norm, res, attention or linear."""

    source: str
    target: str
    kind: str


_RES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in defaults and refuse arguments the published network does not have or we cannot express."""
    unknown = sorted(set(config) - set(_DEFAULTS))
    if unknown:
        raise CheckpointError(f"unknown U-Net argument {unknown[0]!r}; known: {', '.join(_DEFAULTS)}")
    full = {**_DEFAULTS, **config}
    for name in ("model_channels", "num_res_blocks"):
        if not isinstance(full[name], int) or full[name] < 1:
            raise CheckpointError(f"U-Net argument {name!r} must be a positive integer, not {full[name]!r}")
    if full["dims"] != 2 or not full["conv_resample"]:
        raise CheckpointError("only two-dimensional networks with convolutional or residual resampling are supported")
    full["channel_mult"] = tuple(full["channel_mult"])
    full["attention_resolutions"] = tuple(full["attention_resolutions"])
    if full["out_channels"] is None:
        full["out_channels"] = full["in_channels"] * (2 if full["learn_sigma"] else 1)
    if full["num_head_channels"] == -1 and full["num_heads_upsample"] not in (-1, full["num_heads"]):
        raise CheckpointError("U-Net argument 'num_heads_upsample' must be -1: one head count serves both directions")
    for width in _widths(full):
        if width % _GROUPS:
            raise CheckpointError(f"U-Net width {width} is not a multiple of {_GROUPS}, the number of norm groups")
    for width in _attended_widths(full):
        if width % (full["num_heads"] if full["num_head_channels"] == -1 else full["num_head_channels"]):
            raise CheckpointError(f"U-Net width {width} cannot be split into attention heads as configured")
    return full


def _widths(config: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(mult * config["model_channels"]) for mult in config["channel_mult"])


def _attended_widths(config: Mapping[str, Any]) -> set[int]:
    """Return the widths that attention sees: those of the attended levels and of the middle."""
    widths = _widths(config)
    return {widths[-1]} | {w for level, w in enumerate(widths) if 2**level in config["attention_resolutions"]}


def _heads(config: Mapping[str, Any], width: int) -> int:
    per_head = config["num_head_channels"]
    return config["num_heads"] if per_head == -1 else width // per_head


def adm_unet(config: Mapping[str, Any]) -> Any:
    """Build guided-diffusion's ``UNetModel`` as a ``diffusers.UNet2DModel`` with fresh weights.

    Args:
        config: ``UNetModel``'s constructor arguments. ``attention_resolutions`` are downsampling factors
            (1, 2, 4, ...), as in the class, not image sizes as on its command line. ``learn_sigma`` may stand
            for ``out_channels`` = 2 * ``in_channels``.

    Returns:
        A network called as ``unet(x, t, class_labels=None).sample`` with x [B, C, H, W] float and t [B], the
        0-based training index (fractions allowed); the output has ``out_channels`` channels.

    Raises:
        CheckpointError: an unknown argument, or a network diffusers cannot express (``conv_resample=False``).
    """
    import diffusers  # slow to import: only whoever needs a network pays

    config = _complete(config)
    widths = _widths(config)
    factors = [2**level for level in range(len(widths))]
    attended = [factor in config["attention_resolutions"] for factor in factors]
    plain = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if config["resblock_updown"]
        else ("DownBlock2D", "UpBlock2D")
    )
    resample = "resnet" if config["resblock_updown"] else "conv"
    unet: Any = diffusers.UNet2DModel(
        sample_size=config["image_size"],
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        layers_per_block=config["num_res_blocks"],
        block_out_channels=widths,
        down_block_types=tuple("AttnDownBlock2D" if a else plain[0] for a in attended),
        up_block_types=tuple("AttnUpBlock2D" if a else plain[1] for a in reversed(attended)),
        downsample_type=resample,
        upsample_type=resample,
        downsample_padding=1,
        attention_head_dim=_GROUPS,  # divides every width; the true head count is set below
        resnet_time_scale_shift="scale_shift" if config["use_scale_shift_norm"] else "default",
        norm_num_groups=_GROUPS,
        attn_norm_num_groups=_GROUPS,
        norm_eps=1e-5,
        freq_shift=0,
        flip_sin_to_cos=True,
        time_embedding_dim=4 * config["model_channels"],
        num_class_embeds=config["num_classes"],
        dropout=config["dropout"],
    )
    _set_heads(unet, config)
    if widths[0] != config["model_channels"]:
        _set_time_width(unet, config["model_channels"])
    unet.register_to_config(guided_diffusion=config)
    return unet


def _set_heads(unet: nn.Module, config: Mapping[str, Any]) -> None:
    """Set the head count of every attention layer; diffusers only takes a width per head."""
    from diffusers.models.attention_processor import Attention

    for module in unet.modules():
        if isinstance(module, Attention):
            width = module.to_q.out_features
            module.heads = _heads(config, width)
            module.scale = (width // module.heads) ** -0.5


def _set_time_width(unet: Any, width: int) -> None:
    """Give the sinusoidal embedding ``model_channels`` entries where the first block is of another width."""
    from diffusers.models.embeddings import Timesteps

    unet.time_proj = Timesteps(width, True, 0)
    unet.time_embedding.linear_1 = nn.Linear(width, unet.time_embedding.linear_1.out_features)


def _parts(config: Mapping[str, Any]) -> Iterator[_Part]:
    """Walk the published network in its own order and name each block in both worlds."""
    levels = len(config["channel_mult"])
    blocks = config["num_res_blocks"]
    attended = [2**level in config["attention_resolutions"] for level in range(levels)]
    resample = "res" if config["resblock_updown"] else "conv"
    yield _Part("time_embed.0", "time_embedding.linear_1", "linear")
    yield _Part("time_embed.2", "time_embedding.linear_2", "linear")
    if config["num_classes"] is not None:
        yield _Part("label_emb", "class_embedding", "embedding")
    yield _Part("input_blocks.0.0", "conv_in", "conv")
    count = 1
    for level in range(levels):
        for block in range(blocks):
            yield _Part(f"input_blocks.{count}.0", f"down_blocks.{level}.resnets.{block}", "res")
            if attended[level]:
                yield _Part(f"input_blocks.{count}.1", f"down_blocks.{level}.attentions.{block}", "attention")
            count += 1
        if level < levels - 1:
            old, new = ("", "") if resample == "res" else (".op", ".conv")
            yield _Part(f"input_blocks.{count}.0{old}", f"down_blocks.{level}.downsamplers.0{new}", resample)
            count += 1
    yield _Part("middle_block.0", "mid_block.resnets.0", "res")
    yield _Part("middle_block.1", "mid_block.attentions.0", "attention")
    yield _Part("middle_block.2", "mid_block.resnets.1", "res")
    count = 0
    for up, level in enumerate(reversed(range(levels))):
        for block in range(blocks + 1):
            yield _Part(f"output_blocks.{count}.0", f"up_blocks.{up}.resnets.{block}", "res")
            if attended[level]:
                yield _Part(f"output_blocks.{count}.1", f"up_blocks.{up}.attentions.{block}", "attention")
            if block == blocks and level > 0:
                child = 2 if attended[level] else 1
                suffix = "" if resample == "res" else ".conv"
                yield _Part(f"output_blocks.{count}.{child}{suffix}", f"up_blocks.{up}.upsamplers.0{suffix}", resample)
            count += 1
    yield _Part("out.0", "conv_norm_out", "norm")
    yield _Part("out.2", "conv_out", "conv")


def guided_keys(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename a guided-diffusion state dict for the network that :func:`adm_unet` builds from ``config``.

    Raises:
        CheckpointError: a key of the published network is missing, or a key is left over.
    """
    config = _complete(config)
    left = dict(state)
    renamed: dict[str, Tensor] = {}
    for part in _parts(config):
        for source, target in _tensor_names(part, left):
            renamed[target] = left.pop(source)
        if part.kind == "attention":
            renamed.update(_attention(part, left, config))
    if left:
        raise CheckpointError(
            f"the checkpoint has keys this network lacks, e.g. {min(left)!r}; is the architecture right?"
        )
    return renamed


def _tensor_names(part: _Part, state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Pair the tensor names of one block, leaving out the fused attention projection."""
    if part.kind == "res":
        inner = {k: v for k, v in _RES.items() if k != "skip_connection" or f"{part.source}.{k}.weight" in state}
    elif part.kind == "attention":
        inner = {"norm": "group_norm"}
    else:
        inner = {"": ""}
    suffixes = ("weight",) if part.kind == "embedding" else ("weight", "bias")
    pairs = []
    for old, new in inner.items():
        for suffix in suffixes:
            source = ".".join(filter(None, (part.source, old, suffix)))
            if source not in state:
                raise CheckpointError(f"the checkpoint lacks {source!r}; is it of another architecture?")
            pairs.append((source, ".".join(filter(None, (part.target, new, suffix)))))
    return pairs


def _attention(part: _Part, state: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Split the fused 1x1 convolution ``qkv`` into three linear layers and rename the output projection."""
    try:
        fused = {suffix: state.pop(f"{part.source}.qkv.{suffix}") for suffix in ("weight", "bias")}
        out = {suffix: state.pop(f"{part.source}.proj_out.{suffix}") for suffix in ("weight", "bias")}
    except KeyError as missing:
        raise CheckpointError(f"the checkpoint lacks {missing}; is it of another architecture?") from None
    width = out["bias"].numel()
    if any(tensor.shape[:1] != (3 * width,) for tensor in fused.values()) or width not in _attended_widths(config):
        raise CheckpointError(f"{part.source!r} has attention weights of another shape; is the architecture right?")
    result = {f"{part.target}.to_out.0.weight": _matrix(out["weight"]), f"{part.target}.to_out.0.bias": out["bias"]}
    for suffix, tensor in fused.items():
        rows = _matrix(tensor) if suffix == "weight" else tensor
        if config["use_new_attention_order"]:
            three = rows.chunk(3)
        else:  # legacy order: q, k and v interleave head by head
            split = rows.reshape(_heads(config, width), 3, -1, *rows.shape[1:])
            three = tuple(split[:, j].reshape(width, *rows.shape[1:]) for j in range(3))
        for name, value in zip(("to_q", "to_k", "to_v"), three, strict=True):
            result[f"{part.target}.{name}.{suffix}"] = value
    return result


def _matrix(weight: Tensor) -> Tensor:
    """Drop the trailing kernel dimensions of a 1x1 convolution's weight."""
    return weight.flatten(1) if weight.dim() > 1 else weight


def load_guided_diffusion(unet: Any, state_dict: Mapping[str, Tensor]) -> None:
    """Load a guided-diffusion state dict into a network made by :func:`adm_unet`, in place.

    Tensors of any floating dtype are converted to the network's. Every key must be used and every weight set.

    Raises:
        CheckpointError: keys or shapes differ from the network's.
    """
    renamed = guided_keys(state_dict, unet.config["guided_diffusion"])
    own = unet.state_dict()
    for name, tensor in renamed.items():
        if name not in own:
            raise CheckpointError(f"the checkpoint has {name!r}, which this network lacks; is the architecture right?")
        if own[name].shape != tensor.shape:
            wanted, got = tuple(own[name].shape), tuple(tensor.shape)
            raise CheckpointError(f"{name!r} has shape {got} in the checkpoint but {wanted} in the network")
    missing = sorted(set(own) - set(renamed))
    if missing:
        raise CheckpointError(f"the checkpoint lacks {missing[0]!r}; is it of another architecture?")
    with torch.no_grad():
        unet.load_state_dict(renamed)
