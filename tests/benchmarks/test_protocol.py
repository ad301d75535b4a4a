"""What the papers' protocol costs: counted, and printed in the document as counted."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from bench.models.networks.adm import adm_unet
from bench.models.train.recipes import DIGITS_NETWORK
from benchmarks import protocol


def operations_by_hand(network, *given):
    """Two operations for each product of a convolution, a linear layer and the two matrix products of attention."""
    total = 0

    def add(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += 2 * output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += 2 * output.numel() * module.in_features
        elif isinstance(module, Attention):
            images, channels, height, width = inputs[0].shape
            total += 2 * 2 * images * channels * (height * width) ** 2  # q k^T, then times v, summed over the heads

    for module in network.modules():
        module.register_forward_hook(add)
    with torch.no_grad():
        network(*given)
    return total


def test_operations_are_those_of_a_real_call_and_grow_with_the_batch_and_the_pixels():
    network = adm_unet(DIGITS_NETWORK).eval()
    assert protocol.flops(DIGITS_NETWORK, 3) == operations_by_hand(network, torch.zeros(3, 1, 8, 8), torch.zeros(3))
    one = protocol.flops(DIGITS_NETWORK)
    assert protocol.flops(DIGITS_NETWORK, 4) == 4 * one
    # Attention grows faster than the pixels, what is done once an image (the time embedding) not at all.
    assert protocol.flops({**DIGITS_NETWORK, "image_size": 16}) == pytest.approx(4 * one, rel=0.3)


def test_calls_are_samples_times_steps_and_a_share():
    samples, instruments = protocol.calls("cifar10", (50_000, 10_000), 100)
    assert samples == 50_000 * 100
    assert 0.1 < instruments / samples < 0.2


@pytest.fixture
def cifar10(monkeypatch):
    monkeypatch.setattr(protocol, "DATASETS", {"CIFAR-10": protocol.DATASETS["CIFAR-10"]})


def test_days_are_work_over_rate(cifar10):
    slow, fast = (list(protocol.protocol(rate))[-1].split("|") for rate in (1e12, 4e12))
    assert [float(a) for a in slow[5:8]] == pytest.approx([4 * float(b) for b in fast[5:8]], rel=0.01)
    assert float(slow[5]) == pytest.approx(8 * float(slow[6]), rel=0.01)


def test_the_command_prints_them(cifar10, monkeypatch, capsys):
    monkeypatch.setattr(protocol, "NETWORKS", {"digits": DIGITS_NETWORK})
    protocol.main(["--rate", "1e12"])
    assert capsys.readouterr().out.count("CIFAR-10") == 1


def test_a_rate_of_nothing_is_refused(capsys):
    with pytest.raises(SystemExit):
        protocol.main(["--rate", "0"])
    assert "positive" in capsys.readouterr().err
