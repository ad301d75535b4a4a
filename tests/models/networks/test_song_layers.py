from __future__ import annotations

import edm_reference
import pytest
import torch

from bench.models.networks.song import ConvThenHalve, Resample


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
