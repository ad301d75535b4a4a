"""Weights on disk: our safetensors files, which carry their own description, and guided-diffusion's ``.pt``.

Nothing is ever executed from a file: safetensors holds only tensors and text, and ``.pt`` files are read by
:mod:`bench.models.checkpoints.guided_diffusion`.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from bench.diffusion.schedules import alpha_bars
from bench.models.checkpoints.guided_diffusion import load_published
from bench.models.checkpoints.state_dicts import all_finite, open_safetensors, require_file
from bench.models.denoisers.parameterization import CONVERSIONS
from bench.models.denoisers.preconditioning import PRECONDITIONINGS
from bench.models.interface import Description
from bench.models.networks.adm import adm_unet, without_weights
from bench.models.networks.arguments import complete
from bench.runtime.errors import CheckpointError, UserError, quoted, reason

_FORMAT = "exposure-bias-1"


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
    with open_safetensors(path) as file:
        text = file.metadata() or {}
    if text.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this suite; write one with python -m bench.models.train")
    try:
        network, training = (dict(json.loads(text[name])) for name in ("network", "training"))
        complete(network)  # refuses what is no network
        if not math.isfinite(float(training.get("gamma", 0.0))):
            raise ValueError("gamma is not finite")
        prediction = text.get("prediction", "eps")  # files of version 0.1 do not say
        if text["schedule"] != "edm":
            if prediction not in CONVERSIONS:
                raise ValueError(f"no prediction is called {prediction!r}")
            alpha_bars(text["schedule"], int(text["T"]))  # refuses a schedule no walk could follow
        elif prediction not in PRECONDITIONINGS:
            raise ValueError(f"no preconditioning is called {prediction!r}")
        return Description(network, text["schedule"], int(text["T"]), training, prediction)
    except (UserError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged description ({reason(error)}); train or copy it again") from None


def load_network(path: Path, description: Description) -> Any:
    """Build the network of ``description``, load the file's weights as float32 and set evaluation mode.

    Raises:
        CheckpointError: missing, truncated, of another architecture, not plain tensors, or not finite. Where a ``.pt``
            file is of another architecture the message says what differs and which preset fits.
    """
    if path.suffix != ".safetensors":
        return load_published(path, lambda: adm_unet(description.network))
    require_file(path)
    try:
        unet = without_weights(lambda: adm_unet(description.network))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    _load_own(path, unet)
    if not all_finite(unet):
        raise CheckpointError(f"{path} holds weights that are not finite; train or copy it again")
    return unet.eval().requires_grad_(False)


def _load_own(path: Path, unet: Any) -> None:
    """Load a file into a network on ``meta``, which gets memory once the file is known to fit."""
    own = unet.state_dict()
    with open_safetensors(path) as file:
        names = set(file.keys())
        differing = sorted(names ^ set(own))
        if differing:
            raise CheckpointError(f"{path} is of another architecture: {quoted(differing[0])} is not in both")
        for name in names:
            shape = tuple(file.get_slice(name).get_shape())
            if shape != own[name].shape:
                raise CheckpointError(f"{path} is of another architecture: {quoted(name)} has shape {shape}")
        tensors = {name: file.get_tensor(name) for name in names}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: {quoted(name)} is {kind}, not floating-point numbers; save it again")
    unet.to_empty(device="cpu").load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
