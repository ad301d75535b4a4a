"""Any checkpoint, whatever its format: what it is, the hash of its bytes, and a denoiser made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.diffusion.schedules import schedule_table
from bench.diffusion.types import Denoiser
from bench.models.checkpoints.adapter import hash_adapter, load_adapter
from bench.models.checkpoints.diffusers_model import describe_diffusers, hash_diffusers, load_diffusers
from bench.models.checkpoints.edm import describe_edm, load_edm
from bench.models.checkpoints.guided_diffusion import load_guided
from bench.models.checkpoints.hub import is_hub_id, is_inside, refuse_address, resolve_hub
from bench.models.checkpoints.native import load_network, read_description
from bench.models.checkpoints.state_dicts import file_hash, require_file
from bench.models.denoisers.parameterization import NetworkDenoiser
from bench.models.denoisers.preconditioning import PRECONDITIONINGS, EdmDenoiser, make_preconditioning
from bench.models.interface import Description
from bench.runtime.errors import CheckpointError, reason


class Format(NamedTuple):
    """How files of one format are read.

    Attributes:
        describe: a file or folder to its description, None where an entry of the config file must describe it.
        hash: to the sha256 of everything that determines the function, hexadecimal.
        load: to the network, float32 in evaluation mode, called as ``network(x, t, class_labels).sample``.
    """

    describe: Callable[[Path], Description] | None
    hash: Callable[[Path, Description], str]
    load: Callable[[Path, Description], Any]


def _hash_of_file(weights: Path, description: Description) -> str:
    return file_hash(weights)


FORMATS: Mapping[str, Format] = {
    "native": Format(read_description, _hash_of_file, load_network),  # .safetensors of this suite
    "guided": Format(None, _hash_of_file, load_guided),  # guided-diffusion's .pt
    "edm": Format(describe_edm, _hash_of_file, load_edm),  # .pkl
    "diffusers": Format(describe_diffusers, hash_diffusers, load_diffusers),  # a folder or hub id
    "python": Format(None, hash_adapter, load_adapter),  # a file of the user's own
}
_SUFFIXES: Mapping[str, str] = {".safetensors": "native", ".pkl": "edm", ".py": "python"}
# A name of this form is a file even where there is none, and never a hub id.
WEIGHT_SUFFIXES = (*_SUFFIXES, ".pt", ".pth", ".ckpt", ".bin", ".npz", ".zip")


def located(weights: Path, folder: Path | None = None) -> Path:
    """Return where the weights are: the path itself, or the folder of a hub id such as ``google/ddpm-cifar10-32``.

    A relative path starts in ``folder``, by default the current one.

    Raises:
        CheckpointError: a hub id that is neither in the cache nor can be downloaded, or an address of the web.
    """
    name, path = weights.as_posix(), weights if folder is None else folder / weights
    if not path.exists():
        refuse_address(name)
    is_id = is_hub_id(name) and weights.suffix.lower() not in WEIGHT_SUFFIXES and not path.exists()
    return resolve_hub(name) if is_id else path


def describe(weights: Path) -> Description | None:
    """Return what a file or folder says about itself, None where it says nothing.

    Raises:
        CheckpointError: it is missing, damaged or of a kind that cannot be used.
    """
    is_diffusers = weights.is_dir() or is_inside(weights)
    kind = "diffusers" if is_diffusers else _SUFFIXES.get(weights.suffix.lower(), "guided")
    read = FORMATS[kind].describe
    return None if read is None else read(weights)


def with_table(entry: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return an entry with the schedule and T of its ``alphas_cumprod``, alpha_bar by t in an npy file, if it has one.

    Args:
        entry: of a config file.
        folder: that of the config file, where a relative path starts.

    Raises:
        CheckpointError: no such file, other numbers than a schedule's, or a schedule beside it.
    """
    if "alphas_cumprod" not in entry:
        return entry
    if extra := [key for key in ("schedule", "T", "preset") if key in entry]:
        raise CheckpointError(f"alphas_cumprod gives the schedule and T; drop {extra[0]!r} from the entry")
    path = folder / str(entry["alphas_cumprod"])
    require_file(path)
    advice = "save alpha_bar, float64 [T], with numpy.save, and name that file"
    try:
        bars = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):  # of text, numpy says that it is pickled
        raise CheckpointError(f"{path} is not a file of numpy.save; {advice}") from None
    try:
        name = schedule_table(np.asarray(bars, dtype=np.float64))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {reason(error)}; {advice}") from None
    return {key: value for key, value in entry.items() if key != "alphas_cumprod"} | {"schedule": name, "T": len(bars)}


def checkpoint_hash(weights: Path, description: Description) -> str:
    """Return the sha256 of everything that determines the function, hexadecimal.

    Raises:
        CheckpointError: it is missing or unreadable.
    """
    return FORMATS[description.format].hash(weights, description)


def open_network(weights: Path, description: Description) -> Any:
    """Load the network, float32 in evaluation mode, called as ``network(x, t, class_labels).sample``.

    Raises:
        CheckpointError: missing, damaged, of another architecture, or not finite.
    """
    return FORMATS[description.format].load(weights, description)


def denoiser_of(network: Any, description: Description, device: torch.device) -> Denoiser:
    """Return the network as a denoiser on a device."""
    network = network.to(device)
    if description.prediction in PRECONDITIONINGS:
        settings = description.network.get("preconditioning")
        return EdmDenoiser(network, make_preconditioning(description.prediction, settings))
    return NetworkDenoiser(network, description.prediction, description.time_factor)
