"""A diffusers pipeline under two schedulers, recorded and compared; see docs/hooks.md.

    python examples/pipeline_schedulers.py results/schedulers && python -m analysis results/schedulers

The network is the embedded one of the digits. Yours is ``DDPMPipeline.from_pretrained(...)``, with its images.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DPMSolverMultistepScheduler

from bench.data import load
from bench.hooks import record
from bench.models.checkpoints.formats import open_network
from bench.suite.registry.registry import load_registry


class Digits(torch.nn.Module):
    """The embedded network as a pipeline asks it: eps alone, for its schedulers know no other learned variance."""

    def __init__(self) -> None:
        super().__init__()
        model = load_registry([], "digits").model("adm")
        self.network = open_network(model.weights, model.description)
        self.config = SimpleNamespace(in_channels=1, sample_size=8)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, sample: torch.Tensor, timestep: Any) -> SimpleNamespace:
        """Return ``.sample`` for states [B, 1, 8, 8] at a training index from 0."""
        t = torch.as_tensor(timestep).expand(len(sample))
        return SimpleNamespace(sample=self.network(sample, t, None).sample[:, :1])


def main(out: Path, steps: int = 10, images: int = 64) -> None:
    """Record both loops from the same noise and print how they end."""
    trained = {"beta_schedule": "squaredcos_cap_v2"}  # diffusers' name for cosine
    ddim = DDIMScheduler(**trained, clip_sample=False)
    dpm = DPMSolverMultistepScheduler(**trained, lambda_min_clipped=-5.1)  # else its first step divides by 5e-5
    for scheduler in (ddim, dpm):
        pipe = DDPMPipeline(Digits(), scheduler)
        pipe.set_progress_bar_config(disable=True)
        with record(pipe, real=load("digits").part("train"), out=out, forced=images) as log:
            pipe(images, torch.Generator().manual_seed(0), num_inference_steps=steps, output_type="np")
        table = log.table()
        last = table[(table["arm"] == "free") & (table["quantity"] == "variance_ratio")].iloc[-1]
        print(f"{type(scheduler).__name__}: Var(x) of the samples is {last['value']:.3f} of the data's")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
