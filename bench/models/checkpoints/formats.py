"""Any checkpoint, whatever its format: what it is, the hash of its bytes, and a denoiser made of it.

The format follows from the path: ``.safetensors`` is our own, ``.pkl`` EDM's, a folder or hub id diffusers', a Python
file an adapter, and anything else guided-diffusion's ``.pt``, which does not describe itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.diffusion.types import Denoiser
from bench.models.checkpoints.adapter import hash_adapter, load_adapter
from bench.models.checkpoints.diffusers_model import describe_diffusers, hash_diffusers, load_diffusers
from bench.models.checkpoints.edm import describe_edm, load_edm
from bench.models.checkpoints.hub import is_hub_id, resolve_hub
from bench.models.checkpoints.native import load_network, read_description
from bench.models.checkpoints.state_dicts import file_hash
from bench.models.denoisers.parameterization import make_denoiser
from bench.models.denoisers.preconditioning import PRECONDITIONINGS, EdmDenoiser, make_preconditioning
from bench.models.interface import Description

_FILES = (".safetensors", ".pt", ".pth", ".pkl", ".ckpt", ".bin", ".py", ".npz", ".zip")  # even where none is there


def located(weights: Path) -> Path:
    """Return where the weights are: the path itself, or the folder of a hub id such as ``google/ddpm-cifar10-32``.

    Raises:
        CheckpointError: a hub id that is neither in the cache nor can be downloaded.
    """
    name = weights.as_posix()
    is_id = is_hub_id(name) and weights.suffix.lower() not in _FILES and not weights.exists()
    return resolve_hub(name) if is_id else weights


def describe(weights: Path) -> Description | None:
    """Return what a file or folder says about itself, None for a ``.pt``, which says nothing.

    Raises:
        CheckpointError: it is missing, damaged or of a kind that cannot be used.
    """
    if weights.suffix == ".pkl":
        return describe_edm(weights)
    return describe_diffusers(weights) if weights.is_dir() else read_description(weights)


def checkpoint_hash(weights: Path, description: Description) -> str:
    """Return a sha256 of everything that determines the function, hexadecimal."""
    match description.format:
        case "diffusers":
            return hash_diffusers(weights)
        case "python":
            return hash_adapter(weights, description)
        case _:
            return file_hash(weights)


def open_network(weights: Path, description: Description) -> Any:
    """Load the network, float32 in evaluation mode, called as ``network(x, t, class_labels).sample``.

    Raises:
        CheckpointError: missing, damaged, of another architecture, or not finite.
    """
    match description.format:
        case "edm":
            return load_edm(weights, description)
        case "diffusers":
            return load_diffusers(weights, description)
        case "python":
            return load_adapter(weights, description)
        case _:
            return load_network(weights, description)


def denoiser_of(network: Any, description: Description, device: torch.device) -> Denoiser:
    """Return the network as a denoiser on a device."""
    network = network.to(device)
    if description.prediction in PRECONDITIONINGS:
        settings = description.network.get("preconditioning")
        return EdmDenoiser(network, make_preconditioning(description.prediction, settings))
    return make_denoiser(network, description.prediction)
