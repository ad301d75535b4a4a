from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bench.diffusion.types import Level
from bench.models.denoisers import EpsDenoiser
from bench.models.networks import adm_unet
from bench.models.recipes import DIGITS_NETWORK

LEVEL = Level(3.25, 0.6, 0.8)


class Network:
    """Repeats its input over `copies` times the channels, each copy one larger, and keeps what it was asked."""

    def __init__(self, copies):
        self.copies, self.asked = copies, []

    def __call__(self, x, t, cond):
        self.asked.append((t, cond))
        return SimpleNamespace(sample=torch.cat([x + k for k in range(self.copies)], dim=1))


@pytest.mark.parametrize("copies", [1, 2])
def test_the_output_is_split_into_eps_and_variance(copies):
    network, x = Network(copies), torch.randn(5, 3, 2, 2)
    pred = EpsDenoiser(network)(x, LEVEL)
    assert torch.equal(pred.eps, x)
    if copies == 2:
        assert torch.equal(pred.variance_fraction, x + 1)
    else:
        assert pred.variance_fraction is None
    assert pred.x0_cov is None


def test_x0_is_consistent_with_eps():
    """alpha x0 + sigma eps = x; four float32 roundings of numbers below 10."""
    x = torch.randn(5, 3, 2, 2)
    pred = EpsDenoiser(Network(1))(x, LEVEL)
    torch.testing.assert_close(LEVEL.alpha * pred.x0 + LEVEL.sigma * pred.eps, x, rtol=0, atol=3e-6)


def test_the_network_is_asked_at_the_training_index_of_every_image():
    network, labels = Network(1), torch.arange(5)
    EpsDenoiser(network)(torch.zeros(5, 3, 2, 2), LEVEL, labels)
    ((t, cond),) = network.asked
    assert torch.equal(t, torch.full((5,), 3.25))
    assert cond is labels


def test_a_real_network_serves():
    network = adm_unet(DIGITS_NETWORK).eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        pred = EpsDenoiser(network)(x, Level(500, 0.6, 0.8))
        output = network(x, torch.tensor([500.0, 500.0])).sample
    assert torch.equal(pred.eps, output[:, :1])
    assert torch.equal(pred.variance_fraction, output[:, 1:])
