"""Where networks compute, and that they do so in full float32."""

from __future__ import annotations

import torch

__all__ = ["DEVICES", "find_device", "full_float32"]

DEVICES = ("auto", "cpu", "cuda", "mps")


def find_device(name: str) -> torch.device | None:
    """Return the device of one of :data:`DEVICES`, None where this machine has none; ``auto`` takes the fastest."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in there.items() if is_there)
    return torch.device(name) if there[name] else None


def full_float32() -> None:
    """Switch TF32 off for this process: float32 products keep all 24 bits of their factors.

    cuDNN's convolutions take TF32's 11 bits by default on NVIDIA GPUs since Ampere, an error of about 1e-3 where ours
    are stated to be 1e-6. Matrix products keep float32 by default; that is made sure of.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
