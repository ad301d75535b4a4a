import math

import pytest
import torch
from edm_files import random_tensors, small_config

from bench.models.networks.dhariwal import DhariwalUNet, dhariwal_shapes, dhariwal_state
from bench.runtime.errors import CheckpointError


def test_the_released_imagenet_network_has_its_published_size():
    """296 million (Karras et al. 2022, appendix F), counted without the fixed filters."""
    config = {"img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000, "augment_dim": 9}
    with torch.device("meta"):
        network = DhariwalUNet(config)
    shapes = dhariwal_shapes(network)
    count = sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith("resample_filter"))
    assert round(count / 1e6) == 296
    # q, k and v of one tensor are three, and the embedding has a row of zeros for no label
    assert sum(p.numel() for p in network.parameters()) == count + 4 * 192 - 9 * 192


def test_another_filter_is_refused():
    config = small_config("DhariwalUNet")
    tensors = random_tensors("DhariwalUNet", config)
    key = "enc.4x4_down.conv0.resample_filter"
    tensors[key] = tensors[key] + 0.01  # the tensors themselves serve other tests
    with pytest.raises(CheckpointError, match="resamples with a filter"):
        dhariwal_state(DhariwalUNet(config), tensors)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"model_channels": 30}, "30 channels do not divide into the norm's 7 groups"),
        ({"model_channels": 224}, "224 channels do not divide into 3 attention heads"),
    ],
)
def test_widths_that_make_no_network_are_refused(widths, message):
    with pytest.raises(CheckpointError, match=message), torch.device("meta"):
        DhariwalUNet(small_config("DhariwalUNet", channel_mult=[1], **widths))
