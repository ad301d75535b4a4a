"""Pickles read without executing anything: only names on a caller's list are looked up, everything else is refused."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import IO, Any

__all__ = ["UnsafePickleError", "restricted_load"]


class UnsafePickleError(ValueError):
    """A pickle asks for a name that its format does not need; nothing of it was executed."""


class _Restricted(pickle.Unpickler):
    def __init__(self, file: IO[bytes], allowed: Mapping[tuple[str, str], Any], encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        """Return what the caller put in the name's place."""
        if (module, name) not in self._allowed:
            raise UnsafePickleError(f"it asks for {module}.{name}, which such a file does not need")
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside the file."""
        raise UnsafePickleError("it refers to objects outside itself")


def restricted_load(file: IO[bytes], allowed: Mapping[tuple[str, str], Any], encoding: str = "ASCII") -> Any:
    """Read one pickle.

    Args:
        file: opened for reading bytes.
        allowed: (module, name) as written in the pickle, to what shall stand for it: the real thing where calling it
            with any arguments is harmless, else an inert class.
        encoding: of texts written by Python 2; ``bytes`` leaves them undecoded.

    Raises:
        UnsafePickleError: the pickle asks for any other name.
        Exception: on damaged bytes pickle raises almost any kind.
    """
    return _Restricted(file, allowed, encoding).load()
