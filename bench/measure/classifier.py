"""The digits classifier whose features carry ``fd_digits`` and its kin, and its training recipe.

``python -m bench.measure.classifier --out FILE`` trains it on the digits' training part and prints the held-out
accuracy. It is deliberately small: a distance on its features is never called FID.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import trange

from bench.data import Dataset, load, to_unit

__all__ = ["DigitsClassifier", "accuracy", "load_classifier", "main", "train_classifier"]

WEIGHTS = Path(__file__).parent / "weights" / "digits-classifier.safetensors"
_SPATIAL_CHANNELS = 7  # of the 4x4 map, as the published evaluator takes 7 channels of Inception's 17x17 map


class DigitsClassifier(nn.Module):
    """Convolutions on 8x8 grey images: 64-d pooled features, a 7x4x4 spatial map and ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(48, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.late = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64, 10))

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (pooled [B, 64], spatial [B, 112] in H, W, C order) of uint8 images [B, 1 or 3, 8, 8]."""
        grey = to_unit(images).mean(dim=1, keepdim=True)
        early = self.early(grey)
        spatial = early[:, :_SPATIAL_CHANNELS].movedim(1, -1).flatten(1)
        return self.late(early).mean(dim=(2, 3)), spatial

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 10] of uint8 images [B, 1 or 3, 8, 8]."""
        logits: Tensor = self.head(self.features(images)[0])
        return logits


def load_classifier(path: Path = WEIGHTS) -> DigitsClassifier:
    """Load the classifier in evaluation mode, float32."""
    network = DigitsClassifier()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return network.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(network: DigitsClassifier, data: Dataset, part: str) -> float:
    """Return the share of a part's images that are classified correctly."""
    guesses = network(data.part(part)).argmax(1)
    return (guesses == data.part_labels(part)).double().mean().item()


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to one pixel, filling with black: the classifier's only augmentation."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2), generator=generator)
    return torch.stack([p[:, y : y + 8, x : x + 8] for p, (y, x) in zip(padded, offsets.tolist(), strict=True)])


def train_classifier(data: Dataset, epochs: int, seed: int, quiet: bool = False) -> DigitsClassifier:
    """Train on the data's training part: Adam, cosine decay, shifts, label smoothing."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = DigitsClassifier().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    images, labels = data.part("train"), data.part_labels("train")
    for _ in trange(epochs, desc="classifier", disable=quiet):
        for chosen in torch.randperm(len(images), generator=generator).split(64):
            logits = network(_shifted(images[chosen], generator))
            loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        decay.step()
    return network.eval()


def main(argv: Sequence[str] | None = None) -> None:
    """Train, report the held-out accuracy and write half-precision weights."""
    parser = argparse.ArgumentParser(prog="python -m bench.measure.classifier", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="safetensors file to write")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    data = load("digits")
    network = train_classifier(data, args.epochs, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name(args.out.name + ".partial")
    halves = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_file(halves, partial)
    os.replace(partial, args.out)
    reloaded = load_classifier(args.out)
    print(f"train accuracy {accuracy(reloaded, data, 'train'):.4f}, held-out {accuracy(reloaded, data, 'heldout'):.4f}")


if __name__ == "__main__":
    main()
