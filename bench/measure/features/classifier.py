"""The embedded classifiers whose features carry ``fd_digits``, ``fd_cifar10`` and their kin, and their training.

``python -m bench.measure.features.classifier --dataset digits|cifar10`` trains one on the training part of its data,
prints the held-out accuracy and writes half-precision weights. The networks are small on purpose. A distance on their
features is never called FID.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.data import DataError, Dataset, load, to_unit
from bench.files.writing import write_atomic
from bench.runtime.errors import OneLineParser
from bench.runtime.progress import progress_bar

_FOLDER = Path(__file__).parents[1] / "weights"
_SPATIAL_CHANNELS = 7  # of the map, as the published evaluator takes 7 channels of Inception's 17x17 map
_BATCH = 500  # of an accuracy


class Classifier(nn.Module):
    """Convolutions in two parts: ``early`` ends in the spatial map, ``late`` in the features that are pooled."""

    early: nn.Module
    late: nn.Module
    head: nn.Module

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (pooled [B, d], spatial [B, h * w * 7] in H, W, C order) of uint8 images [B, C, H, W]."""
        early = self.early(self.to_input(images))
        spatial = early[:, :_SPATIAL_CHANNELS].movedim(1, -1).flatten(1)
        return self.late(early).mean(dim=(2, 3)), spatial

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 10] of uint8 images [B, C, H, W]."""
        logits: Tensor = self.head(self.features(images)[0])
        return logits

    @staticmethod
    def to_input(images: Tensor) -> Tensor:
        """Return the input of the first layer for uint8 images: float32 in [-1, 1]."""
        return to_unit(images)


class DigitsClassifier(Classifier):
    """8x8 grey images (or three equal channels): 64-d pooled features, a 4x4x7 spatial map and ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(48, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.late = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64, 10))

    @staticmethod
    def to_input(images: Tensor) -> Tensor:
        """Return one channel, the mean of all."""
        return to_unit(images).mean(dim=1, keepdim=True)


class CifarClassifier(Classifier):
    """32x32 colour images: 128-d pooled features, an 8x8x7 spatial map and ten logits."""

    stride = 2  # of the second layer

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(*_layer(3, 32), *_layer(32, 64, self.stride), *_layer(64, 112, stride=2))
        self.late = nn.Sequential(_Residual(112), nn.MaxPool2d(2), *_layer(112, 128))
        self.head = nn.Linear(128, 10)

    @staticmethod
    def to_input(images: Tensor) -> Tensor:
        """Return images with channels last in memory, which is a quarter faster on a CPU."""
        return to_unit(images).contiguous(memory_format=torch.channels_last)


class SmallCifarClassifier(CifarClassifier):
    """16x16 colour images, with maps, features and logits of the same sizes."""

    stride = 1


class _Residual(nn.Module):
    """Two layers with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_layer(width, width), *_layer(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + layers(x), [B, C, H, W]."""
        residual: Tensor = self.layers(x)
        return x + residual


def _layer(width_in: int, width_out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    # No bias: the normalisation has one.
    convolution = nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(width_out), nn.ReLU()


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: AdamW, cosine decay by epoch, label smoothing, shifts and mirror images.

    Attributes:
        network: class of the classifier.
        weights: the embedded file.
        epochs: passes over the training part.
        batch: images a step.
        rate: initial learning rate.
        weight_decay: weight decay of AdamW.
        shift: largest shift in pixels, filled with black.
        mirror: whether images are mirrored at random, with probability .5.
        half: whether to compute in bfloat16.
    """

    network: type[Classifier]
    weights: Path
    epochs: int
    batch: int
    rate: float
    weight_decay: float
    shift: int
    mirror: bool
    half: bool


CLASSIFIERS: Mapping[str, Recipe] = MappingProxyType(
    {
        "digits": Recipe(
            DigitsClassifier, _FOLDER / "digits-classifier.safetensors",
            epochs=60, batch=64, rate=2e-3, weight_decay=1e-2, shift=1, mirror=False, half=False,
        ),
        "cifar10": Recipe(
            CifarClassifier, _FOLDER / "cifar10-classifier.safetensors",
            epochs=10, batch=128, rate=3e-3, weight_decay=2e-2, shift=3, mirror=True, half=True,
        ),
        "cifar10-16": Recipe(
            SmallCifarClassifier, _FOLDER / "cifar10-16-classifier.safetensors",
            epochs=12, batch=128, rate=3e-3, weight_decay=2e-2, shift=2, mirror=True, half=True,
        ),
    }
)  # fmt: skip


def load_classifier(dataset: str = "digits", path: Path | None = None) -> Classifier:
    """Load a classifier in evaluation mode, float32.

    Args:
        dataset: one of :data:`CLASSIFIERS`.
        path: weights other than the embedded ones.
    """
    recipe = CLASSIFIERS[dataset]
    network = recipe.network()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(path or recipe.weights).items()})
    return network.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(network: Classifier, data: Dataset, part: str) -> float:
    """Return the share of a part's images that are classified correctly."""
    guesses = torch.cat([network(images).argmax(1) for images in data.part(part).split(_BATCH)])
    return (guesses == data.part_labels(part)).double().mean().item()


def _augmented(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Return images shifted at random, filled with black, and mirrored at random: the only augmentation."""
    shift, (height, width) = recipe.shift, images.shape[2:]
    padded = nn.functional.pad(images, (shift,) * 4)
    offsets = torch.randint(0, 2 * shift + 1, (len(images), 2), generator=generator)
    shifted = [
        p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, offsets.tolist(), strict=True)
    ]  # fmt: skip
    stacked = torch.stack(shifted)
    if not recipe.mirror:
        return stacked
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.reshape(-1, 1, 1, 1), stacked.flip(3), stacked)


def train_classifier(recipe: Recipe, data: Dataset, epochs: int, seed: int, quiet: bool = False) -> Classifier:
    """Train on the data's training part.

    Args:
        recipe: one of :data:`CLASSIFIERS`.
        data: images with labels.
        epochs: passes over the training part.
        seed: seed of initial weights, order and augmentation.
        quiet: no progress bar.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = recipe.network().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    images, labels = data.part("train"), data.part_labels("train")
    for _ in progress_bar(range(epochs), shown=not quiet, desc="classifier"):
        for rows in torch.randperm(len(images), generator=generator).split(recipe.batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.half):
                logits = network(_augmented(images[rows], recipe, generator))
            loss = nn.functional.cross_entropy(logits.float(), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        decay.step()
    return network.eval()


def _data(name: str, path: Path | None) -> Dataset:
    """Return the data of a classifier; where files name no test part, every sixth image of a class is held out."""
    if name == "digits":
        return load("digits")
    if path is None:
        raise DataError(f"--dataset {name} needs --data, its archive or a folder or zip of images in class folders")
    data = load(name, path)
    return data if data.count("heldout") else load(name, path, heldout_every=6)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, report the held-out accuracy and write half-precision weights; returns the exit code."""
    parser = OneLineParser(prog="python -m bench.measure.features.classifier", description=main.__doc__)
    parser.add_argument("--dataset", choices=tuple(CLASSIFIERS), default="digits")
    parser.add_argument("--data", type=Path, help="CIFAR-10: its archive, or a folder or zip of class folders")
    parser.add_argument("--out", type=Path, help="safetensors file to write (default: the embedded one)")
    parser.add_argument("--epochs", type=int, help="passes over the training part (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    recipe = CLASSIFIERS[args.dataset]
    out = args.out or recipe.weights
    try:
        data = _data(args.dataset, args.data)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    network = train_classifier(recipe, data, args.epochs or recipe.epochs, args.seed)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    write_atomic(out, lambda partial: save_file(halves, partial))
    reloaded = load_classifier(args.dataset, out)
    print(f"train accuracy {accuracy(reloaded, data, 'train'):.4f}, held-out {accuracy(reloaded, data, 'heldout'):.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
