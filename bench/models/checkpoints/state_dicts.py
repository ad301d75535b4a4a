"""Tensors by name, read from files without executing anything, and the hash of a file."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bench.files.kinds import placeholder
from bench.files.pickles import UnfoldingError, load_plain
from bench.files.writing import sha256_of
from bench.runtime.distributed import note
from bench.runtime.errors import CheckpointError, quoted, reason

# Where training programs keep the moving average of the weights.
_AVERAGES = ("ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema")
# What wrapper modules put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "unet.", "diffusion_model.")
_AVERAGE_PREFIXES = ("ema_model.", "model_ema.", "ema.")  # beside those of the weights in one state dict
_LATENT = "model.diffusion_model."  # the network of latent-diffusion, beside its autoencoder and schedule
_TORCH_STARTS = (b"PK\x03\x04", b"\x80")  # since torch 1.6 an archive, before a pickle
_DEEPEST = 3  # wrappers of wrappers
_DDIM_ENTRIES = 5  # of ddim's list: model, optimizer, epoch, step, ema


def require_file(path: Path) -> None:
    """Refuse a path without a readable file before any reader stumbles over it.

    Raises:
        CheckpointError: no such file, a folder, one that may not be read, or what a download left in its place.
    """
    try:
        if path.is_file():
            if other := placeholder(path):
                raise CheckpointError(f"{path} {other}")
            return
        problem: str | None = "a folder, not a file" if path.is_dir() else "no such file"
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


def joint_hash(*paths: Path) -> str:
    """Return a sha256 over the hashes of several files in their order, hexadecimal.

    Raises:
        CheckpointError: as :func:`file_hash`.
    """
    return hashlib.sha256("".join(map(file_hash, paths)).encode()).hexdigest()


def require_torch(path: Path) -> None:
    """Refuse a file that does not begin as a file of ``torch.save`` does.

    Raises:
        CheckpointError: it begins otherwise, or cannot be read.
    """
    require_file(path)
    with path.open("rb") as file:
        if not file.read(4).startswith(_TORCH_STARTS):
            raise CheckpointError(
                f"{path} is not a file of torch.save; save it with torch.save(model.state_dict(), path)"
            )


class Inert:
    """Stands for a class or function of a file: takes any arguments and state, and does nothing with them.

    Whatever a file names is such a class, so that a hostile one can neither call anything real nor, through a
    ``__setstate__`` of its own, change it.
    """

    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


# What training programs save beside the weights: their options, and counts that are numpy's.
_INERT: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (type(name.replace("_core", "core").replace("core.multiarray._reconstruct", "ndarray"), (Inert,), {}), name)
    for name in (
        "argparse.Namespace", "types.SimpleNamespace", "pathlib.PosixPath", "pathlib.WindowsPath", "numpy.dtype",
        "numpy.ndarray", "_codecs.encode",
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    )
]  # fmt: skip
_EDM_MODULE, _HEAD = "torch_utils.persistence", 2**12  # named in the first bytes of EDM's pickles
_REFUSED_OBJECT = re.compile(r"(?:GLOBAL|class|instruction:|function) ([\w.]+\.[\w.]+)")


def read_state(path: Path, is_mapped: bool = False) -> dict[str, Tensor]:
    """Read the weights in a ``.pt`` file, names to floating-point tensors, without executing anything.

    The state dict may lie among other entries, have prefixes before its names, and a moving average beside it, which is
    taken. A note says what was taken.

    Args:
        path: the file.
        is_mapped: whether numbers are read only where they are asked for.

    Raises:
        CheckpointError: missing, truncated, compressed, or without a state dict of ordinary floating-point tensors.
    """
    require_file(path)
    try:
        with torch.serialization.safe_globals(_INERT):
            content = load_plain(path, is_mapped=is_mapped)
    except UnfoldingError as error:
        raise CheckpointError(f"{path}: {error}; save it with torch.save(model.state_dict(), path)") from None
    except Exception as error:  # on damaged bytes torch's readers raise almost any kind
        raise _unreadable(path, error) from None
    state, remarks = _unwrapped(path, content)
    for name, tensor in state.items():
        if kind := _unusual(tensor):
            advice = "save model.float().state_dict()"
            raise CheckpointError(f"{path}: {quoted(name)} is {kind}, not ordinary floating-point weights; {advice}")
    if remarks:
        note(f"{path.name}: takes {', '.join(remarks)}")
    step = re.fullmatch(r"model(\d+)", path.stem)
    if step and (averages := _averages_beside(step[1], path)):
        note(f"{path.name} has the raw weights of step {step[1]}; their moving average is {averages[0].name}")
    return state


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return the error of a file that torch does not read, with the object that it refuses."""
    advice = "save it with torch.save(model.state_dict(), path)"
    with path.open("rb") as file:
        names_edm = _EDM_MODULE.encode() in file.read(_HEAD)
    if names_edm and not zipfile.is_zipfile(path):
        return CheckpointError(f"{path} is an EDM pickle; rename it to {path.stem}.pkl")
    if not isinstance(error, pickle.UnpicklingError) or not (refused := _REFUSED_OBJECT.search(str(error))):
        return CheckpointError(f"{path} is truncated or not a file of plain tensors; {advice}")
    if refused[1].startswith(_EDM_MODULE):
        return CheckpointError(f"{path} is EDM's training state; give the network-snapshot-*.pkl beside it")
    return CheckpointError(f"{path} is not a file of plain tensors: it holds {quoted(refused[1])}; {advice}")


def _is_state(value: Any) -> bool:
    """Tell whether a value is a state dict: names to tensors."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _holds_network(value: Any, depth: int = _DEEPEST) -> bool:
    """Tell whether a value is a state dict with a matrix in it, or wraps one; an optimizer's is none."""
    if _is_state(value):
        return any(tensor.ndim > 1 for tensor in value.values())
    if depth == 0 or not isinstance(value, Mapping) or {"state", "param_groups"} <= value.keys():
        return False
    return any(_holds_network(inner, depth - 1) for name, inner in value.items() if isinstance(name, str))


def _unwrapped(path: Path, content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Return the network's state dict of a file's content, and what was taken of it, in words.

    Raises:
        CheckpointError: it holds no state dict, an optimizer's state, or several networks.
    """
    if isinstance(content, Mapping) and {"state", "param_groups"} <= content.keys():
        raise CheckpointError(f"{path} is an optimizer's state, not a network's weights; give {_weights_beside(path)}")
    state, remarks = _chosen(path, content)
    average = next((prefix for prefix in _AVERAGE_PREFIXES if any(name.startswith(prefix) for name in state)), None)
    if average is not None:
        state = _averaged(state, average)
        remarks.append(f"the moving average {average}*")
    network = {name: tensor for name, tensor in state.items() if name.startswith(_LATENT)}
    if 0 < len(network) < len(state):
        remarks.append(f"{len(network)} of {len(state)} tensors, {_LATENT}*")
        state = network
    removed = ""
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        removed += prefix
    return state, [*remarks, f"names without {removed}*"] if removed else remarks


def _averaged(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return a moving average under the names of its weights, which latent-diffusion writes without dots."""
    averages = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    names = {name.removeprefix("model.").replace(".", ""): name for name in state if name.startswith(_LATENT)}
    if names and names.keys() <= averages.keys():
        return {name: averages[short] for short, name in names.items()}
    return averages


def _chosen(path: Path, content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict that a file means."""
    if _is_state(content):
        return dict(content), []
    if isinstance(content, Sequence) and len(content) == _DDIM_ENTRIES and _is_state(content[-1]):
        return dict(content[-1]), ["the moving average, the last of five entries"]
    entries = dict(content) if isinstance(content, Mapping) else {}
    states = {name: value for name, value in entries.items() if isinstance(name, str) and _holds_network(value)}
    averages = [name for name in _AVERAGES if name in states]
    if averages:
        name = averages[0]
    elif len(states) == 1:
        (name,) = states
    elif states:
        names = " and ".join(map(quoted, list(states)[:3]))
        raise CheckpointError(f"{path} holds several networks, {names}; save the state dict of the one meant alone")
    else:
        other = next((key for key, value in entries.items() if not isinstance(value, Tensor)), None)
        what = "" if other is None else f"; its entry {quoted(str(other))} is {type(entries[other]).__name__}"
        raise CheckpointError(f"{path} does not hold a state dict (names to tensors){what}")
    state, remarks = _chosen(path, states[name])
    if len(entries) > 1:
        remarks = [f"{quoted(name)} of {', '.join(map(str, entries))}", *remarks]
    if not averages and (unread := [key for key in _AVERAGES if entries.get(key) is not None]):
        remarks.append(f"raw weights, since {quoted(unread[0])} has no names of tensors")
    return state, remarks


def _weights_beside(path: Path) -> str:
    """Name the weights of the same training beside an optimizer's file."""
    step = re.search(r"\d+", path.stem)
    beside = [*_averages_beside(step[0], path), path.with_name(f"model{step[0]}.pt")] if step else []
    return next((file.name for file in beside if file.is_file()), "the file of the weights, such as ema_0.9999_*.pt")


def _averages_beside(step: str, path: Path) -> list[Path]:
    """Return guided-diffusion's files of averaged weights of one step, beside a file."""
    return sorted(path.parent.glob(f"ema_*_{step}.pt"))


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
    path: Path, state: Mapping[str, Tensor], misfit: str, name_of: Callable[[str], str] = str
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a network, as float32, from a safetensors file that holds them and no others.

    Args:
        path: the file.
        state: the network's state dict, which may be on ``meta``.
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
            tensor = tensor.float()
            if not tensor.isfinite().all():
                raise not_finite(path)
            yield name, tensor


def all_finite(network: nn.Module) -> bool:
    """Tell whether a network's weights are all finite numbers."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())


def not_finite(path: Path) -> CheckpointError:
    """Return the error of a file whose weights are not finite."""
    return CheckpointError(f"{path} holds weights that are not finite; train or copy it again")
