"""The ADM U-Net as a library network.

The network of guided-diffusion (Dhariwal & Nichol 2021, ``unet.py``) is expressible as ``diffusers.UNet2DModel``: its
arguments are checked in ``unet_arguments.py`` and its parameter names translated in ``guided_keys.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.models.guided_keys import guided_keys
from bench.models.unet_arguments import GROUPS, CheckpointError, complete, heads, widths_of

__all__ = ["CheckpointError", "adm_unet", "guided_keys", "load_guided_diffusion"]


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

    config = complete(config)
    widths = widths_of(config)
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
        attention_head_dim=GROUPS,  # divides every width; the true head count is set below
        resnet_time_scale_shift="scale_shift" if config["use_scale_shift_norm"] else "default",
        norm_num_groups=GROUPS,
        attn_norm_num_groups=GROUPS,
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
            module.heads = heads(config, width)
            module.scale = (width // module.heads) ** -0.5


def _set_time_width(unet: Any, width: int) -> None:
    """Give the sinusoidal embedding ``model_channels`` entries where the first block is of another width."""
    from diffusers.models.embeddings import Timesteps

    unet.time_proj = Timesteps(width, True, 0)
    unet.time_embedding.linear_1 = nn.Linear(width, unet.time_embedding.linear_1.out_features)


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
