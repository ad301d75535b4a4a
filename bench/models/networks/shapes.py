"""Whether a file's tensors are those a network needs, judged by names and shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

from bench.runtime.errors import CheckpointError, quoted

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
_SHOWN = 2  # examples of each kind in a message


class MisfitError(CheckpointError):
    """A file's names or shapes are not the network's."""


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def misfit(shapes: Shapes, expected: Shapes) -> str | None:
    """Say in one line how a file differs from what a network needs, or None where it does not.

    Args:
        shapes: the file's names and shapes.
        expected: the network's, under the same names.
    """
    lacking = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    shaped = [name for name in expected if name in shapes and shapes[name] != expected[name]]
    parts = [
        _some("lacks ", lacking, quoted),
        _some("has ", extra, quoted, " which it should not"),
        _some("", shaped, lambda name: f"{quoted(name)} is {_shown(shapes[name])} and not {_shown(expected[name])}"),
    ]
    return "; ".join(filter(None, parts)) or None


def _some(before: str, names: Sequence[str], describe: Callable[[str], str], after: str = "") -> str:
    """Name the first few of the names and count the rest."""
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{before}{', '.join(map(describe, names[:_SHOWN]))}{more}{after}"


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
