"""Guided-diffusion's parameter names and shapes, mapped onto those of ``diffusers.UNet2DModel``.

A configuration with a ``pool`` is that of the classifier, ``EncoderUNetModel``: the same encoder under another head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from bench.models.networks.arguments import Shapes, heads

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
    "conv_shortcut": "skip_connection",  # where the width changes
}
_ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
_POOL = ("positional_embedding", "qkv_proj.weight", "qkv_proj.bias", "c_proj.weight", "c_proj.bias")
_TENSORS: Mapping[str, Mapping[str, str]] = {
    "pair": {end: end for end in ENDS},  # a convolution, norm, linear layer or, without bias, embedding
    "time": {"null": "null"},
    "res": {f"{ours}.{end}": f"{theirs}.{end}" for ours, theirs in _RES.items() for end in ENDS},
    "attention": {f"{ours}.{end}": f"{theirs}.{end}" for ours, theirs in _ATTENTION.items() for end in ENDS},
    "pool": {name: name for name in _POOL},
}
_Part: TypeAlias = tuple[str, str, str]  # a block's published name, ours, and its kind: which tensors it has


def _parts(config: Mapping[str, Any]) -> Iterator[_Part]:
    """Walk the published network in the order of its file and name each block, those that it may have among them."""
    yield "time_embed.0", "time_embedding.linear_1", "pair"
    yield "time_embed.2", "time_embedding.linear_2", "pair"
    yield "time_embed", "time_proj", "time"
    yield "label_emb", "class_embedding", "pair"
    yield "input_blocks.0.0", "conv_in", "pair"
    levels, blocks, is_residual = len(config["channel_mult"]), config["num_res_blocks"], config["resblock_updown"]
    count = 1
    for level in range(levels):
        for block in range(blocks):
            yield f"input_blocks.{count}.0", f"down_blocks.{level}.resnets.{block}", "res"
            yield f"input_blocks.{count}.1", f"down_blocks.{level}.attentions.{block}", "attention"
            count += 1
        old, new, kind = ("", "", "res") if is_residual else (".op", ".conv", "pair")
        yield f"input_blocks.{count}.0{old}", f"down_blocks.{level}.downsamplers.0{new}", kind
        count += 1
    yield "middle_block.0", "mid_block.resnets.0", "res"
    yield "middle_block.1", "mid_block.attentions.0", "attention"
    yield "middle_block.2", "mid_block.resnets.1", "res"
    if "pool" in config:
        yield "out.0", "norm", "pair"
        yield ("out.2", "pool", "pool") if config["pool"] == "attention" else ("out.3", "pool.1", "pair")
        return
    for up in range(levels):
        child = 2 if 2 ** (levels - 1 - up) in config["attention_resolutions"] else 1  # what comes after attention
        for block in range(blocks + 1):
            count = up * (blocks + 1) + block
            yield f"output_blocks.{count}.0", f"up_blocks.{up}.resnets.{block}", "res"
            yield f"output_blocks.{count}.1", f"up_blocks.{up}.attentions.{block}", "attention"
        suffix, kind = ("", "res") if is_residual else (".conv", "pair")
        yield f"output_blocks.{count}.{child}{suffix}", f"up_blocks.{up}.upsamplers.0{suffix}", kind
    yield "out.0", "conv_norm_out", "pair"
    yield "out.2", "conv_out", "pair"


def _keys(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every tensor that a network may have, our name and the published one; q, k and v share one."""
    for source, target, kind in _parts(config):
        for ours, theirs in _TENSORS[kind].items():
            yield f"{target}.{ours}", f"{source}.{theirs}"


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
    for target, source in _keys(config):
        if target in state:
            shape = tuple(state[target].shape)
            shapes[source] = attention_shape(target, shape, (1,)) if convolved(target) else shape
    return shapes


def guided_keys(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename a guided-diffusion state dict, whose names and shapes are :func:`published_shapes`, for our network.

    Args:
        state: published names to tensors; no tensor is copied, but q, k and v in the legacy order.
        config: the completed arguments the network was built from.
    """
    pairs = [(target, source) for target, source in _keys(config) if source in state]
    return {target: _converted(target, state[source], config) for target, source in pairs}


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
