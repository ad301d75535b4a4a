"""The ADM U-Net as a library network.

The network of guided-diffusion (Dhariwal & Nichol 2021, ``unet.py``) is expressible as ``diffusers.UNet2DModel``: its
arguments are checked in ``arguments.py`` and its parameter names translated in ``adm_keys.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from bench.models.networks.adm_keys import guided_keys, published_shapes
from bench.models.networks.arguments import GROUPS, MisfitError, complete, heads, misfit, shapes_of, widths_of


def adm_unet(config: Mapping[str, Any]) -> Any:
    """Build guided-diffusion's ``UNetModel`` as a ``diffusers.UNet2DModel`` with fresh weights.

    Args:
        config: ``UNetModel``'s constructor arguments, and ``null_time`` for a network that can be asked without one.
            ``attention_resolutions`` are downsampling factors (1, 2, 4, ...), as in the class, not image sizes as on
            its command line. ``learn_sigma`` may stand for ``out_channels`` = 2 * ``in_channels``.

    Returns:
        A network called as ``unet(x, t, class_labels=None).sample`` with x [B, C, H, W] float and t [B], the
        0-based training index (fractions allowed; below 0 for none); the output has ``out_channels`` channels.

    Raises:
        CheckpointError: an unknown argument, or a network diffusers cannot express (``conv_resample=False``).
    """
    config = complete(config)
    widths = widths_of(config)
    unet = library_unet(
        config,
        widths,
        [2**level in config["attention_resolutions"] for level in range(len(widths))],
        is_residual=config["resblock_updown"],
        sample_size=config["image_size"],
        layers_per_block=config["num_res_blocks"],
        attention_head_dim=GROUPS,  # divides every width; the true head count is set below
        resnet_time_scale_shift="scale_shift" if config["use_scale_shift_norm"] else "default",
        norm_num_groups=GROUPS,
        attn_norm_num_groups=GROUPS,
        time_embedding_dim=4 * config["model_channels"],
        num_class_embeds=config["num_classes"],
    )
    set_heads(unet, partial(heads, config))
    _upsample_contiguous(unet)
    if widths[0] != config["model_channels"]:
        set_time_width(unet, config["model_channels"])
    if config["null_time"]:
        unet.time_proj = _NullableTime(unet.time_proj, config["model_channels"])
    unet.register_to_config(guided_diffusion=config)
    return unet


def library_unet(
    config: Mapping[str, Any], widths: Sequence[int], attended: Sequence[bool], *, is_residual: bool, **settings: Any
) -> Any:
    """Build the library's U-Net, with what ADM's and EDM's have in common.

    Args:
        config: has the ``in_channels``, ``out_channels`` and ``dropout``.
        widths: channels of each level, finest first.
        attended: which levels have attention.
        is_residual: whether levels without it resample in residual blocks, not by a convolution.
        settings: other arguments of the library's class.
    """
    import diffusers  # slow to import: only whoever needs a network pays

    plain, resample = ("Resnet{}sampleBlock2D", "resnet") if is_residual else ("{}Block2D", "conv")
    return diffusers.UNet2DModel(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        block_out_channels=tuple(widths),
        down_block_types=tuple("AttnDownBlock2D" if a else plain.format("Down") for a in attended),
        up_block_types=tuple("AttnUpBlock2D" if a else plain.format("Up") for a in reversed(attended)),
        downsample_type=resample,
        upsample_type=resample,
        norm_eps=1e-5,
        dropout=config["dropout"],
        **settings,
    )


def without_weights(build: Callable[[], Any]) -> Any:
    """Call ``build`` where tensors are on ``meta``: its network has names and shapes and takes no memory."""
    import_module("diffusers.models.unets.unet_2d")  # here: tensors that libraries make on import must be real
    with torch.device("meta"):
        return build()


def set_heads(unet: nn.Module, heads_at: Callable[[int], int]) -> None:
    """Set the head count of every attention layer, a function of its width; diffusers only takes a width per head."""
    from diffusers.models.attention_processor import Attention

    for module in unet.modules():
        if isinstance(module, Attention):
            width = module.to_q.out_features
            module.heads = heads_at(width)
            module.scale = (width // module.heads) ** -0.5


def _upsample_contiguous(unet: nn.Module) -> None:
    """Let every upsampling read its input channel by channel at any batch size.

    diffusers does so from 64 images on; below, the order that attention leaves in memory chooses another kernel for the
    convolution that follows, and a sample's last bits change with the batch it is in.
    """
    from diffusers.models.upsampling import Upsample2D

    for module in unet.modules():
        if isinstance(module, Upsample2D):
            module.register_forward_pre_hook(_contiguous)


def _contiguous(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return inputs[0].contiguous(), *inputs[1:]


def set_time_width(unet: Any, width: int) -> None:
    """Give the sinusoidal embedding ``width`` entries; diffusers ties it to the first block's width."""
    from diffusers.models.embeddings import Timesteps

    unet.time_proj = Timesteps(width, True, 0)
    unet.time_embedding.linear_1 = nn.Linear(width, unet.time_embedding.linear_1.out_features)


class _NullableTime(nn.Module):
    """The sinusoidal embedding of times [B], [B, width], and a learned one of a time below 0, which stands for none.

    It starts at 0 and draws no random number, so that all other weights are those of the network without it.
    """

    def __init__(self, sinusoid: nn.Module, width: int) -> None:
        super().__init__()
        self.sinusoid, self.null = sinusoid, nn.Parameter(torch.zeros(width))

    def forward(self, t: Tensor) -> Tensor:
        return torch.where((t < 0)[:, None], self.null, self.sinusoid(t))


def check_fit(network: Any, state: Mapping[str, Tensor]) -> None:
    """Refuse a guided-diffusion state dict whose names or shapes are not the network's, which may be on ``meta``.

    Raises:
        MisfitError: it says which differ.
    """
    expected = published_shapes(network.state_dict(), network.config["guided_diffusion"])
    difference = misfit(shapes_of(state), expected)
    if difference:
        raise MisfitError(f"the checkpoint {difference}")


def load_guided_diffusion(network: Any, state: Mapping[str, Tensor]) -> None:
    """Load a guided-diffusion state dict into a network of ours, in place.

    Tensors of any floating dtype are converted to the network's. Names and shapes must be exactly the network's; they
    do not tell the legacy attention order from the new one, nor how many heads there are.

    Args:
        network: made by :func:`adm_unet` or :func:`bench.models.networks.classifier.classifier_network`.
        state: the published names to tensors.

    Raises:
        MisfitError: names or shapes differ.
    """
    check_fit(network, state)
    with torch.no_grad():
        network.load_state_dict(guided_keys(state, network.config["guided_diffusion"]))
