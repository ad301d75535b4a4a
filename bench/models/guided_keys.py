"""Guided-diffusion's parameter names, mapped onto those of ``diffusers.UNet2DModel``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from bench.models.unet_arguments import CheckpointError, attended_widths, complete, heads

__all__ = ["guided_keys"]


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
    config = complete(config)
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
    if any(tensor.shape[:1] != (3 * width,) for tensor in fused.values()) or width not in attended_widths(config):
        raise CheckpointError(f"{part.source!r} has attention weights of another shape; is the architecture right?")
    result = {f"{part.target}.to_out.0.weight": _matrix(out["weight"]), f"{part.target}.to_out.0.bias": out["bias"]}
    for suffix, tensor in fused.items():
        rows = _matrix(tensor) if suffix == "weight" else tensor
        if config["use_new_attention_order"]:
            three = rows.chunk(3)
        else:  # legacy order: q, k and v interleave head by head
            split = rows.reshape(heads(config, width), 3, -1, *rows.shape[1:])
            three = tuple(split[:, j].reshape(width, *rows.shape[1:]) for j in range(3))
        for name, value in zip(("to_q", "to_k", "to_v"), three, strict=True):
            result[f"{part.target}.{name}.{suffix}"] = value
    return result


def _matrix(weight: Tensor) -> Tensor:
    """Drop the trailing kernel dimensions of a 1x1 convolution's weight."""
    return weight.flatten(1) if weight.dim() > 1 else weight
