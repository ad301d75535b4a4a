import edm_reference
import pytest
import torch
from edm_files import NCSNPP, random_tensors, small_config

from bench.models.networks.song import ConvThenHalve, Resample, SongUNet
from bench.runtime.errors import CheckpointError

# Parameters. The first is what others count for Song et al.'s DDPM++, which takes neither class nor augmentation
# labels; Karras et al. 2022, appendix F, round the others to 56 million.
CIFAR10 = {"img_resolution": 32, "in_channels": 3, "out_channels": 3}
COUNTS = {
    "song-et-al": (CIFAR10, 61_804_419),
    "vp-unconditional": ({**CIFAR10, "channel_mult": [2, 2, 2], "augment_dim": 9}, 55_733_891),
    "vp-conditional": ({**CIFAR10, "channel_mult": [2, 2, 2], "augment_dim": 9, "label_dim": 10}, 55_735_299),
}


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


@pytest.mark.parametrize("name", COUNTS)
def test_the_released_networks_have_their_published_size(name):
    config, count = COUNTS[name]
    network = on_meta(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


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
