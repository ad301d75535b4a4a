"""What both of EDM's networks owe: the described function of the tensors of a file, every one of which is read."""

from functools import cache

import edm_reference
import pytest
import torch
from edm_files import NCSNPP, random_tensors, small_config

from bench.models.networks.dhariwal import DhariwalUNet, dhariwal_state
from bench.models.networks.song import SongUNet

VARIANTS = {
    "ddpmpp": ("SongUNet", {}),
    "ddpmpp-conditional": ("SongUNet", {"label_dim": 3, "augment_dim": 9}),
    "ncsnpp": ("SongUNet", NCSNPP),
    "ncsnpp-skip": ("SongUNet", {**NCSNPP, "encoder_type": "skip", "decoder_type": "skip", "channel_mult": [1, 1, 2]}),
    "residual-boxes": ("SongUNet", {"encoder_type": "residual"}),
    "attended-finest": ("SongUNet", {"channel_mult": [2, 1, 1], "attn_resolutions": [8, 2], "num_blocks": 2}),
    "one-head": ("DhariwalUNet", {}),  # 32 channels have no head, thus no attention; 64 have one
    "heads-by-width": ("DhariwalUNet", {"model_channels": 64, "channel_mult": [1, 3], "attn_resolutions": [8, 4]}),
    "conditional": ("DhariwalUNet", {"label_dim": 3, "augment_dim": 9}),
    "odd-multiples": ("DhariwalUNet", {"channel_mult": [2, 1, 3], "attn_resolutions": [8, 4], "num_blocks": 2,
                                       "channel_mult_emb": 2}),
    "no-attention": ("DhariwalUNet", {"channel_mult": [1, 1], "attn_resolutions": [8, 4]}),
    "one-level": ("DhariwalUNet", {"channel_mult": [2], "attn_resolutions": []}),
}  # fmt: skip
# Relative to the largest output. Both sides are float32, which keeps 6e-8 of each of about fifty layers' values; in
# random directions that is sqrt(50) * 6e-8 = 4e-7 of the output's size, and sums over a few hundred terms add as much:
# 1.4e-6 is the worst seen. The subtlest mistake known, a norm epsilon of 1e-5 for 1e-6 or the reverse, shows as 1.5e-5
# or more.
TOLERANCE = 5e-6
NOISE = torch.tensor([-1.5, 0.25, 1.1])
CONDITIONAL = pytest.mark.parametrize("name", ["ddpmpp-conditional", "conditional"])


@cache
def loaded(name):
    """Return a network with random weights, the tensors of its file, and the function of (x, one-hot labels)."""
    architecture, options = VARIANTS[name]
    config = small_config(architecture, **options)
    tensors = random_tensors(architecture, config)
    network = (SongUNet if architecture == "SongUNet" else DhariwalUNet)(config).eval()
    network.load_state_dict(tensors if architecture == "SongUNet" else dhariwal_state(network, tensors))
    return network, lambda x, label: edm_reference.network(architecture, tensors, config, x, NOISE, label)


@pytest.fixture
def x():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_the_network_is_the_described_function(name, x):
    network, described = loaded(name)
    labels = torch.tensor([2, 0, 1]) if "label_dim" in VARIANTS[name][1] else None
    got, expected = network(x, NOISE, labels).sample, described(x, None if labels is None else torch.eye(3)[labels])
    assert (got.shape, got.dtype) == (x.shape, torch.float32)
    assert (got - expected).abs().max() < TOLERANCE * expected.abs().max()


@CONDITIONAL
@torch.no_grad()
def test_no_label_is_an_all_zero_label(name, x):
    network, described = loaded(name)
    got, expected = network(x, NOISE, None).sample, described(x, torch.zeros(3, 3))
    assert (got - expected).abs().max() < TOLERANCE * expected.abs().max()
    labelled = network(x, NOISE, torch.tensor([0, 1, 2])).sample
    assert (got - labelled).abs().max() > 100 * TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", ["ddpmpp", "one-head"])
@torch.no_grad()
def test_an_unconditional_network_ignores_labels(name, x):
    network, _ = loaded(name)
    assert torch.equal(network(x, NOISE, torch.tensor([0, 1, 2])).sample, network(x, NOISE).sample)
