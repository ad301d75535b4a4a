"""A model of images of one's own: dead leaves, discs that cover one another, with the spectrum of natural images.

python examples/dead_leaves.py training/dead-leaves     # 132,000 images of 8x8, and adm and adm-ip trained on them
python run_bench.py --config training/dead-leaves/dead-leaves.toml --dataset dead-leaves --features digits \
    --models adm=training/dead-leaves/adm.safetensors,adm-ip=training/dead-leaves/adm-ip.safetensors \
    --steps 20,80,100,300 --samples 512
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.data import to_unit
from bench.models.train.recipes import RECIPES
from bench.models.train.trainer import train
from bench.suite.registry.registry import load_registry

SIDE, LEAVES, SMALLEST, LARGEST = 8, 40, 1.0, 8.0  # pixels
CONFIG = '[datasets.dead-leaves]\npath = "dead-leaves.npz"\nheldout_every = 11\n'


def dead_leaves(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return ``count`` grey images, uint8 [N, 8, 8, 1]: 40 discs, each over those before it, on a plain ground.

    Radii have the density r^-3 from 1 to 8 pixels (Lee, Mumford & Huang 2001), grey levels are uniform, and a pixel is
    the mean of 2x2 points.
    """
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*[(np.arange(2 * SIDE) + 0.5) / 2] * 2, indexing="ij")
    images = np.broadcast_to(rng.random((count, 1, 1), np.float32), (count, 2 * SIDE, 2 * SIDE)).copy()
    for _ in range(LEAVES):
        radius = SMALLEST / np.sqrt(1 - rng.random((count, 1, 1)) * (1 - (SMALLEST / LARGEST) ** 2))
        top, left = rng.uniform(-LARGEST / 2, SIDE + LARGEST / 2, (2, count, 1, 1))
        leaf = (y - top) ** 2 + (x - left) ** 2 < radius**2
        np.copyto(images, rng.random((count, 1, 1), np.float32), where=leaf)
    means = images.reshape(count, SIDE, 2, SIDE, 2).mean((2, 4))
    return np.rint(255 * means).astype(np.uint8)[..., None]


def main(out: Path, count: int = 132_000, iterations: int = 3000) -> None:
    """Write the images with the config file that names them, then both trainings' weights."""
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "dead-leaves.npz", arr_0=dead_leaves(count))
    (out / "dead-leaves.toml").write_text(CONFIG)
    images = load_registry((out / "dead-leaves.toml",), "dead-leaves").load_dataset(None, {}).part("train")
    for name in ("adm", "adm-ip"):
        recipe = replace(RECIPES[name], dataset="dead-leaves", iterations=iterations)
        path = train(recipe, out / f"{name}-training", torch.device("cpu"), images=to_unit(images))
        path.replace(out / path.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
