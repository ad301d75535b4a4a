"""The suite's own safetensors files, which carry their description."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save

from bench.files.writing import write_bytes
from bench.models.checkpoints.state_dicts import open_safetensors, read_tensors
from bench.models.denoisers.parameterization import check_process
from bench.models.denoisers.preconditioning import PRECONDITIONINGS
from bench.models.interface import Description
from bench.models.networks.adm import adm_unet, without_weights
from bench.models.networks.arguments import complete
from bench.runtime.errors import CheckpointError, UserError, reason

_FORMAT = "exposure-bias-1"


def save_network(path: Path, unet: Any, description: Description) -> None:
    """Write weights in half precision and description to a safetensors file, atomically.

    The same weights and description give the same bytes.
    """
    tensors = {name: tensor.half().contiguous() for name, tensor in unet.state_dict().items()}
    text = {
        "format": _FORMAT,
        "network": json.dumps(dict(description.network)),
        "schedule": description.schedule,
        "T": str(description.T),
        "training": json.dumps(dict(description.training)),
        "prediction": description.prediction,
    }
    write_bytes(path, _canonical(save(tensors, metadata=text)))


def _canonical(data: bytes) -> bytes:
    """Sort the header of a safetensors file: the library writes it in random order, and the hash is of the bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def read_description(path: Path) -> Description:
    """Return the description inside a file.

    Raises:
        CheckpointError: missing, truncated, or a safetensors file of other origin.
    """
    with open_safetensors(path) as file:
        text = file.metadata() or {}
    if text.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of this suite, and does not describe its network; of a diffusers model give"
            " the folder with its config.json"
        )
    try:
        network, training = (dict(json.loads(text[name])) for name in ("network", "training"))
        complete(network)  # refuses what is no network
        if not math.isfinite(float(training.get("gamma", 0.0))):
            raise ValueError("gamma is not finite")
        prediction = text.get("prediction", "eps")
        if text["schedule"] != "edm":
            check_process(text["schedule"], int(text["T"]), prediction)
        elif prediction not in PRECONDITIONINGS:
            raise ValueError(f"no preconditioning is called {prediction!r}")
        return Description(network, text["schedule"], int(text["T"]), training, prediction, "native")
    except (UserError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged description ({reason(error)}); train or copy it again") from None


def load_network(path: Path, description: Description) -> Any:
    """Build the network of ``description``, load the file's weights as float32 and set evaluation mode.

    Raises:
        CheckpointError: missing, truncated, of another architecture, not plain tensors, or not finite.
    """
    try:
        unet = without_weights(lambda: adm_unet(description.network))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    tensors = dict(read_tensors(path, unet.state_dict(), f"{path} is of another architecture"))
    unet.to_empty(device="cpu").load_state_dict(tensors)  # memory, once the file is known to fit
    return unet.eval().requires_grad_(False)
