"""Feature extractors: uint8 images to pooled and spatial features, each registered with torch-fidelity.

``digits`` is the embedded classifier; ``inception`` is torch-fidelity's Inception with the guided-diffusion
evaluator's spatial layer beside it. Only the published Inception weights make a distance a FID.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
import torch_fidelity
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from bench.measure.classifier import WEIGHTS, load_classifier

__all__ = ["EXTRACTORS", "DigitsFeatures", "Extractor", "FeatureError", "InceptionFeatures", "open_extractor"]

EXTRACTORS = ("digits", "inception", "none")
_INCEPTION_FILE = URL_INCEPTION_V3.rsplit("/", 1)[-1]
_INCEPTION_CHECKSUM = _INCEPTION_FILE.removesuffix(".pth").rsplit("-", 1)[-1]  # first digits of its sha256
_FLOATS = torch.float32


class FeatureError(ValueError):
    """Features cannot be computed here; the message says which file is missing and where to put it."""


class DigitsFeatures(FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity is not annotated
    """The digits classifier as a torch-fidelity extractor: layers ``64`` (pooled) and ``spatial`` (4x4x7, HWC)."""

    def __init__(self, name: str, features_list: list[str], **settings: Any) -> None:
        """Load the embedded weights; torch-fidelity passes settings of every metric, which do not concern us."""
        super().__init__(name, features_list)
        self.network = load_classifier()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the requested layers of uint8 images [B, 3, 8, 8]."""
        pooled, spatial = self.network.features(images)
        layers = {"64": pooled, "spatial": spatial}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Name the layers."""
        return ("64", "spatial")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Use pooled features for every metric of torch-fidelity's own."""
        return "64"

    @staticmethod
    def can_be_compiled() -> bool:
        """Leave compilation off: the network is too small to repay it."""
        return False


class InceptionFeatures(FeatureExtractorInceptionV3):  # type: ignore[misc]  # torch-fidelity is not annotated
    """torch-fidelity's Inception with a ``spatial`` layer: guided-diffusion's sFID features.

    ``spatial`` is the first seven channels of ``mixed_6/conv`` after normalisation and rectification
    (``Mixed_6d.branch1x1``), 17x17x7 flattened in height, width, channel order, [B, 2023].
    """

    def __init__(self, name: str, features_list: list[str], **settings: Any) -> None:
        """Build the network and listen to its spatial layer."""
        super().__init__(name, features_list, **settings)
        self._wanted = list(features_list)
        self._spatial = torch.empty(0)
        self.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._spatial = output[:, :7].movedim(1, -1).flatten(1).to(_FLOATS)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the requested layers of uint8 images [B, 3, H, W]."""
        own = [name for name in self._wanted if name not in ("spatial", "2048")]
        # The parent stops after the last layer asked for; 2048 lies behind the spatial one.
        self.features_list = [*own, "2048"]
        layers = dict(zip(self.features_list, super().forward(images), strict=True))
        self.features_list = self._wanted
        layers["spatial"] = self._spatial
        return tuple(layers[name] for name in self._wanted)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Name the layers."""
        return (*FeatureExtractorInceptionV3.get_provided_features_list(), "spatial")

    @staticmethod
    def can_be_compiled() -> bool:
        """Leave compilation off: the hook would break it."""
        return False


torch_fidelity.register_feature_extractor("exposure-bias-digits", DigitsFeatures)
torch_fidelity.register_feature_extractor("exposure-bias-inception", InceptionFeatures)


@dataclass(frozen=True)
class Extractor:
    """An opened extractor.

    Attributes:
        name: ``digits`` or ``inception``.
        network: a torch-fidelity extractor giving (pooled, spatial).
        metrics: what each distance on these features is called.
        weights_hash: sha256 of the weights file.
    """

    name: str
    network: torch.nn.Module
    metrics: Mapping[str, str]
    weights_hash: str

    @torch.no_grad()
    def extract(self, images: Tensor, batch: int = 256) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (pooled [N, d], spatial [N, d']) of uint8 images [N, 1 or 3, H, W], float32 on the host."""
        pooled, spatial = [], []
        weight = next(self.network.parameters(), None)
        device = images.device if weight is None else weight.device
        for part in images.split(batch):
            wide = part.expand(-1, 3, -1, -1) if part.shape[1] == 1 else part
            features = self.network(wide.to(device))
            pooled.append(features[0].cpu())
            spatial.append(features[1].cpu())
        return torch.cat(pooled).numpy(), torch.cat(spatial).numpy()


def open_extractor(
    name: str, inception_weights: Path | None = None, device: torch.device | str = "cpu"
) -> Extractor | None:
    """Open an extractor by name; ``none`` gives None.

    Args:
        name: one of :data:`EXTRACTORS`.
        inception_weights: torch-fidelity's Inception weights; None lets torch-fidelity find or download them.
        device: where the network computes; images may lie anywhere and features come back to the host.

    Raises:
        FeatureError: unknown name, or weights that are missing, damaged or cannot be downloaded.
    """
    if name == "none":
        return None
    if name == "digits":
        digits = DigitsFeatures("digits", ["64", "spatial"]).to(device)
        return Extractor(name, digits, _metric_names("_digits"), _sha256(WEIGHTS))
    if name != "inception":
        raise FeatureError(f"unknown features {name!r}; choose {', '.join(EXTRACTORS)}")
    path = inception_weights or Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE
    if inception_weights is not None or path.exists():
        _check_plain(path)
    network = _open_inception(path).to(device)
    digest = _sha256(path)
    published = digest.startswith(_INCEPTION_CHECKSUM)
    return Extractor(name, network, _metric_names("" if published else "_inception"), digest)


def _open_inception(path: Path) -> InceptionFeatures:
    """Build the network from a file, or let torch-fidelity download it where there is none."""
    known = str(path) if path.exists() else None
    try:
        with redirect_stderr(StringIO()):  # the download's own chatter; a failure is told below in one line
            return InceptionFeatures("inception", ["2048", "spatial"], feature_extractor_weights_path=known)
    except (OSError, RuntimeError) as error:
        if known:
            raise FeatureError(
                f"{path} does not hold torch-fidelity's Inception ({_first_misfit(error)}); download {URL_INCEPTION_V3}"
            ) from None
        place = f"download {URL_INCEPTION_V3} and put it at {path}, or name it with --inception-weights"
        raise FeatureError(f"Inception weights cannot be had ({_first_line(error)}); {place}") from None


def _first_misfit(error: BaseException) -> str:
    """Return the first complaint of ``load_state_dict``, which lists every key and shape over many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[1] if len(lines) > 1 else _first_line(error), 120, placeholder=" ...").rstrip(". ")


def _metric_names(suffix: str) -> dict[str, str]:
    """Name the distances; only published Inception features (no suffix) make a plain FID."""
    stem = "fd" if suffix else "fid"
    return {"frechet": f"{stem}{suffix}", "spatial": f"s{stem}{suffix}"} | {
        metric: f"{metric}{suffix}" for metric in ("kid", "precision", "recall")
    }


def _check_plain(path: Path) -> None:
    """Refuse a weights file that is missing or more than plain tensors, before torch-fidelity unpickles it."""
    if not path.is_file():
        raise FeatureError(
            f"no Inception weights at {path}; download {URL_INCEPTION_V3} and name it with --inception-weights"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no common base class for what a damaged file makes it raise
        raise FeatureError(
            f"{path} is damaged or not plain tensors ({type(error).__name__}); download it again"
        ) from None
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise FeatureError(f"{path} does not hold a state dict (names to tensors); download {URL_INCEPTION_V3}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0] + (
        f" [{os.strerror(error.errno)}]" if isinstance(error, OSError) and error.errno else ""
    )
