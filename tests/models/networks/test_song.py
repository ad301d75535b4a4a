from __future__ import annotations

import edm_reference
import pytest
import torch
from edm_files import NCSNPP, random_tensors, shapes_of_file, small_config

from bench.models.networks.shapes import shapes_of
from bench.models.networks.song import ConvThenHalve, Resample, SongUNet
from bench.runtime.errors import CheckpointError

VARIANTS = {
    "ddpmpp": {},
    "ddpmpp-conditional": {"label_dim": 3, "augment_dim": 9},
    "ncsnpp": NCSNPP,
    "ncsnpp-skip": {**NCSNPP, "encoder_type": "skip", "decoder_type": "skip", "channel_mult": [1, 1, 2]},
    "residual-boxes": {"encoder_type": "residual"},
    "three-levels-attended-finest": {"channel_mult": [2, 1, 1], "attn_resolutions": [8, 2], "num_blocks": 2},
}
# Parameters. The first is what others count for Song et al.'s DDPM++, which takes neither class nor augmentation
# labels; Karras et al. 2022, appendix F, round the others to 56 million.
CIFAR10 = {"img_resolution": 32, "in_channels": 3, "out_channels": 3}
COUNTS = {
    "song-et-al": (CIFAR10, 61_804_419),
    "vp-unconditional": ({**CIFAR10, "channel_mult": [2, 2, 2], "augment_dim": 9}, 55_733_891),
    "vp-conditional": ({**CIFAR10, "channel_mult": [2, 2, 2], "augment_dim": 9, "label_dim": 10}, 55_735_299),
}

# Relative to the largest output. Both sides are float32, which keeps 6e-8 of each of about fifty layers' values; in
# random directions that is sqrt(50) * 6e-8 = 4e-7 of the output's size, and sums over a few hundred terms add as much:
# 1.4e-6 is the worst seen. The subtlest mistake known, a norm epsilon of 1e-5 for 1e-6 or the reverse, shows as 1.5e-5
# or more.
TOLERANCE = 5e-6


def on_meta(config):
    with torch.device("meta"):
        return SongUNet(config)


def loaded(config, seed=0):
    network = SongUNet(config).eval()
    tensors = random_tensors("SongUNet", config, seed)
    network.load_state_dict({name: t for name, t in tensors.items() if name in network.state_dict()})
    return network, tensors


def inputs(size=8, batch=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 1, size, size, generator=generator), torch.tensor([-1.5, 0.25, 1.1])[:batch]


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_are_those_of_the_files(name):
    config = small_config("SongUNet", **VARIANTS[name])
    assert shapes_of(SongUNet(config).state_dict()) == shapes_of_file("SongUNet", config)


@pytest.mark.parametrize("name", COUNTS)
def test_the_released_networks_have_their_published_size(name):
    config, count = COUNTS[name]
    network = on_meta(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    full = {
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "label_dim": 0,
        **config,
    }
    assert shapes_of(network.state_dict()) == shapes_of_file("SongUNet", full)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_the_network_is_the_described_function(name):
    config = small_config("SongUNet", **VARIANTS[name])
    network, tensors = loaded(config)
    x, noise = inputs()
    labels = torch.tensor([2, 0, 1]) if config["label_dim"] else None
    one_hot = torch.eye(3)[labels] if labels is not None else None
    got = network(x, noise, labels).sample
    expected = edm_reference.network("SongUNet", tensors, config, x, noise, one_hot)
    assert got.shape == x.shape
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < TOLERANCE * expected.abs().max()


@torch.no_grad()
def test_no_label_is_an_all_zero_label():
    config = small_config("SongUNet", label_dim=3)
    network, tensors = loaded(config)
    x, noise = inputs()
    expected = edm_reference.network("SongUNet", tensors, config, x, noise, torch.zeros(3, 3))
    got = network(x, noise, None).sample
    assert (got - expected).abs().max() < TOLERANCE * expected.abs().max()
    labelled = network(x, noise, torch.tensor([0, 1, 2])).sample
    assert (got - labelled).abs().max() > 100 * TOLERANCE * expected.abs().max()


@torch.no_grad()
def test_an_unconditional_network_ignores_labels():
    network, _ = loaded(small_config("SongUNet"))
    x, noise = inputs()
    assert torch.equal(network(x, noise, torch.tensor([0, 1, 2])).sample, network(x, noise).sample)


@torch.no_grad()
def test_dropout_acts_in_training_only():
    network, _ = loaded(small_config("SongUNet", dropout=0.5))
    x, noise = inputs()
    once, again = (network(x, noise).sample for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(network.train()(x, noise).sample, once)


@torch.no_grad()
def test_larger_images_than_the_configured_ones_pass():
    network, _ = loaded(small_config("SongUNet", **NCSNPP))
    x, noise = inputs(size=16)
    assert network(x, noise).sample.shape == x.shape


def test_widths_that_no_norm_can_group_are_refused():
    # widths 20, 40, 60; beyond 128 channels a norm has 32 groups, and the decoder joins 60 + 80
    with pytest.raises(CheckpointError, match="140 channels do not divide into the norm's 32 groups"):
        on_meta(small_config("SongUNet", model_channels=20, channel_mult=[3, 4]))


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1]])
def test_resampling_keeps_the_mean_of_a_flat_image(taps):
    """Away from the border, where zeros lie beyond: the filter has sum 1 and doubling makes up for its zeros."""
    flat = torch.full((1, 2, 8, 8), 3.0)
    for direction, size in (("up", 16), ("down", 4)):
        out = Resample(direction, taps)(flat)
        assert out.shape == (1, 2, size, size)
        # products of halves, quarters and eighths of 3 are exact in float32
        assert torch.equal(out[:, :, 1:-1, 1:-1], torch.full((1, 2, size - 2, size - 2), 3.0))


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1], [1, 5, 10, 10, 5, 1]])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_resampling_is_the_described_filter(taps, direction):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = getattr(edm_reference, direction)(x, taps)
    # at most 36 products of numbers below about 4 that are summed in float32: 36 * 4 * 6e-8 = 9e-6 at the very worst
    assert torch.allclose(Resample(direction, taps)(x), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_residual_input_path_convolves_before_it_halves():
    layer = ConvThenHalve(3, 5, [1, 3, 3, 1])
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = {"a.weight": layer.weight, "a.bias": layer.bias}
    expected = edm_reference.wide_then_down(weights, "a", x, [1, 3, 3, 1])
    assert expected.shape == (2, 5, 4, 4)
    # 27 products of a weight below .2 and a normal number, then 16 more: sums below 10, each of 43 terms 6e-8 off
    assert torch.allclose(layer(x), expected, rtol=0, atol=3e-5)
    assert not torch.allclose(
        edm_reference.conv(weights, "a", edm_reference.down(x, [1, 3, 3, 1])), expected, atol=1e-2
    )
