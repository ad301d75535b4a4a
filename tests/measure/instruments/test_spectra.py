import math

import numpy as np
import pytest
import torch

from bench.measure.instruments.spectra import RadialBins, haar_energy


def ring_of(u, v):
    return math.floor(math.hypot(u, v) + 0.5)


def ring_sizes(height, width):
    """Count the Fourier coefficients of each ring by a plain loop."""
    counts = {}
    for u in range(-(height // 2), height - height // 2):
        for v in range(-(width // 2), width - width // 2):
            counts[ring_of(u, v)] = counts.get(ring_of(u, v), 0) + 1
    return [counts[r] for r in sorted(counts)]


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (8, 16)])
def test_white_noise_is_one_in_every_bin(shape):
    images, channels = 4000, 2
    noise = torch.randn(images, channels, *shape, generator=torch.Generator().manual_seed(0))
    bins = RadialBins(*shape)
    density = bins.density(noise).double().mean(0)
    # |F|^2 of unit noise has mean 1 and variance at most 2 (real coefficients; complex ones come in equal pairs, so a
    # ring of m coefficients averages at least m/2 independent values): the mean of n images has std <= sqrt(2 / ...).
    sizes = torch.tensor(ring_sizes(*shape))
    assert bins.count == len(sizes)
    error = torch.sqrt(2 / (images * channels * torch.clamp(sizes / 2, min=1)))
    assert (abs(density - 1) < 5 * error).all()


@pytest.mark.parametrize(("u", "v"), [(1, 0), (0, 3), (2, 2), (3, 1), (4, 0)])
def test_a_sinusoid_lands_in_its_bin(u, v):
    size = 8
    y, x = np.mgrid[:size, :size]
    wave = np.cos(2 * np.pi * (u * y + v * x) / size)
    density = RadialBins(size, size).density(torch.from_numpy(wave)[None, None].float())[0]
    # Parseval: the total power is sum(wave^2), all of it within one ring, of which the density is the mean.
    expected = np.square(wave).sum() / ring_sizes(size, size)[ring_of(u, v)]
    others = torch.cat([density[: ring_of(u, v)], density[ring_of(u, v) + 1 :]])
    assert density[ring_of(u, v)] == pytest.approx(expected, rel=1e-5)
    assert others.abs().max() < 1e-10 * 64**2  # float32 transform: eps^2 of the total power


def test_total_power_is_conserved():
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    density = RadialBins(8, 8).density(image)[0]
    total = (density * torch.tensor(ring_sizes(8, 8))).sum()
    assert total.item() == pytest.approx(image.square().sum().item(), rel=1e-5)


def test_channels_are_averaged():
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    both = torch.cat([image, 3 * image], dim=1)
    bins = RadialBins(8, 8)
    torch.testing.assert_close(bins.density(both), bins.density(image) * (1 + 9) / 2)


def test_white_noise_has_haar_energy_one():
    images = torch.randn(4000, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    energy = haar_energy(images)
    assert energy.shape == (4000, 4)
    # A band holds 2 x 16 coefficients of variance 1: the mean over 4000 images of their mean square has the standard
    # error sqrt(2 / (32 * 4000)) = .004; four bands, five of them.
    assert (energy.mean(0) - 1).abs().max() < 0.02


def test_haar_bands_are_those_of_their_patterns():
    patterns = {
        0: torch.tensor([[1.0, 1.0], [1.0, 1.0]]),  # LL: constant
        1: torch.tensor([[1.0, -1.0], [1.0, -1.0]]),  # LH: changes along a row, from column to column
        2: torch.tensor([[1.0, 1.0], [-1.0, -1.0]]),  # HL: changes down a column
        3: torch.tensor([[1.0, -1.0], [-1.0, 1.0]]),  # HH: the checkerboard
    }
    for band, pattern in patterns.items():
        energy = haar_energy(pattern.repeat(3, 3)[None, None])[0]
        # Four values of size 1 have energy 4, all of it in one orthonormal coefficient.
        assert energy.tolist() == [4.0 if k == band else 0.0 for k in range(4)]


def test_haar_conserves_energy_and_leaves_an_odd_edge_out():
    images = torch.randn(3, 1, 7, 9, generator=torch.Generator().manual_seed(1))
    energy = haar_energy(images).sum(1)
    assert torch.allclose(energy / 4, images[..., :6, :8].square().mean((1, 2, 3)), rtol=1e-5)
