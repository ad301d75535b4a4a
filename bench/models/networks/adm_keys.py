"""Guided-diffusion's parameter names and shapes, mapped onto those of ``diffusers.UNet2DModel``.

A configuration with a ``pool`` is that of the classifier, ``EncoderUNetModel``: the same encoder under another head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from bench.models.networks.arguments import Shapes, heads, widths_of


class _Part(NamedTuple):
    """One block of the network under its two names; ``kind`` says which tensors it has."""

    source: str
    target: str
    kind: str


# The tensors of each kind of block, published name to ours. An attention layer's projections are fused: see _attention.
_PAIR = {"weight": "weight", "bias": "bias"}
_RES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
_POOL = ("positional_embedding", "qkv_proj.weight", "qkv_proj.bias", "c_proj.weight", "c_proj.bias")
_TENSORS: Mapping[str, Mapping[str, str]] = {
    "pair": _PAIR,  # a convolution, norm or linear layer
    "embedding": {"weight": "weight"},
    "time": {"null": "null"},
    "res": {f"{old}.{s}": f"{new}.{s}" for old, new in _RES.items() for s in _PAIR},
    "skip": _PAIR,
    "attention": {f"norm.{s}": f"group_norm.{s}" for s in _PAIR},
    "pool": {name: name for name in _POOL},
}


def _parts(config: Mapping[str, Any]) -> Iterator[_Part]:
    """Walk the published network in the order of its file and name each block in both networks."""
    yield from _encoder(config)
    if "pool" in config:
        yield _Part("out.0", "norm", "pair")
        yield _Part("out.2", "pool", "pool") if config["pool"] == "attention" else _Part("out.3", "pool.1", "pair")
    else:
        yield from _decoder(config)


def _encoder(config: Mapping[str, Any]) -> Iterator[_Part]:
    widths = (widths_of(config)[0], *widths_of(config))  # the first convolution already has the first level's
    yield _Part("time_embed.0", "time_embedding.linear_1", "pair")
    yield _Part("time_embed.2", "time_embedding.linear_2", "pair")
    if config["null_time"]:
        yield _Part("time_embed", "time_proj", "time")
    if config["num_classes"] is not None:
        yield _Part("label_emb", "class_embedding", "embedding")
    yield _Part("input_blocks.0.0", "conv_in", "pair")
    count, levels = 1, len(config["channel_mult"])
    for level in range(levels):
        for block in range(config["num_res_blocks"]):
            widened = block == 0 and widths[level] != widths[level + 1]
            yield from _residual(f"input_blocks.{count}.0", f"down_blocks.{level}.resnets.{block}", widened)
            if 2**level in config["attention_resolutions"]:
                yield _Part(f"input_blocks.{count}.1", f"down_blocks.{level}.attentions.{block}", "attention")
            count += 1
        if level < levels - 1:
            old, new, kind = ("", "", "res") if config["resblock_updown"] else (".op", ".conv", "pair")
            yield _Part(f"input_blocks.{count}.0{old}", f"down_blocks.{level}.downsamplers.0{new}", kind)
            count += 1
    yield _Part("middle_block.0", "mid_block.resnets.0", "res")
    yield _Part("middle_block.1", "mid_block.attentions.0", "attention")
    yield _Part("middle_block.2", "mid_block.resnets.1", "res")


def _decoder(config: Mapping[str, Any]) -> Iterator[_Part]:
    count, blocks = 0, config["num_res_blocks"]
    for up, level in enumerate(reversed(range(len(config["channel_mult"])))):
        attended = 2**level in config["attention_resolutions"]
        for block in range(blocks + 1):
            # What comes from the encoder is stacked on what comes from below, so every block narrows.
            yield from _residual(f"output_blocks.{count}.0", f"up_blocks.{up}.resnets.{block}", True)
            if attended:
                yield _Part(f"output_blocks.{count}.1", f"up_blocks.{up}.attentions.{block}", "attention")
            if block == blocks and level > 0:
                suffix, kind = ("", "res") if config["resblock_updown"] else (".conv", "pair")
                child = 2 if attended else 1
                yield _Part(f"output_blocks.{count}.{child}{suffix}", f"up_blocks.{up}.upsamplers.0{suffix}", kind)
            count += 1
    yield _Part("out.0", "conv_norm_out", "pair")
    yield _Part("out.2", "conv_out", "pair")


def _residual(source: str, target: str, changes_width: bool) -> Iterator[_Part]:
    """Name a residual block, whose shortcut is a convolution where the width changes."""
    yield _Part(source, target, "res")
    if changes_width:
        yield _Part(f"{source}.skip_connection", f"{target}.conv_shortcut", "skip")


def published_shapes(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Shapes:
    """Return the names and shapes a guided-diffusion file must have for a network of ours.

    Args:
        state: the network's state dict, on any device; ``meta`` is enough.
        config: the completed arguments (:func:`bench.models.networks.arguments.complete`) it was built from.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for part in _parts(config):
        for old, new in _TENSORS[part.kind].items():
            shapes[f"{part.source}.{old}"] = tuple(state[f"{part.target}.{new}"].shape)
        if part.kind == "attention":
            width = state[f"{part.target}.to_q.bias"].numel()
            shapes[f"{part.source}.qkv.weight"] = (3 * width, width, 1)
            shapes[f"{part.source}.qkv.bias"] = (3 * width,)
            shapes[f"{part.source}.proj_out.weight"] = (width, width, 1)
            shapes[f"{part.source}.proj_out.bias"] = (width,)
    return shapes


def guided_keys(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename a guided-diffusion state dict, whose names and shapes are :func:`published_shapes`, for our network.

    Args:
        state: published names to tensors; no tensor is copied.
        config: the completed arguments the network was built from.
    """
    renamed: dict[str, Tensor] = {}
    for part in _parts(config):
        for old, new in _TENSORS[part.kind].items():
            renamed[f"{part.target}.{new}"] = state[f"{part.source}.{old}"]
        if part.kind == "attention":
            renamed.update(_attention(part, state, config))
    return renamed


def _attention(part: _Part, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Split the fused 1x1 convolution ``qkv`` into three linear layers and rename the output projection."""
    result = {
        f"{part.target}.to_out.0.weight": state[f"{part.source}.proj_out.weight"].squeeze(-1),
        f"{part.target}.to_out.0.bias": state[f"{part.source}.proj_out.bias"],
    }
    for suffix in ("weight", "bias"):
        fused = state[f"{part.source}.qkv.{suffix}"]
        rows = fused.squeeze(-1) if suffix == "weight" else fused
        if config["use_new_attention_order"]:
            three = rows.chunk(3)
        else:  # legacy order: q, k and v interleave head by head
            width = len(rows) // 3
            split = rows.reshape(heads(config, width), 3, -1, *rows.shape[1:])
            three = tuple(split[:, j].reshape(width, *rows.shape[1:]) for j in range(3))
        for name, value in zip(("to_q", "to_k", "to_v"), three, strict=True):
            result[f"{part.target}.{name}.{suffix}"] = value
    return result
