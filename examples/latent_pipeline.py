"""A latent pipeline under guidance: guided and plain predictions are told apart; see docs/hooks.md.

    python examples/latent_pipeline.py results/latent && python -m analysis results/latent

The transformer is DiT's, tiny and with random weights: it shows that everything runs, and its numbers mean nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from bench.hooks import record

CLASSES = 10


def pipeline() -> DiTPipeline:
    """Return what ``DiTPipeline.from_pretrained("facebook/DiT-XL-2-256")`` would be, but small."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=4, sample_size=8)
    pipe = DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(out: Path, steps: int = 5, images: int = 16) -> None:
    """Record a guided loop and its network on real latents, and print both norms of eps."""
    latents = torch.randn(64, 4, 8, 8)  # yours: images through pipe.vae, times its scaling factor
    labels = {"class_labels": torch.arange(64) % CLASSES}
    none = {"class_labels": torch.full((64,), 1000)}  # the class that stands for none
    pipe = pipeline()
    with record(pipe, real=(latents, labels, none), out=out, name="dit", forced=32) as log:
        pipe(
            class_labels=[k % CLASSES for k in range(images)], guidance_scale=4.0, num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0), output_type="np",
        )  # fmt: skip
    table = log.table()
    norms = table[table["quantity"].isin(["eps_norm", "plain_eps_norm", "guidance_norm"])]
    print(f"guidance {log.guidance:.2f}, {log.samples} images")
    print(norms.pivot_table(index="i", columns=["arm", "quantity"], values="value").iloc[::-1].round(2).to_string())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
