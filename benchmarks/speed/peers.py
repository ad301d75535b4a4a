"""What a user would otherwise sample with: diffusers' pipelines, k-diffusion's samplers, a loop written by hand.

Each function returns a call that samples one batch with a subject's own network, levels and step count.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.diffusion.posterior import Posterior
from bench.diffusion.schedules import alpha_bars
from benchmarks.speed.walks import SCHEDULE, Subject

Images = NDArray[np.float32]


def _call(pipeline: Any, subject: Subject, autocast: bool = False, **how: bool) -> Images:
    with torch.autocast(subject.device.type, torch.bfloat16, enabled=autocast):
        output = pipeline(batch_size=subject.batch, num_inference_steps=subject.steps, output_type="np", **how)
    images: Images = output.images
    return images


def ddpm_pipeline(subject: Subject, *, autocast: bool = False, compiled: bool = False) -> Callable[[], Images]:
    """Return ``diffusers.DDPMPipeline`` to images [B, H, W, C] in [0, 1], its bar off, without PIL.

    Args:
        subject: network, steps and batch.
        autocast: call it in bfloat16.
        compiled: compile the network first, on CUDA with graphs.
    """
    import diffusers

    scheduler = diffusers.DDPMScheduler(beta_schedule=SCHEDULE, variance_type="fixed_small")
    pipeline: Any = diffusers.DDPMPipeline(unet=subject.network, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    if compiled:
        how: dict[str, Any] = {"mode": "reduce-overhead"} if subject.device.type == "cuda" else {}
        pipeline.unet = torch.compile(pipeline.unet, dynamic=False, **how)
    return partial(_call, pipeline, subject, autocast)


def ddim_pipeline(subject: Subject) -> Callable[[], Images]:
    """Return ``diffusers.DDIMPipeline``, deterministic; eps is made anew from the clipped x0, as ours is."""
    import diffusers

    scheduler = diffusers.DDIMScheduler(beta_schedule=SCHEDULE)
    pipeline: Any = diffusers.DDIMPipeline(unet=subject.network, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return partial(_call, pipeline, subject, use_clipped_model_output=True)


def has_k_diffusion() -> bool:
    """Tell whether k-diffusion and what its samplers import are installed."""
    return all(importlib.util.find_spec(name) for name in ("k_diffusion", "torchdiffeq", "torchsde"))


def _k_module(name: str) -> Any:
    """Import a module of k-diffusion alone: the package imports its training code, which asks for much more."""
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        assert spec is not None  # has_k_diffusion was asked
        package = ModuleType("k_diffusion")
        package.__spec__ = spec
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["k_diffusion"] = package
    return importlib.import_module(f"k_diffusion.{name}")


def k_sampler(subject: Subject, name: str) -> Callable[[], Tensor]:
    """Return a sampler of k-diffusion, such as ``sample_heun``, to states [B, C, H, W] at the clean level.

    Its own wrapper of discrete eps-networks maps sigma back to the training index.
    """
    bars = torch.tensor(alpha_bars(SCHEDULE, 1000), dtype=torch.float32)
    network = subject.network
    model = _k_module("external").DiscreteEpsDDPMDenoiser(lambda x, t: network(x, t).sample, bars, quantize=True)
    model.to(subject.device)
    sigmas = torch.tensor([level.sigma / level.alpha for level in subject.path], device=subject.device)
    sample = getattr(_k_module("sampling"), name)

    def call() -> Tensor:
        x = sigmas[0] * torch.randn(subject.batch, *subject.shape, device=subject.device)
        found: Tensor = sample(model, x, sigmas, disable=True)
        return found.cpu()

    return call


def by_hand(subject: Subject) -> Callable[[], NDArray[np.uint8]]:
    """Return ancestral sampling as one writes it down: network, clipped x0_hat, posterior mean, noise; [B, H, W, C]."""
    path, network = subject.path, subject.network
    steps = [(level, Posterior.between(level, after)) for level, after in itertools.pairwise(path)]

    @torch.no_grad()
    def call() -> NDArray[np.uint8]:
        x = torch.randn(subject.batch, *subject.shape, device=subject.device)
        for level, q in steps:
            t = torch.full((len(x),), int(level.t), device=x.device)
            eps = network(x, t).sample
            x0 = ((x - level.sigma * eps) / level.alpha).clamp(-1, 1)
            x = q.c1 * x0 + q.c2 * x
            if q.small > 0:
                x = x + q.small**0.5 * torch.randn(x.shape, device=x.device)
        pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        found: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return found

    return call
