"""Resizing and cropping of pictures: explicit, by name, and described in one line of text for the records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.files.limits import refuse_large_picture
from bench.runtime.errors import DataError

Pixels: TypeAlias = NDArray[np.uint8]  # [H, W, C], C 1 or 3

CROPS = ("none", "center", "guided")
FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_DEFAULT = "bicubic"
_LARGEST = 4096  # side length


@dataclass(frozen=True)
class Preprocessing:
    """How each picture is resized and cropped before anything else; by default not at all.

    Attributes:
        resize: side length of the square result in pixels; None keeps the size.
        crop: ``none`` stretches the whole picture; ``center`` first cuts out the largest centred square; ``guided`` is
            the loader of guided-diffusion (Dhariwal & Nichol 2021): halve by box averages while the shorter side is at
            least twice ``resize``, scale the shorter side to ``resize`` by bicubic interpolation, cut the centre.
        filter: a name of FILTERS, all antialiased (Pillow's); None is bicubic. ``guided`` brings its own.

    Raises:
        DataError: an unknown name, or settings that contradict each other.
    """

    resize: int | None = None
    crop: str = "none"
    filter: str | None = None

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise DataError(f"unknown crop {self.crop!r}; known: {', '.join(CROPS)}")
        if self.filter is not None and self.filter not in FILTERS:
            raise DataError(f"unknown resize filter {self.filter!r}; known: {', '.join(FILTERS)}")
        if self.resize is not None and not 1 <= self.resize <= _LARGEST:
            raise DataError(f"resize must be 1 to {_LARGEST} pixels, not {self.resize}")
        if self.filter is not None and self.resize is None:
            raise DataError("a resize filter without resize does nothing; set resize or drop the filter")
        if self.crop == "guided" and (self.resize is None or self.filter is not None):
            raise DataError("crop 'guided' needs resize and brings its own filters; set resize and drop the filter")

    def description(self) -> str:
        """Return the settings as one line of text, ``none`` where nothing is done."""
        words = [] if self.crop == "none" else [f"crop={self.crop}"]
        if self.resize is not None:
            words += [f"resize={self.resize}"]
            words += [] if self.crop == "guided" else [f"filter={self.filter or _DEFAULT}"]
        return " ".join(words) or "none"

    def apply(self, pixels: Pixels) -> Pixels:
        """Return uint8 [H, W, C] cropped and resized; C is 1 or 3 and stays.

        Raises:
            DataError: a picture so elongated that scaling its shorter side makes it too large.
        """
        if self == Preprocessing():
            return pixels
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        if self.crop == "guided":
            image = _guided(image, self.resize or 0)
        else:
            image = _square(image) if self.crop == "center" else image
            if self.resize is not None:
                image = image.resize((self.resize, self.resize), FILTERS[self.filter or _DEFAULT])
        return np.asarray(image).reshape(image.height, image.width, pixels.shape[2])


def _square(image: Image.Image, side: int | None = None) -> Image.Image:
    """Cut the centred square of a side length, by default the largest; an odd pixel is left at the right or bottom."""
    side = side or min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _guided(image: Image.Image, size: int) -> Image.Image:
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    refuse_large_picture(f"a picture of {image.width}x{image.height} scaled to {width}x{height}", width, height)
    return _square(image.resize((width, height), Image.Resampling.BICUBIC), size)
