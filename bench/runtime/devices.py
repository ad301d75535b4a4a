"""The devices networks compute on, their full float32 precision, and the host memory they reuse."""

from __future__ import annotations

import ctypes
import sys

import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of settings in glibc's malloc.h
_LARGEST_BLOCK, _MOST_FREE = 2**28, 2**30  # bytes; larger blocks and more free memory go back to the system


def find_device(name: str) -> torch.device | None:
    """Return the device of one of :data:`DEVICES`, None if this machine lacks it; ``auto`` takes the fastest."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in available if available[kind])
    return torch.device(name) if available[name] else None


def full_float32() -> None:
    """Switch TF32 off for this process: float32 products keep all 24 bits of their factors.

    cuDNN's convolutions use TF32's 11 bits by default on NVIDIA GPUs since Ampere, an error of about 1e-3 where ours
    are stated to be 1e-6. Matrix products use float32 by default; this function makes sure.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def keep_freed_memory() -> None:
    """Tell glibc to keep up to a gigabyte of freed memory for the next network call.

    A network on the CPU frees its activations and soon asks for them again. Every page that comes from the system anew
    costs a fault, some percent of the call. Other systems than Linux with glibc are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
        library.mallopt(_TRIM_THRESHOLD, _MOST_FREE)
