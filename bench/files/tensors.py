"""Files of ``torch.save`` read without executing anything, and without unfolding beyond their size."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["UnfoldingError", "load_plain"]


class UnfoldingError(ValueError):
    """An archive that ``torch.save`` does not write: compressed, or with members that overlap; it could unfold."""


def load_plain(path: Path, device: torch.device | str = "cpu") -> Any:
    """Read plain tensors, and containers, numbers and texts around them, onto a device.

    Raises:
        UnfoldingError: a small file could unfold to any size.
        Exception: on damaged bytes, and on objects of any other kind, torch's reader raises almost any kind.
    """
    if _unfolds(path):
        raise UnfoldingError("it is a compressed archive, not a file of torch.save")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is odd about a file: it is refused anyhow, in one line
        return torch.load(path, map_location=device, weights_only=True)


def _unfolds(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    return packed or sum(entry.file_size for entry in entries) > path.stat().st_size
