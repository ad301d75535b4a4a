"""Inception as the published evaluators use it: torch-fidelity's network, a spatial layer, two ways of resizing.

The weights are torch-fidelity's conversion of the 2015 TensorFlow graph. A file is unpickled only where it holds plain
tensors alone, and the file of the standard place only where it has the published checksum.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from cleanfid.resize import build_resizer
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from bench.files.pickles import load_plain
from bench.files.writing import sha256_of
from bench.runtime.errors import FeatureError, one_line, reason

_FILE = URL_INCEPTION_V3.rsplit("/", 1)[-1]
CHECKSUM = _FILE.removesuffix(".pth").rsplit("-", 1)[-1]  # first digits of its sha256
_FLAG = "--inception-weights"


class InceptionFeatures(FeatureExtractorInceptionV3):  # type: ignore[misc]  # torch-fidelity is not annotated
    """torch-fidelity's Inception with a spatial layer: guided-diffusion's sFID features.

    The layer is the first seven channels of ``mixed_6/conv`` after normalisation and rectification
    (``Mixed_6d.branch1x1``), 17x17x7 flattened in height, width, channel order.
    """

    def __init__(self, path: Path) -> None:
        """Build the network from its weights and hook its spatial layer."""
        super().__init__("inception", ["2048"], feature_extractor_weights_path=str(path))
        self._spatial = torch.empty(0)
        self.Mixed_6d.branch1x1.register_forward_hook(self._store_spatial)

    def _store_spatial(self, module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._spatial = output[:, :7].movedim(1, -1).flatten(1).to(torch.float32)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (pooled [B, 2048], spatial [B, 2023]) features of uint8 images [B, 3, H, W]."""
        (pooled,) = super().forward(images)
        return pooled, self._spatial

    def logits(self, pooled: Tensor) -> Tensor:
        """Return the graph's 1008 logits [B, 1008] of pooled features [B, 2048], both on the host.

        Without bias, as in the published evaluators.
        """
        weight: Tensor = self.fc.weight
        return (pooled.to(weight.device) @ weight.T).cpu()


class CleanInceptionFeatures(InceptionFeatures):
    """The same network behind clean-fid's resizing.

    Images become 299x299 by Pillow's antialiased bicubic filter, each channel in floating point, without rounding
    (Parmar et al. 2022, cleanfid.resize mode ``clean``); inside the network nothing is resized any more.
    """

    def __init__(self, path: Path) -> None:
        """Build the network, and name its layers up to the pooled features in order."""
        super().__init__(path)
        # torch-fidelity declares its layers in the order it runs them; the last is the classifier.
        *self._layers, _ = self.children()
        self._resize = build_resizer("clean")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (pooled [B, 2048], spatial [B, 2023]) features of uint8 images [B, 3, H, W]."""
        x = (self.resized(images) - 128) / 128
        for layer in self._layers:
            x = layer(x)
        return x.flatten(1), self._spatial

    def resized(self, images: Tensor) -> Tensor:
        """Return float32 images [B, 3, 299, 299] in [0, 255], on the network's device, of uint8 ones."""
        rows = [self._resize(image) for image in images.movedim(1, -1).cpu().numpy()]
        return torch.from_numpy(np.stack(rows)).movedim(-1, 1).contiguous().to(self.fc.weight.device)


def inception_weights(given: Path | None) -> Path:
    """Return the path of a file of plain tensors: the given one, or that of the standard place, downloaded if missing.

    The standard place is torch-fidelity's, ``$TORCH_HOME/hub/checkpoints``; the file there must be the published one. A
    given file may be another, whose distances then have another name.

    Raises:
        FeatureError: missing and impossible to download, damaged, not the published file, or more than plain tensors.
    """
    path = given or Path(torch.hub.get_dir()) / "checkpoints" / _FILE
    if given is None and not path.exists():
        _download(path)
    if not path.is_file():
        raise FeatureError(f"no Inception weights at {path}; download {URL_INCEPTION_V3} and name it with {_FLAG}")
    if given is None and not is_published(digest := sha256(path)):
        raise FeatureError(
            f"{path} is damaged: its sha256 begins with {digest[: len(CHECKSUM)]} and not {CHECKSUM};"
            f" remove it and download {URL_INCEPTION_V3}"
        )
    _check_plain(path)
    return path


def is_published(digest: str) -> bool:
    """Tell whether a sha256 begins like that of the published weights, whose start is in their file name."""
    return digest.startswith(CHECKSUM)


def sha256(path: Path) -> str:
    """Return a file's sha256.

    Raises:
        FeatureError: it cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise FeatureError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from None


def open_network(kind: type[InceptionFeatures], path: Path) -> InceptionFeatures:
    """Build a network from a file that :func:`inception_weights` returned.

    Raises:
        FeatureError: weights of another network, or weights that are not finite.
    """
    try:
        network = kind(path)
    except (OSError, RuntimeError) as error:
        misfit = _first_misfit(error)
        raise FeatureError(
            f"{path} does not hold torch-fidelity's Inception ({misfit}); download {URL_INCEPTION_V3}"
        ) from None
    # Checked after loading, which compares shapes: a file can declare any size.
    broken = [name for name, tensor in network.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise FeatureError(f"{path}: {broken[0]} holds values that are not finite; download {URL_INCEPTION_V3}")
    return network


def _download(path: Path) -> None:
    """Download the weights; the file appears in its place only with the published checksum."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with redirect_stderr(StringIO()):  # torch prints a log; a failure becomes one line below
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=CHECKSUM, progress=False)
    except (OSError, RuntimeError) as error:
        place = (
            f"download {URL_INCEPTION_V3} and put it at {path}, name it with {_FLAG}, or compare images with"
            " --features cifar10-resized"
        )
        raise FeatureError(f"Inception weights cannot be had ({reason(error)}); {place}") from None


def _check_plain(path: Path) -> None:
    """Refuse a weights file that is more than plain tensors, before torch-fidelity unpickles it."""
    try:
        state = load_plain(path)
    except Exception as error:  # torch.load has no common base class for what a damaged file makes it raise
        raise FeatureError(
            f"{path} is damaged or not plain tensors ({type(error).__name__}); download it again"
        ) from None
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise FeatureError(f"{path} does not hold a state dict (names to tensors); download {URL_INCEPTION_V3}")
    for name, tensor in state.items():
        if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
            raise FeatureError(f"{path}: {name} is {tensor.dtype}, not floating point; download {URL_INCEPTION_V3}")


def _first_misfit(error: BaseException) -> str:
    """Return the first complaint of ``load_state_dict``, which lists every key and shape over many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[1] if len(lines) > 1 else reason(error), 120).rstrip(". ")
