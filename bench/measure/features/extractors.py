"""Feature extractors, from uint8 images to pooled and spatial features.

``digits``, ``cifar10`` and ``cifar10-16`` are the embedded classifiers, which read images of their own size;
``cifar10-resized`` is that of CIFAR-10 behind a resizing of images of any size; ``inception`` is torch-fidelity's
Inception with the guided-diffusion evaluator's spatial layer beside it, ``clean-fid`` the same network behind
clean-fid's resizing. ``latents`` are moments of latents themselves. Only the published Inception weights make a
distance a FID. torch-fidelity takes seconds to import, and is imported where Inception is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.data import to_unit
from bench.files.writing import sha256_of
from bench.measure.features.classifier import CLASSIFIERS, load_classifier
from bench.runtime.errors import FeatureError
from bench.runtime.progress import progress_bar

Rows = NDArray[np.float32]
INCEPTION_EXTRACTORS = ("inception", "clean-fid")
ANY_SIZE = "cifar10-resized"  # needs no download
EXTRACTORS = ("digits", "cifar10", "cifar10-16", ANY_SIZE, *INCEPTION_EXTRACTORS, "latents", "none")


class ClassifierFeatures(nn.Module):
    """An embedded classifier's pooled features and its ``spatial`` map, flattened in height, width, channel order.

    Args:
        dataset: what the classifier was trained on.
        resizes: whether images become 32x32 by bilinear interpolation, antialiased where that shrinks them, without
            rounding; pictures that are not square are stretched. Images of 32x32 stay as they are.
    """

    def __init__(self, dataset: str, resizes: bool) -> None:
        super().__init__()
        self.network, self.resizes = load_classifier(dataset), resizes

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (pooled, spatial) features of uint8 images [B, 3, H, W]."""
        if self.resizes and images.shape[-2:] != _RESIZED:
            images = nn.functional.interpolate(to_unit(images), _RESIZED, mode="bilinear", antialias=True)
        return self.network.features(images)

    def logits(self, pooled: Tensor) -> Tensor:
        """Return the classes' logits [B, 10] of pooled features [B, d], both on the host."""
        device = next(self.network.parameters()).device
        logits: Tensor = self.network.head(pooled.to(device))
        return logits.cpu()


class MomentFeatures(nn.Module):
    """Moments of latents, or of pixels that no classifier reads.

    Means over 4x4 squares, and the standard deviation, of each channel: 17 numbers a channel. A Frechet distance on
    them compares mean, covariance and spread at low resolution. It is no FID.
    """

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (pooled [B, 17 C], spatial [B, C]), the latter the means alone, of float latents or uint8 pixels."""
        images = to_unit(images)
        squares = nn.functional.adaptive_avg_pool2d(images, _SQUARES).flatten(1)
        spread = images.flatten(2).std(2)
        return torch.cat([squares, spread], dim=1), images.flatten(2).mean(2)


@dataclass(frozen=True)
class Extractor:
    """An opened extractor.

    Attributes:
        name: one of :data:`EXTRACTORS`.
        network: gives (pooled, spatial) features of uint8 images [B, 3, H, W].
        metrics: names of the scores on these features.
        weights_hash: sha256 of the weights file.
        widths: numbers of pooled and of spatial features; None where any will do.
        size: (height, width) of the images it reads, None for any.
        logits: pooled features [B, d] to class logits [B, classes], both on the host; None where there are no classes.
        note: remark on the features for a score's reference, empty where there is none.
    """

    name: str
    network: nn.Module
    metrics: Mapping[str, str]
    weights_hash: str
    widths: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    logits: Callable[[Tensor], Tensor] | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """Return what features depend on besides the images: the name and the start of the weights' hash."""
        return f"{self.name}-{self.weights_hash[:16]}"

    @property
    def embedded(self) -> bool:
        """Tell whether it is one of the embedded classifiers, small and fast."""
        return self.name in _EMBEDDED

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse images it cannot read.

        Args:
            shape: of images, (..., H, W).

        Raises:
            FeatureError: the images have another size.
        """
        if self.size is not None and tuple(shape[-2:]) != self.size:
            readable, given = ("x".join(map(str, size)) for size in (self.size, shape[-2:]))
            raise FeatureError(
                f"--features {self.name} reads {readable} images only, not {given}; use --features {ANY_SIZE} or"
                " inception"
            )

    @torch.no_grad()
    def stream(
        self, images: Tensor, batch: int = 256, name: str = "", quiet: bool = True
    ) -> Iterator[tuple[Rows, Rows]]:
        """Yield (pooled [b, d], spatial [b, d']), float32 on the host, of images batch by batch.

        Args:
            images: uint8 [N, 1 or 3, H, W].
            batch: images a network call.
            name: label of the progress bar.
            quiet: no progress bar.

        Raises:
            FeatureError: images of a size it cannot read.
        """
        self.check(images.shape)
        weight = next(self.network.parameters(), None)
        device = images.device if weight is None else weight.device
        for part in progress_bar(images.split(batch), shown=not quiet, desc=name, unit="batch"):
            reads_grey = self.widths is None  # moments of any number of channels
            colour = part.expand(-1, 3, -1, -1) if part.shape[1] == 1 and not reads_grey else part
            pooled, spatial = self.network(colour.to(device))
            yield pooled.cpu().numpy(), spatial.cpu().numpy()

    def extract(self, images: Tensor, batch: int = 256) -> tuple[Rows, Rows]:
        """Return (pooled [N, d], spatial [N, d']), float32 on the host, of uint8 images [N, 1 or 3, H, W]."""
        pooled, spatial = zip(*self.stream(images, batch), strict=True)
        return np.concatenate(pooled), np.concatenate(spatial)


def open_extractor(
    name: str, inception_weights: Path | None = None, device: torch.device | str = "cpu"
) -> Extractor | None:
    """Open an extractor by name; ``none`` gives None.

    Args:
        name: one of :data:`EXTRACTORS`.
        inception_weights: torch-fidelity's Inception weights; None means the standard place, where they are downloaded
            to if they are missing.
        device: where the network computes; images may be anywhere, features are on the host.

    Raises:
        FeatureError: unknown name, or weights that are missing, damaged or cannot be downloaded.
    """
    if name == "none":
        return None
    if name in _EMBEDDED:
        return _open_embedded(name, device)
    if name == "latents":
        return moments_of(name)
    if name in INCEPTION_EXTRACTORS:
        return _open_inception(name, inception_weights, device)
    raise FeatureError(f"unknown features {name!r}; choose {', '.join(EXTRACTORS)}")


def moments_of(what: str) -> Extractor:
    """Return the extractor of the own moments of ``latents`` or of ``pixels``; its scores are called after them."""
    metrics = _metric_names("", f"_{what.removesuffix('s')}_moments")
    return Extractor(what, MomentFeatures(), metrics, "1", note=f"moments of the {what} themselves, no FID")


_RESIZED, _SQUARES = (32, 32), 4
# Widths of pooled and spatial features, and the (height, width) of the images, None for any.
_EMBEDDED: Mapping[str, tuple[tuple[int, int], tuple[int, int] | None]] = {
    "digits": ((64, 4 * 4 * 7), (8, 8)),
    "cifar10": ((128, 8 * 8 * 7), (32, 32)),
    "cifar10-16": ((128, 8 * 8 * 7), (16, 16)),
    ANY_SIZE: ((128, 8 * 8 * 7), None),
}


def embedded_width(name: str) -> int:
    """Return the number of pooled features of an embedded extractor."""
    return _EMBEDDED[name][0][0]


def _open_embedded(name: str, device: torch.device | str) -> Extractor:
    (widths, size), dataset = _EMBEDDED[name], "cifar10" if name == ANY_SIZE else name
    network = ClassifierFeatures(dataset, resizes=name == ANY_SIZE).to(device)
    digest, metrics = sha256_of(CLASSIFIERS[dataset].weights), _metric_names("", f"_{name.replace('-', '_')}")
    note = "CIFAR-10's classifier on images resized to 32x32" if name == ANY_SIZE else ""
    return Extractor(name, network, metrics, digest, widths, size, network.logits, note)


def _open_inception(name: str, given: Path | None, device: torch.device | str) -> Extractor:
    from bench.measure.features import inception

    path = inception.inception_weights(given)
    kind = inception.InceptionFeatures if name == "inception" else inception.CleanInceptionFeatures
    network = inception.open_network(kind, path).to(device)
    digest = inception.sha256(path)
    suffix = "" if inception.is_published(digest) else "_inception"
    prefix, note = ("", "") if name == "inception" else ("clean_", "torch-fidelity's network, clean-fid's resizing")
    metrics = _metric_names(prefix, suffix)
    return Extractor(name, network, metrics, digest, (2048, 17 * 17 * 7), None, network.logits, note)


def _metric_names(prefix: str, suffix: str) -> dict[str, str]:
    """Name the scores; only published Inception features (no suffix) make a FID."""
    stem = "fd" if suffix else "fid"
    names = {"frechet": stem, "spatial": f"s{stem}", "inception_score": "is"}
    names |= {metric: metric for metric in ("kid", "precision", "recall")}
    return {metric: f"{prefix}{name}{suffix}" for metric, name in names.items()}
