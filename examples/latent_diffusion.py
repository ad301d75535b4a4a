"""Exposure bias of a conditional latent model, step by step; see docs/latent.md.

    python examples/latent_diffusion.py --tiny
    python examples/latent_diffusion.py --model SDXL --latents latents.npz --embeddings embeddings.npz --out steps.csv

``--tiny`` is a small U-Net with random weights: it shows that everything runs, and its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bench.data import DataError
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM
from bench.latent.denoiser import ConditionalDenoiser, Conditioning, LatentModel, load_latent
from bench.latent.measurement import measure_latents
from bench.runtime.errors import CheckpointError

SHOWN = ("variance_ratio", "eps_rms", "x0_rmse")


@dataclass(frozen=True)
class Material:
    """Latents with the row of the condition of each, the conditions, and what stands for none."""

    latents: Tensor
    cond: Tensor | None
    condition: Conditioning
    unconditional: Conditioning | None


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read the arrays of a file.

    Raises:
        DataError: missing, damaged, or with anything but numbers in it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except Exception as error:  # on damaged bytes numpy and zipfile raise almost any kind
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"cannot read {path} as an npz of numbers ({reason}); see docs/latent.md") from None


def read_material(latents: Path, embeddings: Path) -> Material:
    """Read what docs/latent.md describes."""
    data, given = read_npz(latents), read_npz(embeddings)
    for path, found, name in ((latents, data, "latents"), (embeddings, given, "embeddings")):
        if name not in found:
            raise DataError(f"{path} has no array {name!r}; see docs/latent.md")
    condition = conditioning(given, "")
    without = conditioning(given, "negative_") if "negative_embeddings" in given else None
    cond = data.get("cond")
    rows = len(condition.embeddings)
    if rows > 1 and (cond is None or not ((cond >= 0) & (cond < rows)).all()):
        raise DataError(f"{latents} needs an array 'cond' of numbers below {rows}, the rows of the embeddings")
    return Material(data["latents"].float(), cond, condition, without)


def conditioning(given: dict[str, Tensor], prefix: str) -> Conditioning:
    """Return one condition of an embeddings file, with SDXL's additions where it has them."""
    added = {"text_embeds": given.get(f"{prefix}text_embeds"), "time_ids": given.get("time_ids")}
    present = {name: tensor.float() for name, tensor in added.items() if tensor is not None}
    return Conditioning(given[f"{prefix}embeddings"].float(), present or None)


def tiny() -> tuple[LatentModel, Material]:
    """Return a U-Net of SDXL's kind, but small and untrained, with latents and embeddings of noise."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, attention_head_dim=(2, 4), addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
    )  # fmt: skip
    added = {"text_embeds": torch.randn(3, 10), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    empty = Conditioning(torch.zeros(1, 5, 12), {"text_embeds": torch.zeros(1, 10), "time_ids": added["time_ids"]})
    material = Material(
        torch.randn(12, 4, 8, 8), torch.arange(12) % 3, Conditioning(torch.randn(3, 5, 12), added), empty
    )
    return LatentModel(unet.eval().requires_grad_(False), "scaled_linear(0.00085,0.012)", 1000, "eps"), material


def measure(args: argparse.Namespace) -> pd.DataFrame:
    """Load, walk and measure."""
    half = torch.float16 if args.half else torch.float32
    if args.tiny:
        model, material = tiny()
    else:
        model, material = load_latent(args.model, half), read_material(args.latents, args.embeddings)
    if material.latents.ndim != 4 or material.latents.shape[1] != model.unet.config.in_channels:
        found, wanted = tuple(material.latents.shape), model.unet.config.in_channels
        raise DataError(f"the model takes latents [N, {wanted}, h, w], {args.latents} has {found}")
    if args.guidance != 1 and material.unconditional is None:
        raise DataError(f"{args.embeddings} has no 'negative_embeddings', which --guidance needs")
    condition = material.condition
    denoiser = ConditionalDenoiser(
        model.unet.to(args.device),
        model.prediction,
        condition.embeddings,
        condition.added,
        unconditional=material.unconditional,
        guidance_scale=args.guidance,
    )
    return measure_latents(
        denoiser,
        material.latents.to(args.device),
        levels(model.schedule, model.T, args.steps),
        DDIM(),
        args.seed,
        args.samples,
        batch=args.batch,
        cond=None if material.cond is None else material.cond.to(args.device),
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="exposure bias of a conditional latent model")
    parser.add_argument("--tiny", action="store_true", help="a small random model instead of --model")
    parser.add_argument("--model", type=Path, help="folder in diffusers format with unet/ and scheduler/")
    parser.add_argument("--latents", type=Path, help="npz: latents [N,C,h,w] and, for several conditions, cond [N]")
    parser.add_argument("--embeddings", type=Path, help="npz: embeddings [M,L,D]; SDXL: text_embeds, time_ids too")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance scale; 1 is none")
    parser.add_argument("--half", action="store_true", help="the network in half precision")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write the whole table here, as csv")
    args = parser.parse_args(argv)
    if not args.tiny and None in (args.model, args.latents, args.embeddings):
        parser.error("give --tiny, or all of --model, --latents and --embeddings")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print a summary and write the table; 2 for what the user can mend."""
    args = parse(argv)
    try:
        table = measure(args)
    except (CheckpointError, DataError, ValueError) as error:
        print(f"latent_diffusion.py: {error}", file=sys.stderr)
        return 2
    if args.out:
        partial = args.out.with_name(args.out.name + ".partial")
        table.to_csv(partial, index=False)
        os.replace(partial, args.out)
    if args.tiny:
        print("random weights: the numbers show that everything runs, and mean nothing")
    chosen = table[table["quantity"].isin(SHOWN)]
    print(
        chosen.pivot_table(index=["i", "t"], columns=["quantity", "arm"], values="value")
        .iloc[::-1]
        .round(4)
        .to_string()
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
