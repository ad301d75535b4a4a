"""A conditional latent model by the main command, plain and under guidance; see docs/latent.md.

    python examples/latent_diffusion.py latent && python -m analysis latent/results

The folder gets what a user has: a U-Net and scheduler in diffusers format, latents, embeddings, and the config file
that names them. The U-Net is of Stable Diffusion's kind, tiny and with random weights: its numbers mean nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from bench.suite.cli import run

CONFIG = """
[models.sd]
weights = "sd"
latents = "latents.npz"
embeddings = "embeddings.npz"

[models.sd-guided]
base = "sd"
guidance = 5
"""


def write_model(folder: Path, prompts: int = 3, latents: int = 96) -> None:
    """Write the files of a model; yours come from its own autoencoder and text encoder."""
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, attention_head_dim=(2, 4),
    )  # fmt: skip
    unet.save_pretrained(folder / "sd" / "unet")
    scheduler: Any = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.save_pretrained(folder / "sd" / "scheduler")
    rows, null = torch.randn(prompts, 5, 12).numpy(), np.zeros((1, 5, 12), np.float32)
    np.savez(folder / "latents.npz", latents=torch.randn(latents, 4, 8, 8).numpy(), cond=np.arange(latents) % prompts)
    np.savez(folder / "embeddings.npz", embeddings=rows, negative_embeddings=null)
    (folder / "latent.toml").write_text(CONFIG)


def main(folder: Path, steps: int = 5, images: int = 80) -> int:
    """Write a model and run it; returns the exit code."""
    write_model(folder)
    files = ["--config", f"{folder}/latent.toml", "--out", f"{folder}/results"]
    flags = ["--models", "sd,sd-guided", "--sampler", "ddim", "--steps", str(steps), "--samples", str(images)]
    return run([*files, *flags])[0]


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
