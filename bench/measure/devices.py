"""Where networks compute, that they do so in full float32, and that their memory is kept for the next call."""

from __future__ import annotations

import ctypes
import sys

import torch

__all__ = ["DEVICES", "find_device", "full_float32", "keep_freed_memory"]

DEVICES = ("auto", "cpu", "cuda", "mps")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names of its settings
_ACTIVATION, _KEPT = 2**28, 2**30  # bytes: larger blocks are returned, and what is free beyond so much


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


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory, up to a gigabyte, in place of returning it to the system after each call.

    A network on the CPU frees its activations and soon asks for them again; fetched from the system anew, every page of
    them costs a fault, some percent of the call. Elsewhere than on Linux with glibc this does nothing.
    """
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _ACTIVATION)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
