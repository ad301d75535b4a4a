from __future__ import annotations

import math

import edm_reference
import pytest
import torch
from edm_files import random_tensors, shapes_of_file, small_config

from bench.models.networks.dhariwal import DhariwalUNet, dhariwal_keys, dhariwal_shapes, dhariwal_state
from bench.runtime.errors import CheckpointError

VARIANTS = {
    "one-head": {},  # 32 channels have no head, thus no attention; 64 have one
    "heads-by-width": {"model_channels": 64, "channel_mult": [1, 3], "attn_resolutions": [8, 4]},
    "conditional": {"label_dim": 3, "augment_dim": 9},
    "odd-multiples": {"channel_mult": [2, 1, 3], "attn_resolutions": [8, 4], "num_blocks": 2, "channel_mult_emb": 2},
    "no-attention": {"channel_mult": [1, 1], "attn_resolutions": [8, 4]},
    "one-level": {"channel_mult": [2], "attn_resolutions": []},
}
# Derived in test_song.py; 1.2e-6 is the worst seen here, a wrong norm epsilon shows as 1.5e-5 or more.
TOLERANCE = 5e-6


def loaded(config):
    network = DhariwalUNet(config).eval()
    tensors = random_tensors("DhariwalUNet", config)
    network.load_state_dict(dhariwal_state(network, tensors))
    return network, tensors


def inputs():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([-1.5, 0.25, 1.1])


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_are_those_of_the_files(name):
    config = small_config("DhariwalUNet", **VARIANTS[name])
    with torch.device("meta"):
        network = DhariwalUNet(config)
    assert dhariwal_shapes(network) == shapes_of_file("DhariwalUNet", config)
    assert set(dhariwal_keys(config)) == set(network.state_dict())


def test_the_released_imagenet_network_has_its_published_size():
    """296 million (Karras et al. 2022, appendix F), counted without the fixed filters."""
    config = {"img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000, "augment_dim": 9}
    with torch.device("meta"):
        network = DhariwalUNet(config)
    shapes = dhariwal_shapes(network)
    full = {
        **config,
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    }
    assert shapes == shapes_of_file("DhariwalUNet", full)
    count = sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith("resample_filter"))
    assert round(count / 1e6) == 296
    # q, k and v of one tensor are three, and the embedding has a row of zeros for no label
    assert sum(p.numel() for p in network.parameters()) == count + 4 * 192 - 9 * 192


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_the_network_is_the_described_function(name):
    config = small_config("DhariwalUNet", **VARIANTS[name])
    network, tensors = loaded(config)
    x, noise = inputs()
    labels = torch.tensor([2, 0, 1]) if config["label_dim"] else None
    one_hot = torch.eye(3)[labels] if labels is not None else None
    got = network(x, noise, labels).sample
    expected = edm_reference.network("DhariwalUNet", tensors, config, x, noise, one_hot)
    assert (got - expected).abs().max() < TOLERANCE * expected.abs().max()


@torch.no_grad()
def test_no_label_is_an_all_zero_label():
    config = small_config("DhariwalUNet", label_dim=3)
    network, tensors = loaded(config)
    x, noise = inputs()
    expected = edm_reference.network("DhariwalUNet", tensors, config, x, noise, torch.zeros(3, 3))
    got = network(x, noise, None).sample
    assert (got - expected).abs().max() < TOLERANCE * expected.abs().max()
    labelled = network(x, noise, torch.tensor([0, 1, 2])).sample
    assert (got - labelled).abs().max() > 100 * TOLERANCE * expected.abs().max()


@torch.no_grad()
def test_an_unconditional_network_ignores_labels():
    network, _ = loaded(small_config("DhariwalUNet"))
    x, noise = inputs()
    assert torch.equal(network(x, noise, torch.tensor([0, 1, 2])).sample, network(x, noise).sample)


def test_another_filter_is_refused():
    config = small_config("DhariwalUNet")
    tensors = random_tensors("DhariwalUNet", config)
    tensors["enc.4x4_down.conv0.resample_filter"] += 0.01
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
