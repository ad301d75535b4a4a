"""Guided-diffusion's parameter names and shapes, mapped onto those of ``diffusers.UNet2DModel``.

A configuration with a ``pool`` is that of the classifier, ``EncoderUNetModel``: the same encoder under another head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from bench.models.networks.arguments import Shapes, heads, widths_of

PROJECTIONS = ("to_q", "to_k", "to_v")  # of an attention layer; released files have them as one tensor


# The tensors of each kind of block, our name to the published one. Of an attention layer the file has q, k and v as one
# convolution, see attention_shape.
ENDS = ("weight", "bias")
_RES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
_ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
_POOL = ("positional_embedding", "qkv_proj.weight", "qkv_proj.bias", "c_proj.weight", "c_proj.bias")
_TENSORS: Mapping[str, Mapping[str, str]] = {
    "pair": {end: end for end in ENDS},  # a convolution, norm or linear layer
    "embedding": {"weight": "weight"},
    "time": {"null": "null"},
    "res": {f"{ours}.{end}": f"{theirs}.{end}" for ours, theirs in _RES.items() for end in ENDS},
    "attention": {f"{ours}.{end}": f"{theirs}.{end}" for ours, theirs in _ATTENTION.items() for end in ENDS},
    "pool": {name: name for name in _POOL},
}
_Part: TypeAlias = tuple[str, str, str]  # a block's published name, ours, and its kind: which tensors it has


def _parts(config: Mapping[str, Any]) -> Iterator[_Part]:
    """Walk the published network in the order of its file and name each block in both networks."""
    yield from _encoder(config)
    if "pool" in config:
        yield "out.0", "norm", "pair"
        yield ("out.2", "pool", "pool") if config["pool"] == "attention" else ("out.3", "pool.1", "pair")
    else:
        yield from _decoder(config)


def _encoder(config: Mapping[str, Any]) -> Iterator[_Part]:
    widths = (widths_of(config)[0], *widths_of(config))  # the first convolution already has the first level's
    yield "time_embed.0", "time_embedding.linear_1", "pair"
    yield "time_embed.2", "time_embedding.linear_2", "pair"
    if config["null_time"]:
        yield "time_embed", "time_proj", "time"
    if config["num_classes"] is not None:
        yield "label_emb", "class_embedding", "embedding"
    yield "input_blocks.0.0", "conv_in", "pair"
    count, levels = 1, len(config["channel_mult"])
    for level in range(levels):
        for block in range(config["num_res_blocks"]):
            widened = block == 0 and widths[level] != widths[level + 1]
            yield from _residual(f"input_blocks.{count}.0", f"down_blocks.{level}.resnets.{block}", widened)
            if 2**level in config["attention_resolutions"]:
                yield f"input_blocks.{count}.1", f"down_blocks.{level}.attentions.{block}", "attention"
            count += 1
        if level < levels - 1:
            old, new, kind = ("", "", "res") if config["resblock_updown"] else (".op", ".conv", "pair")
            yield f"input_blocks.{count}.0{old}", f"down_blocks.{level}.downsamplers.0{new}", kind
            count += 1
    yield "middle_block.0", "mid_block.resnets.0", "res"
    yield "middle_block.1", "mid_block.attentions.0", "attention"
    yield "middle_block.2", "mid_block.resnets.1", "res"


def _decoder(config: Mapping[str, Any]) -> Iterator[_Part]:
    count, blocks = 0, config["num_res_blocks"]
    for up, level in enumerate(reversed(range(len(config["channel_mult"])))):
        attended = 2**level in config["attention_resolutions"]
        for block in range(blocks + 1):
            # What comes from the encoder is stacked on what comes from below, so every block narrows.
            yield from _residual(f"output_blocks.{count}.0", f"up_blocks.{up}.resnets.{block}", True)
            if attended:
                yield f"output_blocks.{count}.1", f"up_blocks.{up}.attentions.{block}", "attention"
            if block == blocks and level > 0:
                suffix, kind = ("", "res") if config["resblock_updown"] else (".conv", "pair")
                child = 2 if attended else 1
                yield f"output_blocks.{count}.{child}{suffix}", f"up_blocks.{up}.upsamplers.0{suffix}", kind
            count += 1
    yield "out.0", "conv_norm_out", "pair"
    yield "out.2", "conv_out", "pair"


def _residual(source: str, target: str, changes_width: bool) -> Iterator[_Part]:
    """Name a residual block, whose shortcut is a convolution where the width changes."""
    yield source, target, "res"
    if changes_width:
        yield f"{source}.skip_connection", f"{target}.conv_shortcut", "pair"


def _keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of every tensor of ours, to its published one; q, k and v of an attention layer share one."""
    return {
        f"{target}.{ours}": f"{source}.{theirs}"
        for source, target, kind in _parts(config)
        for ours, theirs in _TENSORS[kind].items()
    }


def convolved(target: str) -> bool:
    """Tell whether a tensor of ours is of a linear layer of attention, which released files have as a convolution."""
    *path, layer, _ = target.split(".")
    return "attentions" in path and layer != "group_norm"


def attention_shape(target: str, shape: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Return the released shape of an attention layer's tensor.

    Args:
        target: its name in our network, for which :func:`convolved` holds.
        shape: its shape there, [out, in] or [out].
        kernel: of the released convolution.
    """
    rows = 3 * shape[0] if target.split(".")[-2] in PROJECTIONS else shape[0]
    return (rows, shape[1], *kernel) if len(shape) > 1 else (rows,)


def matrix(tensor: Tensor) -> Tensor:
    """Return a convolution's weight [out, in, 1, ...] as [out, in], and its bias [out] as it is."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor


def published_shapes(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Shapes:
    """Return the names and shapes a guided-diffusion file must have for a network of ours.

    Args:
        state: the network's state dict, on any device; ``meta`` is enough.
        config: the completed arguments (:func:`bench.models.networks.arguments.complete`) it was built from.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for target, source in _keys(config).items():
        shape = tuple(state[target].shape)
        shapes[source] = attention_shape(target, shape, (1,)) if convolved(target) else shape
    return shapes


def guided_keys(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename a guided-diffusion state dict, whose names and shapes are :func:`published_shapes`, for our network.

    Args:
        state: published names to tensors; no tensor is copied, but q, k and v in the legacy order.
        config: the completed arguments the network was built from.
    """
    return {target: _converted(target, state[source], config) for target, source in _keys(config).items()}


def _converted(target: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Make a matrix of a convolution of attention, and take q, k or v out of the three."""
    if not convolved(target):
        return tensor
    rows, layer = matrix(tensor), target.split(".")[-2]
    if layer not in PROJECTIONS:
        return rows
    if config["use_new_attention_order"]:
        return rows.chunk(3)[PROJECTIONS.index(layer)]
    # The legacy order: q, k and v interleave head by head.
    width = len(rows) // 3
    split = rows.reshape(heads(config, width), 3, -1, *rows.shape[1:])
    return split[:, PROJECTIONS.index(layer)].reshape(width, *rows.shape[1:])
