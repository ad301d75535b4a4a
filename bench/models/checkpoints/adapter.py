"""Networks of any other kind, through a Python file of the user's own.

An entry of the config file names the file and a function in it, ``adapter = "my_model.py:load"``. Unlike weights, such
a file is executed: it is the user's own program. How to write one is in ``docs/adapters.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bench.models.checkpoints.state_dicts import file_hash, joint_hash
from bench.models.denoisers.parameterization import check_process
from bench.models.interface import Description, Output
from bench.runtime.errors import CheckpointError, reason

_ROUNDING = 1e-2  # of the largest number: half precision on a GPU adds in another order each time


class Adapted:
    """A user's network in the convention of the others: ``network(x, t, class_labels).sample``, checked at every call.

    Args:
        name: what messages call it.
        network: a callable of (x, t, labels), a module or not.
        outputs: how many channels it must return.
    """

    def __init__(self, name: str, network: Callable[[Tensor, Tensor, Tensor | None], Any], outputs: int) -> None:
        self.name, self.network, self.outputs = name, network, outputs
        self._checked = False  # whether it has answered alike when asked again
        if isinstance(network, nn.Module):
            network.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Adapted:
        """Move a module; a plain callable looks after itself."""
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        return self

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Output:
        """Ask the network about x [B, C, H, W] at training indices t [B], from 0.

        Raises:
            CheckpointError: it raised an error, returned anything but a tensor [B, outputs, H, W] on x's device, or
                answered differently when asked again or beside other images, which its first call is.
        """
        sample = self._ask(x, t, labels)
        if not self._checked:
            self._refuse_unlike(sample, self._ask(x, t, labels), "when asked twice")
            others = torch.cat([x[:1], 1 - 2 * x[: max(1, len(x) - 1)]])
            times = t[:1].repeat(len(others))
            classes = None if labels is None else labels[:1].repeat(len(others))
            self._refuse_unlike(sample[:1], self._ask(others, times, classes)[:1], "beside other images")
            self._checked = True
        return Output(sample.to(x.dtype))

    def _ask(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        with _one_line(self.name):
            # Copies: x is the state of the walk, labels those of all its steps, and code may change them.
            sample = self.network(x.clone(), t.clone(), None if labels is None else labels.clone())
        shape = (len(x), self.outputs, *x.shape[2:])
        if not isinstance(sample, Tensor):
            raise CheckpointError(f"{self.name} returned {type(sample).__name__}; return a tensor of shape {shape}")
        if sample.shape != shape:
            raise CheckpointError(f"{self.name} returned the shape {tuple(sample.shape)}; return {shape}")
        if sample.device != x.device:
            raise CheckpointError(
                f"{self.name} returned a tensor on {sample.device}; return it on that of x, {x.device}"
            )
        return sample

    def _refuse_unlike(self, first: Tensor, second: Tensor, when: str) -> None:
        """Refuse a network whose answers to equal questions differ beyond the rounding of parallel sums."""
        difference, largest = (float(tensor.detach().abs().max()) for tensor in (first - second, first))
        if difference > _ROUNDING * largest:
            raise CheckpointError(
                f"{self.name} answers differently {when} ({difference / largest:.0%} of its largest number);"
                " is it in training mode? call .eval() on its module"
            )


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn whatever a user's code raises into one line; running out of memory is no fault of the code's."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # the code is the user's and may raise anything
        raise CheckpointError(f"{name} raised {type(error).__name__}: {reason(error)}") from None


def _split(spec: str) -> tuple[str, str]:
    file, _, function = spec.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise CheckpointError(f"adapter must name a file and a function as in 'my_model.py:load', not {spec!r}")
    return file, function


def adapter_file(spec: str, base: Path) -> Path:
    """Return the Python file of ``FILE.py:FUNCTION``, relative to the config file's folder ``base``.

    Raises:
        CheckpointError: the text names no file and function.
    """
    return base / _split(spec)[0]


def read_adapter(spec: str, base: Path) -> Callable[..., Any]:
    """Execute the Python file of ``FILE.py:FUNCTION`` and return the function; its own folder can be imported from.

    Args:
        spec: as in the config file.
        base: folder of the config file.

    Raises:
        CheckpointError: no such file or function, or the file raises.
    """
    file, function = _split(spec)
    path = base / file
    name = f"_adapter_{file_hash(path)[:16]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up
    with _one_line(str(path)), _importing(path):
        # Not through an importer, which would leave its cache in the user's folder.
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    loaded = getattr(module, function, None)
    if not callable(loaded):
        raise CheckpointError(f"{path} has no function {function!r}; check 'adapter' in the config file")
    return loaded


@contextmanager
def _importing(path: Path) -> Iterator[None]:
    """Let a file import its neighbours, which come last: a neighbour shall not replace a library of ours."""
    folder = str(path.parent.resolve())
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def describe_adapter(entry: Mapping[str, Any], base: Path) -> Description:
    """Describe the network of an entry without executing anything.

    Args:
        entry: ``adapter`` and, as wished, ``weights``, ``schedule`` (cosine), ``T`` (1000), ``prediction`` (eps),
            ``in_channels`` (3), ``image_size``, ``learn_sigma``, ``rescale_timesteps`` and ``num_classes``.
        base: folder of the config file, which ``adapter`` and ``weights`` are relative to.

    Returns:
        A description of format ``python`` whose ``network`` holds the entry and the sha256 of the Python file.

    Raises:
        CheckpointError: no such file, or an unknown schedule or prediction, or a number that cannot be.
    """
    spec = str(entry["adapter"])
    file, _ = _split(spec)
    schedule, prediction = str(entry.get("schedule", "cosine")), str(entry.get("prediction", "eps"))
    T: Any = entry.get("T", 1000)
    for key in ("T", "in_channels", "image_size", "num_classes"):
        value = entry.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise CheckpointError(f"adapter {spec}: {key!r} must be a positive whole number, not {value!r}")
    if not isinstance(entry.get("learn_sigma", False), bool):
        raise CheckpointError(f"adapter {spec}: 'learn_sigma' must be true or false")
    try:
        check_process(schedule, T, prediction)
    except ValueError as error:
        raise CheckpointError(f"adapter {spec}: {error}") from None
    weights = entry.get("weights")
    if weights and Path(file).is_absolute() and not Path(weights).is_absolute():
        raise CheckpointError(f"adapter {spec}: give the path of 'weights' absolute too, or both relative")
    channels = entry.get("in_channels", 3)
    network = {
        "adapter": spec,
        "file": file_hash(base / file),
        "in_channels": channels,
        "out_channels": channels * (2 if entry.get("learn_sigma") else 1),
        "image_size": entry.get("image_size"),
        "num_classes": entry.get("num_classes"),
    }
    network |= {"weights": str(weights)} if weights else {}
    network |= {"rescale_timesteps": True} if entry.get("rescale_timesteps") else {}
    return Description(network, schedule, T, {}, prediction, "python")


def _base(path: Path, spec: str) -> Path:
    """Return the config file's folder, given where the Python file is and how the config file names it."""
    file = Path(_split(spec)[0])
    return Path() if file.is_absolute() else path.parents[len(file.parts) - 1]


def _weights(path: Path, description: Description) -> Path | None:
    weights = description.network.get("weights")
    return _base(path, description.network["adapter"]) / weights if weights else None


def hash_adapter(path: Path, description: Description) -> str:
    """Return the sha256 of the Python file, with that of the weights where there are any; not of what it imports.

    Args:
        path: the Python file, :func:`adapter_file`.
        description: from :func:`describe_adapter`.

    Raises:
        CheckpointError: a file is missing.
    """
    weights = _weights(path, description)
    return joint_hash(*filter(None, (path, weights)))


def load_adapter(path: Path, description: Description) -> Adapted:
    """Execute the user's function and return its network, asked once where the image size is known.

    Args:
        path: the Python file, :func:`adapter_file`.
        description: from :func:`describe_adapter`.

    Raises:
        CheckpointError: a missing file or function, an error in them, or a network that is not what the entry says.
    """
    spec, weights = description.network["adapter"], _weights(path, description)
    if weights is not None:
        file_hash(weights)  # a missing file is the first thing to report
    function = read_adapter(spec, _base(path, spec))
    with _one_line(spec), _importing(path):
        network = function() if weights is None else function(weights)
    if not callable(network):
        raise CheckpointError(f"{spec} returned {type(network).__name__}; return a callable of (x, t, labels)")
    adapted = Adapted(spec, network, description.network["out_channels"])
    if size := description.network.get("image_size"):
        labels = torch.zeros(2, dtype=torch.long) if description.classes else None
        x = torch.randn(2, description.channels, size, size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            adapted(x, torch.zeros(2, dtype=torch.long), labels)
    return adapted
