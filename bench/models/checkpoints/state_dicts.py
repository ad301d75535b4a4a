"""Tensors by name, read from files without executing anything, and the hash of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bench.files.pickles import UnfoldingError, load_plain
from bench.files.writing import sha256_of
from bench.runtime.errors import CheckpointError, quoted, reason


def require_file(path: Path) -> None:
    """Refuse a path without a readable file before any reader stumbles over it.

    Raises:
        CheckpointError: no such file, a folder, or one that may not be read.
    """
    try:
        if path.is_dir():
            problem: str | None = "a folder, not a file"
        elif not path.is_file():
            problem = "no such file"
        else:
            path.open("rb").close()
            return
    except OSError as error:  # a folder on the way that may not be entered, or the file itself
        problem = error.strerror
    raise CheckpointError(f"cannot read the checkpoint {path}: {problem}; check the path")


def file_hash(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal.

    Raises:
        CheckpointError: the file is missing or unreadable.
    """
    require_file(path)
    try:
        return sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}; check the path") from None


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
        if kind := _unusual(tensor):
            advice = "save model.float().state_dict()"
            raise CheckpointError(f"{path}: {quoted(name)} is {kind}, not ordinary floating-point weights; {advice}")
    return dict(state)


def _unusual(tensor: Tensor) -> str | None:
    """Name what is unusual about a tensor, None for ordinary floating-point numbers."""
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.device.type != "cpu":
        return "without data"
    return None if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


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


def read_tensors(
    path: Path, state: Mapping[str, Tensor], dtype: torch.dtype, misfit: str, name_of: Callable[[str], str] = str
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a network from a safetensors file that holds them and no others.

    Args:
        path: the file.
        state: the network's state dict, which may be on ``meta``.
        dtype: of what is returned.
        misfit: how a message begins where names or shapes differ.
        name_of: the name in the network of a name in the file.

    Raises:
        CheckpointError: truncated, another set of names or shapes, or not finite floating-point numbers.
    """
    with open_safetensors(path) as file:
        stored = {name_of(name): name for name in file.keys()}  # noqa: SIM118 - no dict
        differing = sorted(set(stored) ^ set(state))
        if differing:
            raise CheckpointError(f"{misfit}: {quoted(differing[0])} is not in both")
        # All shapes first: nothing is read of a file that does not fit.
        for name, source in stored.items():
            shape = tuple(file.get_slice(source).get_shape())
            if shape != state[name].shape:
                raise CheckpointError(f"{misfit}: {quoted(name)} has shape {shape}")
        for name, source in stored.items():
            tensor = file.get_tensor(source)
            if kind := _unusual(tensor):
                raise CheckpointError(f"{path}: {quoted(name)} is {kind}, not floating-point numbers; save it again")
            tensor = tensor.to(dtype)
            if not tensor.isfinite().all():
                raise not_finite(path)
            yield name, tensor


def all_finite(network: nn.Module) -> bool:
    """Tell whether a network's weights are all finite numbers."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())


def not_finite(path: Path) -> CheckpointError:
    """Return the error of a file whose weights are not finite."""
    return CheckpointError(f"{path} holds weights that are not finite; train or copy it again")
