"""Weights on disk: our safetensors files, which carry their own description, and guided-diffusion's ``.pt``.

Nothing is ever executed from a file: safetensors holds only tensors and text, and ``.pt`` files are read with
``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bench.diffusion.schedules import alpha_bars
from bench.models.networks import CheckpointError, adm_unet, load_guided_diffusion
from bench.models.preconditioning import PRECONDITIONINGS

__all__ = ["Description", "file_hash", "load_network", "read_description", "save_network"]

_FORMAT = "exposure-bias-1"


@dataclass(frozen=True)
class Description:
    """What a checkpoint is besides its numbers.

    Attributes:
        network: the network's arguments, JSON-like, under guided-diffusion's names (``in_channels``, ``image_size``,
            ``num_classes``, ...) where they mean the same.
        schedule: a name of :func:`bench.diffusion.schedules.betas`, or ``edm``: levels by sigma, alpha = 1.
        T: training length.
        training: the recipe that made it, if known.
        prediction: what the network says: ``eps``, ``v``, ``x0``, or how it is preconditioned
            (:mod:`bench.models.preconditioning`).
        format: how the file is read: ``guided`` (``.pt`` and our own), ``edm``, ``diffusers`` or ``python``.
    """

    network: Mapping[str, Any]
    schedule: str = "cosine"
    T: int = 1000
    training: Mapping[str, Any] = field(default_factory=dict)
    prediction: str = "eps"
    format: str = "guided"

    @property
    def channels(self) -> int:
        """Return the images' channels."""
        return int(self.network.get("in_channels", 3))

    @property
    def classes(self) -> int | None:
        """Return how many class labels the network takes, None where it takes none."""
        return self.network.get("num_classes") or None

    @property
    def learns_variance(self) -> bool:
        """Tell whether the network predicts a variance beside eps."""
        return bool(self.network.get("learn_sigma")) or self.network.get("out_channels") == 2 * self.channels

    @property
    def is_edm(self) -> bool:
        """Tell whether the model walks on EDM levels."""
        return self.schedule == "edm"


def file_hash(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal.

    Raises:
        CheckpointError: the file is missing or unreadable.
    """
    _require_file(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}; check the path") from None


def _require_file(path: Path) -> None:
    """Refuse a path with nothing there, or with something other than a file, before any reader stumbles over it."""
    try:
        found = "a folder, not a file" if path.is_dir() else None if path.is_file() else "no such file"
    except OSError as error:  # a folder on the way that may not be entered
        found = error.strerror
    if found:
        raise CheckpointError(f"cannot read the checkpoint {path}: {found}; check the path")


def save_network(path: Path, unet: Any, description: Description, dtype: torch.dtype = torch.float16) -> None:
    """Write weights (in half precision unless told otherwise) and description to a safetensors file, atomically.

    The same weights and description give the same bytes.
    """
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in unet.state_dict().items()}
    text = {
        "format": _FORMAT,
        "network": json.dumps(dict(description.network)),
        "schedule": description.schedule,
        "T": str(description.T),
        "training": json.dumps(dict(description.training)),
        "prediction": description.prediction,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(_canonical(save(tensors, metadata=text)))
    os.replace(partial, path)


def _canonical(data: bytes) -> bytes:
    """Sort the header of a safetensors file: the library writes it in random order, and the hash is of the bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def read_description(path: Path) -> Description | None:
    """Return the description inside one of our files, or None for a format that carries none (``.pt``).

    Raises:
        CheckpointError: missing, truncated, or a safetensors file of other origin.
    """
    if path.suffix != ".safetensors":
        return None
    with _open_safetensors(path) as file:
        text = file.metadata() or {}
    if text.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this suite; write one with python -m bench.models.train")
    try:
        network, training = (dict(json.loads(text[name])) for name in ("network", "training"))
        prediction = text.get("prediction", "eps")  # files of version 0.1 do not say
        if text["schedule"] != "edm":
            alpha_bars(text["schedule"], int(text["T"]))  # refuses a schedule no walk could follow
        elif prediction not in PRECONDITIONINGS:
            raise ValueError(f"no preconditioning is called {prediction!r}")
        return Description(network, text["schedule"], int(text["T"]), training, prediction)
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} has a damaged description ({error}); train or copy it again") from None


def load_network(path: Path, description: Description) -> Any:
    """Build the network of ``description``, load the file's weights as float32 and set evaluation mode.

    Raises:
        CheckpointError: missing, truncated, of another architecture, not plain tensors, or not finite.
    """
    file_hash(path)  # one clear message for a file that cannot be read, whatever its format
    state = None if path.suffix == ".safetensors" else _read_pickle(path)
    try:
        unet = adm_unet(description.network)
        if state is not None:
            load_guided_diffusion(unet, state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if state is None:
        _load_own(path, unet)
    if not all(torch.isfinite(tensor).all() for tensor in unet.state_dict().values()):
        raise CheckpointError(f"{path} holds weights that are not finite; train or copy it again")
    return unet.eval().requires_grad_(False)


def _open_safetensors(path: Path) -> Any:
    _require_file(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({error})") from None


def _load_own(path: Path, unet: Any) -> None:
    own = unet.state_dict()
    with _open_safetensors(path) as file:
        names = set(file.keys())
        differing = sorted(names ^ set(own))
        if differing:
            raise CheckpointError(f"{path} is of another architecture: {differing[0]!r} is not in both")
        tensors = {name: file.get_tensor(name) for name in names}
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(f"{path} is of another architecture: {name!r} has shape {tuple(tensor.shape)}")
    unet.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def _read_pickle(path: Path) -> Mapping[str, Tensor]:
    """Read a ``.pt`` file of plain tensors; anything else in it is refused unexecuted."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # on damaged bytes torch's readers raise almost any kind, IndexError and struct.error included
        raise CheckpointError(
            f"{path} is truncated or not a file of plain tensors; save it with torch.save(model.state_dict(), path)"
        ) from None
    plain = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not plain:
        raise CheckpointError(f"{path} does not hold a state dict (names to tensors)")
    return state
