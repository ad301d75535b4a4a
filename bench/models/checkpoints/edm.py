"""EDM's released networks (``.pkl``): what a file holds, and the network with its weights.

Karras et al. 2022; a file is a pickle of a dictionary whose ``ema`` is a preconditioned network, or of that network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.models.checkpoints.edm_pickle import (
    StoredObject,
    StoredTensor,
    is_edm2,
    of_edm2,
    of_torch,
    read_objects,
    stored_tensors,
)
from bench.models.denoisers.preconditioning import PRECONDITIONINGS, make_preconditioning
from bench.models.interface import Description
from bench.models.networks.adm import without_weights
from bench.models.networks.arguments import ARCHITECTURES, complete_edm, misfit, named, shapes_of
from bench.models.networks.dhariwal import DhariwalUNet, dhariwal_shapes, dhariwal_state
from bench.models.networks.song import SongUNet
from bench.runtime.errors import CheckpointError, quoted

_OUTER_ARGUMENTS = ("img_resolution", "img_channels", "label_dim", "use_fp16")  # then the constants
_PRECONDITIONED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "EDMPrecond": ("edm", ("sigma_min", "sigma_max", "sigma_data")),
    "VPPrecond": ("vp", ("beta_d", "beta_min", "M", "epsilon_t")),
    "VEPrecond": ("ve", ("sigma_min", "sigma_max")),
    "iDDPMPrecond": ("iddpm", ("C_1", "C_2", "M")),
}
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # begins a file of torch.save before 1.6
_RENAMED = {"img_resolution": "image_size", "label_dim": "num_classes"}  # as every Description calls them


class _Stored(NamedTuple):
    """The two persistent objects that make a network."""

    outer: StoredObject
    inner: StoredObject


def describe_edm(path: Path) -> Description:
    """Return what an EDM pickle says about its network; no weights are decoded.

    Returns:
        A description with ``schedule`` ``edm`` and ``prediction`` ``edm``, ``vp``, ``ve`` or ``iddpm``. Its ``network``
        holds ``architecture``, every argument of that architecture under its published name (but ``image_size`` for
        ``img_resolution``, and ``num_classes``, None for none, for ``label_dim``), and ``preconditioning``: the
        constants that are not the published defaults.

    Raises:
        CheckpointError: missing, truncated, hostile, without ``ema``, or of an unknown class or arguments.
    """
    stored = _read(path)
    try:
        prediction, constants = _preconditioning(stored.outer)
        architecture = stored.inner.class_name
        config = complete_edm(architecture, _recorded(stored.inner, tuple(ARCHITECTURES[architecture])))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    network = {_RENAMED.get(name, name): value for name, value in config.items()}
    network["num_classes"] = config["label_dim"] or None
    if config["out_channels"] < config["in_channels"]:
        raise CheckpointError(f"{path}: its network has fewer output channels than input channels")
    described = {"architecture": architecture, **network, "preconditioning": constants}
    content = {"stored": stored}  # so that loading need not parse the file again
    return Description(described, schedule="edm", prediction=prediction, format="edm", content=content)


def load_edm(path: Path, description: Description) -> nn.Module:
    """Load the network of an EDM pickle as float32, in evaluation mode, without gradients.

    Args:
        path: the file.
        description: as :func:`describe_edm` gives it; the file's content that it holds is released.

    Returns:
        A network called as ``network(x, noise, class_labels).sample``: x float32 [B, C, H, W] already scaled by c_in,
        noise float32 [B] (c_noise), class_labels int64 [B] or None.

    Raises:
        CheckpointError: what :func:`describe_edm` refuses, names or shapes that are not the network's, or weights that
            are damaged or not finite.
    """
    stored: _Stored = description.content.pop("stored", None) or _read(path)
    try:
        # Nothing of the network's size is allocated before the file is known to fit.
        network = without_weights(lambda: _network(description.network))
        stored_weights = stored_tensors(stored.inner)
        if sum(holder.count() for holder in stored_weights.values()) > path.stat().st_size:
            raise CheckpointError("it declares more weights than it has bytes; download or copy it again")
        tensors = _decoded(stored_weights)
        expected = dhariwal_shapes(network) if isinstance(network, DhariwalUNet) else shapes_of(network.state_dict())
        differing = misfit(shapes_of(tensors), expected)
        if differing:
            raise CheckpointError(f"its weights are not those of the network it describes: it {differing}")
        state = dhariwal_state(network, tensors) if isinstance(network, DhariwalUNet) else tensors
        network.load_state_dict(state, assign=True)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return network.eval().requires_grad_(False)


def _read(path: Path) -> _Stored:
    content = read_objects(path)
    if content == _TORCH_MAGIC:
        raise of_torch(path)
    if isinstance(content, dict):
        if "ema" not in content:
            held = ", ".join(quoted(str(key)) for key in list(content)[:3])
            raise CheckpointError(f"{path} holds {held} and no 'ema', where EDM keeps its network; give another file")
        content = content["ema"]
    if not isinstance(content, StoredObject):
        raise CheckpointError(f"{path} holds no EDM network; it is another kind of file")
    if content.class_name not in _PRECONDITIONED:
        if content.class_name == "Precond" or is_edm2(path):
            raise of_edm2(path)
        classes = ", ".join(_PRECONDITIONED)
        raise CheckpointError(f"{path} holds {quoted(content.class_name)}, not one of {classes}")
    modules = content.state.get("_modules") if isinstance(content.state, dict) else None
    inner = modules.get("model") if isinstance(modules, dict) else None
    if not isinstance(inner, StoredObject) or inner.class_name not in ARCHITECTURES:
        name = inner.class_name if isinstance(inner, StoredObject) else ""
        classes = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"{path} holds a network of the class {quoted(name)}, not one of {classes}")
    return _Stored(content, inner)


def _recorded(stored: StoredObject, order: tuple[str, ...]) -> dict[str, Any]:
    """Return the constructor arguments an object was made with, by name."""
    state = stored.state if isinstance(stored.state, dict) else {}
    positional, keywords = state.get("_init_args"), state.get("_init_kwargs")
    if not isinstance(positional, tuple | list) or not isinstance(keywords, dict):
        raise CheckpointError(f"it does not record how its {stored.class_name} was made; save it with EDM's classes")
    return named(order, positional, keywords)


def _preconditioning(outer: StoredObject) -> tuple[str, dict[str, float]]:
    """Return the preconditioning's name and those constants that are not its defaults."""
    name, constants = _PRECONDITIONED[outer.class_name]
    recorded = _recorded(outer, (*_OUTER_ARGUMENTS, *constants))
    defaults = {field.name: field.default for field in fields(PRECONDITIONINGS[name])}
    given = {constant: recorded[constant] for constant in constants if constant in recorded}
    try:
        make_preconditioning(name, given)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return name, {constant: value for constant, value in given.items() if value != defaults[constant]}


def _network(described: Mapping[str, Any]) -> SongUNet | DhariwalUNet:
    """Build the network of a description, with fresh weights."""
    published = {new: old for old, new in _RENAMED.items()}
    config = {
        published.get(name, name): value
        for name, value in described.items()
        if name not in ("architecture", "preconditioning")
    }
    config["label_dim"] = config.get("label_dim") or 0
    return SongUNet(config) if described.get("architecture") == "SongUNet" else DhariwalUNet(config)


def _decoded(stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """Return the weights as float32, all finite."""
    tensors: dict[str, Tensor] = {}
    for name, holder in stored.items():
        try:
            tensors[name] = holder.tensor()
        except CheckpointError as error:
            raise CheckpointError(f"{quoted(name)}: {error}; download or copy it again") from None
        if not bool(torch.isfinite(tensors[name]).all()):
            raise CheckpointError(f"{quoted(name)} holds weights that are not finite; download or copy it again")
    return tensors
