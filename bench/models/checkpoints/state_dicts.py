"""Tensors by name, read from files without executing anything, and the hash of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bench.files.pickles import UnfoldingError, load_plain
from bench.runtime.errors import CheckpointError, quoted, reason


def file_hash(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal.

    Raises:
        CheckpointError: the file is missing or unreadable.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}; check the path") from None


def require_file(path: Path) -> None:
    """Refuse a path with nothing readable there before any reader stumbles over it.

    Raises:
        CheckpointError: no such file, a folder, or one that may not be read.
    """
    try:
        found = "a folder, not a file" if path.is_dir() else None if path.is_file() else "no such file"
        if found is None:
            path.open("rb").close()
    except OSError as error:  # a folder on the way that may not be entered, or the file itself
        found = error.strerror
    if found:
        raise CheckpointError(f"cannot read the checkpoint {path}: {found}; check the path")


def all_finite(network: nn.Module) -> bool:
    """Tell whether a network's weights are all finite numbers."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a ``.pt`` file of plain tensors, names to floating-point tensors; anything else in it is refused unexecuted.

    Raises:
        CheckpointError: missing, truncated, compressed, or not a state dict of ordinary floating-point tensors.
    """
    require_file(path)
    try:
        state = load_plain(path)
    except UnfoldingError as error:
        raise CheckpointError(f"{path}: {error}; save it anew") from None
    except Exception:  # on damaged bytes torch's readers raise almost any kind, IndexError and struct.error included
        raise CheckpointError(
            f"{path} is truncated or not a file of plain tensors; save it with torch.save(model.state_dict(), path)"
        ) from None
    plain = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not plain or not state:
        raise CheckpointError(f"{path} does not hold a state dict (names to tensors)")
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.device.type != "cpu":
            what = f"{quoted(name)} is {_kind(tensor)}"
            raise CheckpointError(
                f"{path}: {what}, not ordinary floating-point weights; save model.float().state_dict()"
            )
    return dict(state)


def _kind(tensor: Tensor) -> str:
    """Name what is unusual about a tensor."""
    if tensor.layout != torch.strided:
        return "sparse"
    return "without data" if tensor.device.type != "cpu" else str(tensor.dtype).removeprefix("torch.")


def open_safetensors(path: Path) -> Any:
    """Open a safetensors file.

    Raises:
        CheckpointError: missing, unreadable, truncated, or another kind of file.
    """
    require_file(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({reason(error)})") from None
