import pytest
import torch
from edm_files import NCSNPP, random_tensors, small_config

from bench.models.networks.song import Resample, SongUNet

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


def loaded(config):
    network = SongUNet(config).eval()
    tensors = random_tensors("SongUNet", config)
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


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1]])
def test_resampling_keeps_the_mean_of_a_flat_image(taps):
    """Away from the border, where zeros lie beyond: the filter has sum 1 and doubling makes up for its zeros."""
    flat = torch.full((1, 2, 8, 8), 3.0)
    for direction, size in (("up", 16), ("down", 4)):
        out = Resample(direction, taps)(flat)
        assert out.shape == (1, 2, size, size)
        # products of halves, quarters and eighths of 3 are exact in float32
        assert torch.equal(out[:, :, 1:-1, 1:-1], torch.full((1, 2, size - 2, size - 2), 3.0))
