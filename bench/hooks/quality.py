"""The samples of a recorded loop, as their distance to real images needs them: features, and their first noise."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data import coloured, quantize
from bench.measure.features.extractors import Extractor, moments_of, open_extractor
from bench.measure.quality.scores import FeatureSet
from bench.measure.quality.statistics import MomentStream
from bench.suite.cells.reference import Reference

_EMBEDDED = {(1, 8, 8): "digits", (3, 32, 32): "cifar10", (3, 16, 16): "cifar10-16"}  # classifiers by (C, H, W)
_ROUNDING = 1e-3  # of pixels that were resized or scaled in half precision
_FINGERPRINT = 4  # numbers of an image's noise that tell it from other noise


def are_pictures(images: Tensor) -> bool:
    """Tell whether float images [N, C, H, W] are grey or colour pixels from -1 to 1, as networks take them."""
    low, high = float(images.min()), float(images.max())
    return images.shape[1] in (1, 3) and -1 - _ROUNDING <= low < 0 < high <= 1 + _ROUNDING


def extractor_for(images: Tensor) -> Extractor:
    """Return the embedded classifier for images of this size and number of channels, else moments of their own values.

    Args:
        images: real ones, float [N, C, H, W].
    """
    shape = tuple(images.shape[1:])
    if shape not in _EMBEDDED or not are_pictures(images):
        return moments_of("pixels" if shape[0] in (1, 3) else "latents")
    with torch.random.fork_rng(devices=[]):  # a new network draws weights, and the user's next numbers must not move
        extractor = open_extractor(_EMBEDDED[shape])
    assert extractor is not None  # none of these names is "none"
    return extractor


class Samples:
    """What is left of the images that a loop makes: some numbers an image, and the images themselves on demand.

    Args:
        reference: what they are compared with, by its extractor. Where its pictures are uint8 the images are pixels
            from -1 to 1, compared as uint8 too; latents stay as they are.
        kept: whether to hold the images too, so that memory grows with them.
    """

    def __init__(self, reference: Reference, kept: bool) -> None:
        assert reference.extractor is not None  # else nothing is compared
        self.reference, self.extractor, self.kept = reference, reference.extractor, kept
        self.pictures = not reference.pictures.images.is_floating_point()
        self._pooled: list[NDArray[np.float32]] = []
        self._spatial = MomentStream()
        self._starts: list[Tensor] = []
        self._images: list[NDArray[np.generic]] = []

    @torch.no_grad()
    def begin(self, noise: Tensor) -> None:
        """Take the states that a walk begins with, [B, C, H, W] in units of their noise."""
        self._starts.append(noise.flatten(1)[:, :_FINGERPRINT].float().cpu())

    @torch.no_grad()
    def end(self, x: Tensor) -> None:
        """Take the images that a walk ends with, [B, C, H, W]; the extractor moves to their device."""
        with torch.autocast(x.device.type, enabled=False):
            images = quantize(x.float()) if self.pictures else x.float()
            self.extractor.network.to(x.device)
            pooled, spatial = self.extractor.extract(images)
        self._pooled.append(pooled)
        self._spatial.add(spatial)
        if self.kept:
            self._images.append(images.movedim(1, -1).cpu().numpy())

    def features(self) -> FeatureSet:
        """Return the features of all images."""
        return FeatureSet(np.concatenate(self._pooled), self._spatial.result())

    def starts(self) -> NDArray[np.float32]:
        """Return the first numbers of each image's unit noise, [N, 4] or as many as an image has."""
        return torch.cat(self._starts).numpy()

    def images(self) -> NDArray[np.generic] | None:
        """Return the images, uint8 [N, H, W, 3] or float32 latents [N, H, W, C]; None where they are not kept."""
        if not self._images:
            return None
        images = np.concatenate(self._images)
        return coloured(images) if self.pictures else images
