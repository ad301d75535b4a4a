"""EDM's pickles as inert objects: nothing named in the file is imported, nothing in it is run.

A released file is one pickle. Its modules are "persistent objects": a class name, that class's source code, which the
published reader executes and this one never looks at, and the state, a dictionary. Tensors hold their storage as the
bytes of a pickle of their own, which is decoded on demand by torch's weights-only reader.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.files.pickles import UnsafePickleError, restricted_load
from bench.models.checkpoints.state_dicts import Inert, require_file
from bench.runtime.errors import CheckpointError, quoted

_MOST_MODULES = 20_000
_ZIP = b"PK\x03\x04"  # begins a file of torch.save
_HEAD = 2**22  # bytes of a file that hold the source code of its networks
# The paper that the source code of EDM2's networks names (Karras et al. 2024).
_EDM2 = b"Analyzing and Improving the Training Dynamics of Diffusion Models"
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


class StoredObject(Inert):
    """A persistent object; its ``class_name`` is "" where the file has no text, ``state`` may be anything."""

    def __init__(self, meta: Any = None, *rest: Any) -> None:
        super().__init__(meta, *rest)
        entries = meta if isinstance(meta, dict) else {}
        name = entries.get("class_name")
        self.class_name, self.state = name if isinstance(name, str) else "", entries.get("state")


class _Dict(dict[Any, Any]):
    """A dictionary of any kind, EDM's with items that are also attributes among them, filled by the pickle's steps."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Drop what is not an item."""


class _NumpyType(Inert):
    def read(self, data: Any) -> Any:
        """Return the number in a few little-endian bytes, or None where it is none."""
        code = self.args[0] if self.args else None
        swapped = isinstance(self.state, tuple) and ">" in self.state
        if code not in _NUMBERS or swapped or not isinstance(data, bytes) or len(data) != np.dtype(code).itemsize:
            return None
        return np.frombuffer(data, np.dtype(code).newbyteorder("<"))[0].item()


class _NumpyScalar(Inert):
    def __new__(cls, kind: Any = None, data: Any = None, *rest: Any) -> Any:
        """Return a plain number in the place of numpy's, if it is one."""
        number = kind.read(data) if isinstance(kind, _NumpyType) else None
        return super().__new__(cls) if number is None else number


class _Storage(Inert):
    @cached_property
    def values(self) -> Tensor:
        """Return the stored numbers, [n], on the CPU."""
        data = self.args[0] if self.args else None
        if not isinstance(data, bytes) or data.startswith(b"PK"):  # zip: torch never pickles a storage into one
            raise CheckpointError("it holds a tensor whose numbers cannot be read")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is odd about damaged bytes: they are refused anyhow
                storage: Any = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
            untyped = storage._untyped_storage  # the public way to it warns of its own deprecation
            return torch.empty(0, dtype=storage.dtype).set_(untyped)
        except Exception:  # on damaged bytes torch's readers raise almost any kind
            raise CheckpointError("it holds a tensor whose numbers cannot be read") from None


class StoredTensor(Inert):
    """A tensor of the file, not yet decoded: (storage, offset, size, stride, ...), of any types."""

    def count(self) -> int:
        """Return how many numbers it says it has, 0 where it says nothing that can be.

        Tensors may share a storage, so those of a small file could be any number of large ones.
        """
        size = self.args[2] if len(self.args) > 2 else ()
        fits = isinstance(size, tuple) and all(isinstance(n, int) and n >= 0 for n in size)
        return int(np.prod(size, dtype=object)) if fits else 0

    def tensor(self) -> Tensor:
        """Return the tensor as float32, contiguous.

        Raises:
            CheckpointError: it is damaged, larger than its storage, or holds other than floating-point numbers.
        """
        if len(self.args) < 4 or not isinstance(self.args[0], _Storage):
            raise CheckpointError("it is not an ordinary tensor")
        storage, offset, size, stride = self.args[:4]
        numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
        if not all(isinstance(n, int) and 0 <= n < 2**48 for n in numbers) or len(size) != len(stride):
            raise CheckpointError("it is not an ordinary tensor")
        values = storage.values
        if not values.is_floating_point():
            raise CheckpointError(f"it holds {str(values.dtype).removeprefix('torch.')}, not floating-point numbers")
        count = int(np.prod(size, dtype=object))
        reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if count else 0
        if max(count, reach) > len(values):  # a count above it would unfold a few stored numbers to any size
            raise CheckpointError("it reaches beyond its stored numbers")
        return torch.as_strided(values, size, stride, offset).float().contiguous()


class _Parameter(Inert):
    def __new__(cls, data: Any = None, *rest: Any) -> Any:
        """Return the tensor itself."""
        return data if isinstance(data, StoredTensor) else super().__new__(cls)


def _allowed() -> Mapping[tuple[str, str], Any]:
    """Return the names that released files use, each with what stands for it."""
    numpy = {
        (f"numpy.{core}.multiarray", name): stand_in
        for core in ("core", "_core")
        for name, stand_in in (("scalar", _NumpyScalar), ("_reconstruct", Inert))
    }
    modules = {
        (f"torch.nn.modules.{file}", name): Inert
        for file, name in (
            ("container", "ModuleDict"),
            ("container", "ModuleList"),
            ("container", "Sequential"),
            ("linear", "Linear"),
            ("linear", "Identity"),
            ("conv", "Conv2d"),
            ("normalization", "GroupNorm"),
            ("activation", "SiLU"),
            ("dropout", "Dropout"),
        )
    }
    return {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): StoredObject,
        ("dnnlib.util", "EasyDict"): _Dict,
        ("torch._utils", "_rebuild_tensor_v2"): StoredTensor,
        ("torch._utils", "_rebuild_parameter"): _Parameter,
        ("torch.storage", "_load_from_bytes"): _Storage,
        ("torch", "Size"): Inert,  # of attributes; tensors have plain tuples
        ("torch", "device"): Inert,
        ("numpy", "dtype"): _NumpyType,
        ("numpy", "ndarray"): Inert,
        ("collections", "OrderedDict"): _Dict,
        ("builtins", "set"): Inert,
        **numpy,
        **modules,
    }


def read_objects(path: Path) -> Any:
    """Read a pickle into plain Python values, :class:`StoredObject` and :class:`StoredTensor`.

    Raises:
        CheckpointError: missing, truncated, no pickle, or asking for a name that no released file needs; nothing of it
            was run then.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP)) == _ZIP:
                raise of_torch(path)
            file.seek(0)
            return restricted_load(file, _allowed())
    except CheckpointError:
        raise
    except UnsafePickleError as error:
        if is_edm2(path):
            raise of_edm2(path) from None
        reason = quoted(str(error))[1:-1]
        raise CheckpointError(
            f"{path} is not an EDM network: {reason}; nothing of it was run, take it from its publisher"
        ) from None
    except Exception:  # on damaged bytes pickle raises almost any kind, MemoryError and UnicodeDecodeError included
        raise CheckpointError(f"{path} is truncated or not an EDM pickle; download or copy it again") from None


def of_torch(path: Path) -> CheckpointError:
    """Return the error of a file of ``torch.save`` under the suffix of EDM's pickles."""
    return CheckpointError(f"{path} is a file of torch.save, not an EDM pickle; rename it to {path.stem}.pt")


def of_edm2(path: Path) -> CheckpointError:
    """Return the error of a file of EDM2."""
    return CheckpointError(f"{path} is a network of EDM2, whose architecture is not built here; give it by an adapter")


def is_edm2(path: Path) -> bool:
    """Tell whether a file carries the source code of EDM2's networks, looking at its first megabytes."""
    with path.open("rb") as file:
        return _EDM2 in file.read(_HEAD)


def stored_tensors(module: StoredObject) -> dict[str, StoredTensor]:
    """Return every parameter and buffer below a module, under the names of its state dict.

    Raises:
        CheckpointError: it is not built like a module.
    """
    tensors: dict[str, StoredTensor] = {}
    pending: list[tuple[str, Any]] = [("", module)]
    for _ in range(_MOST_MODULES):  # a module may hold itself
        if not pending:
            return tensors
        prefix, module = pending.pop()
        state = module.state if isinstance(module, Inert) else None
        if not isinstance(state, dict):
            raise CheckpointError(f"{quoted(prefix.rstrip('.'))} in it is not a module")
        for name, value in _items(state, "_parameters") + _items(state, "_buffers"):
            if not isinstance(value, StoredTensor):
                raise CheckpointError(f"{quoted(prefix + name)} in it is not a tensor")
            tensors[prefix + name] = value
        pending += [(f"{prefix}{name}.", child) for name, child in reversed(_items(state, "_modules"))]
    raise CheckpointError(f"it holds more than {_MOST_MODULES} modules")


def _items(state: Mapping[Any, Any], group: str) -> list[tuple[str, Any]]:
    members = state.get(group, {})
    if not isinstance(members, dict) or not all(isinstance(name, str) for name in members):
        raise CheckpointError(f"its {group!r} is not a dictionary of names")
    return [(name, value) for name, value in members.items() if value is not None]
