"""A network that the tests of the hooks share."""

from __future__ import annotations

import diffusers
import pytest
import torch


@pytest.fixture
def small_unet():
    """A network with random weights for 8x8 images of one channel."""
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
