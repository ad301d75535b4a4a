"""Schedulers, and exact denoisers in their loops, that the tests of the hooks share."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import diffusers
import torch

from bench.hooks.frames import SCHEDULERS
from bench.hooks.loops import scaled

FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
SETTINGS = [(name, {}) for name in SCHEDULERS] + [
    ("DDIMScheduler", {"prediction_type": "v_prediction", "set_alpha_to_one": False}),
    ("DDPMScheduler", {"prediction_type": "sample", "timestep_spacing": "trailing"}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3, "prediction_type": "v_prediction"}),
    ("UniPCMultistepScheduler", {"prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"prediction_type": "sample"}),
    ("HeunDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction"}),
]
MEAN, VARIANCE = 0.2, 0.3  # of the Gaussian data, each pixel independent


def scheduler_of(name, settings, steps=8):
    unclipped = {"clip_sample": False} if name in ("DDPMScheduler", "DDIMScheduler") else {}
    scheduler = getattr(diffusers, name)(**unclipped, **settings)
    scheduler.set_timesteps(steps)
    return scheduler


class ExactNetwork(torch.nn.Module):
    """The exact denoiser of Gaussian pixels as a network: it reads its level from the scheduler that asks it.

    It sees the scaled state, as networks do, and answers in the scheduler's own terms.
    """

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler, self.calls, self.answers = scheduler, 0, []
        self.config = SimpleNamespace(in_channels=1, sample_size=4)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def level(self, t):
        """Return (alpha, sigma) from the scheduler's own arrays."""
        s, name, k = self.scheduler, type(self.scheduler).__name__, self.calls % len(self.scheduler.timesteps)
        if name in ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler"):
            kept = float(s.alphas_cumprod[int(t)])
            return kept**0.5, (1 - kept) ** 0.5
        sigma = float(s.sigmas_interpol[k] if name == "KDPM2DiscreteScheduler" and k % 2 else s.sigmas[k])
        if name in FLOWS or s.config.get("use_flow_sigmas"):
            return 1 - sigma, sigma
        if "Euler" in name or "Heun" in name or "KDPM" in name or name in EDM:
            return 1.0, sigma
        return (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5

    def forward(self, sample, timestep, return_dict=True):
        s, name = self.scheduler, type(self.scheduler).__name__
        alpha, sigma = self.level(timestep)
        scale = 1.0
        if name in EDM:
            scale = (sigma**2 + s.config.sigma_data**2) ** 0.5
        elif alpha == 1.0:
            scale = (sigma**2 + 1) ** 0.5
        x = sample * scale
        x0 = MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)
        eps = (x - alpha * x0) / sigma
        self.answers.append((alpha, sigma, x0, eps))
        self.calls += 1
        return SimpleNamespace(sample=self.output(x, x0, eps, alpha, sigma))

    def output(self, x, x0, eps, alpha, sigma):
        config = self.scheduler.config
        kind = config.get("prediction_type", "flow_prediction")
        if type(self.scheduler).__name__ in EDM:
            total = sigma**2 + config.sigma_data**2
            sign = -1 if kind == "v_prediction" else 1
            return sign * (x0 - config.sigma_data**2 / total * x) / (sigma * config.sigma_data / total**0.5)
        size = (alpha**2 + sigma**2) ** 0.5
        kinds = {
            "epsilon": eps,
            "sample": x0,
            "v_prediction": (alpha * eps - sigma * x0) / size,
            "flow_prediction": eps - x0,
        }
        return kinds[kind]


class Pipeline:
    """What a pipeline of diffusers does, with an exact network: scale, ask, step."""

    def __init__(self, name, settings, steps=8):
        self.scheduler = scheduler_of(name, settings, steps)
        self.unet = ExactNetwork(self.scheduler)

    def start(self, count, seed=0):
        noise = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
        return noise * float(getattr(self.scheduler, "init_noise_sigma", 1.0))

    @torch.no_grad()
    def __call__(self, x, steps=8, seed=0):
        has_noise = "generator" in inspect.signature(self.scheduler.step).parameters
        random = {"generator": torch.Generator().manual_seed(seed)} if has_noise else {}
        self.scheduler.set_timesteps(steps)
        self.states = [x]
        for t in self.scheduler.timesteps:
            output = self.unet(scaled(self.scheduler, x, t), t).sample
            x = self.scheduler.step(output, t, x, **random).prev_sample
            self.states.append(x)
        return x


def gaussian_data(count=200):
    """Images whose every pixel has the mean and variance that the exact network knows, to the last bit of float32."""
    pixels = torch.randn(count, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pixels = (pixels - pixels.mean(0)) / pixels.std(0)
    return (MEAN + VARIANCE**0.5 * pixels).float()
