"""EDM's DhariwalUNet (the ADM U-Net, Karras et al. 2022, appendix F) as a ``diffusers.UNet2DModel``, and its names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.networks.adm import library_unet, set_heads, set_time_width
from bench.models.networks.adm_keys import ENDS, PROJECTIONS, attention_shape, convolved, matrix
from bench.models.networks.arguments import Shapes, complete_edm, groups_of, levels_of, shapes_of
from bench.runtime.errors import CheckpointError

_CHANNELS_PER_HEAD = 64  # EDM sets no other

# The layers of a block and of its attention, our name to the published one.
_RES = {
    "norm1": "norm0",
    "conv1": "conv0",
    "time_emb_proj": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "conv_shortcut": "skip",
}
_ATTENTION = {"group_norm": "norm2", "to_out.0": "proj", **dict.fromkeys(PROJECTIONS, "qkv")}


class DhariwalUNet(nn.Module):
    """The network with fresh weights; its state dict has diffusers' names, see :func:`dhariwal_keys`.

    Args:
        config: the published constructor's arguments, see :data:`bench.models.edm_arguments.ARCHITECTURES`.

    Raises:
        CheckpointError: an argument is unknown or out of range, or widths do not divide into groups or heads.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config = complete_edm("DhariwalUNet", config)
        self.classes: int | None = config["label_dim"] or None
        self.unet = _unet(config)

    def forward(self, x: Tensor, noise: Tensor, class_labels: Tensor | None = None) -> Any:
        """Run the network.

        Args:
            x: scaled states, float32 [B, C, H, W].
            noise: c_noise, float32 [B].
            class_labels: int64 [B]; None is no class, in EDM an all-zero label. Ignored by an unconditional network.

        Returns:
            An object whose ``sample`` is [B, out_channels, H, W].
        """
        if self.classes is None:
            return self.unet(x, noise)
        if class_labels is None:
            class_labels = torch.full((len(x),), self.classes, device=x.device)  # the embedding's last row is zero
        return self.unet(x, noise, class_labels)


def _unet(config: Mapping[str, Any]) -> Any:
    levels = levels_of(config)
    unet = library_unet(
        config,
        [width for _, width, _ in levels],
        [flag and _heads(width) > 0 for _, width, flag in levels],
        is_residual=True,
        sample_size=config["img_resolution"],
        layers_per_block=config["num_blocks"],
        attention_head_dim=None,  # one head; the true count is set below
        add_attention=_heads(levels[-1][1]) > 0,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=1,  # divides every width; the true count is set below
        attn_norm_num_groups=1,
        time_embedding_dim=config["model_channels"] * config["channel_mult_emb"],
        num_class_embeds=config["label_dim"] + 1 if config["label_dim"] else None,
    )
    set_time_width(unet, config["model_channels"])
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = groups_of(module.num_channels)
    set_heads(unet, _heads)
    return unet


def _heads(width: int) -> int:
    """Return the attention heads at a width; below 64 channels the published rule leaves none, thus no attention."""
    heads = width // _CHANNELS_PER_HEAD
    if heads and width % heads:
        raise CheckpointError(f"{width} channels do not divide into {heads} attention heads")
    return heads


def dhariwal_keys(network: DhariwalUNet) -> dict[str, str]:
    """Return the name in a network of every tensor, to its name in a released file.

    Several may share one: q, k and v are one tensor in the file.
    """
    size = network.config["img_resolution"]
    layers = {
        "class_embedding": "map_label",
        "time_embedding.linear_1": "map_layer0",
        "time_embedding.linear_2": "map_layer1",
        "conv_in": f"enc.{size}x{size}_conv",
        "conv_norm_out": "out_norm",
        "conv_out": "out_conv",
    }
    for source, target in _blocks(network.config):
        attention = target.replace("resnets", "attentions")
        layers |= {f"{target}.{ours}": f"{source}.{theirs}" for ours, theirs in _RES.items()}
        layers |= {f"{attention}.{ours}": f"{source}.{theirs}" for ours, theirs in _ATTENTION.items()}
    pairs = [(f"unet.{ours}.{end}", f"{theirs}.{end}") for ours, theirs in layers.items() for end in ENDS]
    names = network.state_dict().keys()  # a block need not have attention, nor a shortcut with weights
    return {ours: theirs for ours, theirs in pairs if ours in names}


def _blocks(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each residual block: its name in the file, where its attention is a part of it, and its name here."""
    sizes = [size for size, _, _ in levels_of(config)]
    for level, size in enumerate(sizes):
        if level > 0:
            yield f"enc.{size}x{size}_down", f"down_blocks.{level - 1}.downsamplers.0"
        for i in range(config["num_blocks"]):
            yield f"enc.{size}x{size}_block{i}", f"down_blocks.{level}.resnets.{i}"
    for i in range(2):
        yield f"dec.{sizes[-1]}x{sizes[-1]}_in{i}", f"mid_block.resnets.{i}"
    for up, size in enumerate(reversed(sizes)):
        if up > 0:
            yield f"dec.{size}x{size}_up", f"up_blocks.{up - 1}.upsamplers.0"
        for i in range(config["num_blocks"] + 1):
            yield f"dec.{size}x{size}_block{i}", f"up_blocks.{up}.resnets.{i}"


def dhariwal_shapes(network: DhariwalUNet) -> Shapes:
    """Return name and shape of every tensor that a released file of this network holds."""
    config, sizes = network.config, shapes_of(network.state_dict())
    shapes = {source: _released_shape(target, sizes[target]) for target, source in dhariwal_keys(network).items()}
    for (finer, _, _), (coarser, _, _) in pairwise(levels_of(config)):
        for block in (f"enc.{coarser}x{coarser}_down", f"dec.{finer}x{finer}_up"):
            shapes |= {f"{block}.{layer}.resample_filter": (1, 1, 2, 2) for layer in ("conv0", "skip")}
    if config["augment_dim"]:
        shapes["map_augment.weight"] = (config["model_channels"], config["augment_dim"])
    return shapes


def _released_shape(target: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if "class_embedding" in target:
        return shape[1], shape[0] - 1
    return attention_shape(target, shape, (1, 1)) if convolved(target) else shape


def dhariwal_state(network: DhariwalUNet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a released file's tensors as a state dict of the network.

    Rows of ``qkv`` come as (channel, q k v); 1x1 convolutions become matrices; the labels' linear layer without bias
    becomes an embedding with a last row of zeros, for no label. ``map_augment`` goes: it adds nothing to images that
    were not augmented.

    Args:
        network: tells which tensors to expect.
        tensors: names and shapes as :func:`dhariwal_shapes` has them.

    Raises:
        CheckpointError: the file resamples with another filter than the plain mean of four pixels.
    """
    filters = [tensor for name, tensor in tensors.items() if name.endswith(".resample_filter")]
    if any(bool((tensor != 0.25).any()) for tensor in filters):
        raise CheckpointError("its DhariwalUNet resamples with a filter that no released one has")
    return {target: _converted(target, tensors[source]) for target, source in dhariwal_keys(network).items()}


def _converted(target: str, tensor: Tensor) -> Tensor:
    if "class_embedding" in target:
        return F.pad(tensor.T, (0, 0, 0, 1)).contiguous()
    if not convolved(target):
        return tensor
    rows, layer = matrix(tensor), target.split(".")[-2]
    return rows[PROJECTIONS.index(layer) :: 3].contiguous() if layer in PROJECTIONS else rows
