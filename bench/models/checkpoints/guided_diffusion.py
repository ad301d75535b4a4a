"""Guided-diffusion's ``.pt`` files: read without executing anything, and loaded only into the network they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.files.tensors import UnfoldingError, load_plain
from bench.models.networks.adm import adm_unet, check_fit, load_guided_diffusion, without_weights
from bench.models.networks.adm_keys import published_shapes
from bench.models.networks.arguments import CheckpointError
from bench.models.networks.classifier import classifier_network
from bench.models.networks.shapes import MisfitError, Shapes, quoted, shapes_of
from bench.models.presets import PRESETS

__all__ = ["all_finite", "load_published", "presets_that_fit", "read_state", "require_file"]


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


def load_published(path: Path, build: Callable[[], Any]) -> Any:
    """Load a ``.pt`` file as float32 into the network it should fit, in evaluation mode.

    Args:
        path: the file.
        build: makes the network; called so that nothing of its size is allocated before the file is known to fit.

    Raises:
        CheckpointError: what :func:`read_state` refuses, a network that cannot be built, names or shapes that are not
            the network's (the message says which differ, and which preset fits), or weights that are not finite.
    """
    state = read_state(path)
    try:
        network = without_weights(build)
        check_fit(network, state)
    except MisfitError as error:
        raise CheckpointError(f"{path} is of another architecture: {error}; {_advice(shapes_of(state))}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    network.to_empty(device="cpu")
    load_guided_diffusion(network, state)
    if not all_finite(network):
        raise CheckpointError(f"{path} holds weights that are not finite; train or copy it again")
    return network.eval().requires_grad_(False)


def _advice(found: Shapes) -> str:
    fitting = presets_that_fit(found)
    if not fitting:
        return "no preset fits it; describe its network (docs/checkpoints.md)"
    return f"it fits preset {' or '.join(fitting)}"


def presets_that_fit(found: Shapes) -> list[str]:
    """Return the names of the presets whose network, or whose classifier (``NAME's classifier``), a file fits."""
    return [name for name, build, config in _known() if _may_fit(found, config) and _fits(found, build)]


def _known() -> Iterator[tuple[str, Callable[[], Any], Mapping[str, Any]]]:
    for preset in PRESETS.values():
        yield preset.name, partial(adm_unet, preset.network), preset.network
        if preset.classifier is not None:
            yield f"{preset.name}'s classifier", partial(classifier_network, preset.classifier), preset.classifier


def _may_fit(found: Shapes, config: Mapping[str, Any]) -> bool:
    """Tell from three tensors whether it is worth the while to build a network."""
    width, classes = config["model_channels"], config.get("num_classes")
    same_width = found.get("time_embed.0.weight") == (4 * width, width)
    same_labels = found.get("label_emb.weight") == (None if classes is None else (classes, 4 * width))
    return same_width and same_labels and ("output_blocks.0.0.in_layers.0.weight" in found) == ("pool" not in config)


def _fits(found: Shapes, build: Callable[[], Any]) -> bool:
    network = without_weights(build)
    return published_shapes(network.state_dict(), network.config["guided_diffusion"]) == found
