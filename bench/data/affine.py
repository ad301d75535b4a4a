"""Endless digits: small random rotations, scalings, shifts and intensities of grey images, drawn from a seed.

The draws are raw words of PCG64, which numpy keeps the same for good, and the arithmetic is float64, so that everybody
has the same pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ANGLE, _SCALE, _SHIFT, _DIMMEST = 15.0, 1.18, 0.8, 0.8
_BLOCK = 8192  # images at a time


def affine_variants(images: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.uint8]:
    """Return ``count`` variants of grey images; variant k is one of image k modulo N.

    Each is turned by up to 15 degrees either way, scaled by 1 / 1.18 to 1.18 (uniform in the logarithm), shifted by up
    to 0.8 pixels along both axes and darkened to 0.8 to 1 of its intensity, all uniform and independent. Values between
    pixels are interpolated by a cubic convolution (Keys 1981); outside the image it is black.

    Args:
        images: uint8 [N, S, S].
        count: how many variants.
        seed: of the draws.

    Returns:
        uint8 [count, S, S].
    """
    words = np.random.PCG64(seed).random_raw(5 * count).reshape(count, 5)
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    numbers = np.arange(count)
    blocks = np.array_split(numbers, -(-count // _BLOCK))
    return np.concatenate([_variants(images[block % len(images)], uniform[block]) for block in blocks])


def _variants(images: NDArray[np.uint8], uniform: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return one variant of each image, uint8 [B, S, S], by draws [B, 5] from [0, 1)."""
    side = images.shape[1]
    centred = np.arange(side) - (side - 1) / 2
    draws = (2 * uniform - 1).T[:, :, None, None]
    angle, scale = np.deg2rad(_ANGLE) * draws[0], _SCALE ** draws[1]
    y, x = centred[:, None] - _SHIFT * draws[2], centred - _SHIFT * draws[3]
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    # Where each pixel comes from, [B, S, S]; its value is a sum over rows and columns of the image there.
    rows = _cubic((cosine * y - sine * x)[..., None] - centred).reshape(len(images), side**2, side)
    columns = _cubic((sine * y + cosine * x)[..., None] - centred).reshape(len(images), side**2, side)
    values = ((rows @ images.astype(np.float64)) * columns).sum(2).reshape(images.shape)
    intensity = _DIMMEST + (1 - _DIMMEST) * uniform[:, 4, None, None]
    return np.rint((values * intensity).clip(0, 255)).astype(np.uint8)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weight of a pixel at a distance in pixels along one axis."""
    d = np.abs(distance)
    near, far = (1.5 * d - 2.5) * d * d + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2
    return np.where(d < 1, near, np.where(d < 2, far, 0))
