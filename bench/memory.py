"""The memory of networks on the CPU, kept for the next call."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names of its settings
_ACTIVATION, _KEPT = 2**28, 2**30  # bytes: larger blocks are returned, and what is free beyond so much


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory, up to a gigabyte, in place of returning it to the system after each call.

    A network on the CPU frees its activations and soon asks for them again; fetched from the system anew, every page of
    them costs a fault, some percent of the call. Elsewhere than on Linux with glibc this does nothing.
    """
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _ACTIVATION)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
