"""Pickles, and the files of ``torch.save``, read without executing anything.

A pickle is a program. Only the names on a caller's list are looked up. Before it runs, one pass over its opcodes
refuses what no pickler writes and what would exhaust memory, time or the stack: the unpickler trusts every size and
index in the file.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

from bench.runtime.errors import quoted

_MOST_STEPS = 2**18  # a released EDM network has below 60,000, a batch of CIFAR-10 with numpy's numbers 221,000
_MOST_ENTRIES = (
    100  # of a tuple, those of tuples inside it counted: they are copied by calls and hashed again and again
)
_NEVER = ("EXT1", "EXT2", "EXT4", "FROZENSET", "NEXT_BUFFER", "READONLY_BUFFER")
_IN_PLACE = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_NAMES = ("GLOBAL", "STACK_GLOBAL")


class UnsafePickleError(ValueError):
    """A pickle asks for, or does, what its format does not need; nothing of it was executed."""


class _Restricted(pickle.Unpickler):
    def __init__(self, file: IO[bytes], allowed: Mapping[tuple[str, str], Any], encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        """Return what the caller put in the name's place."""
        if (module, name) not in self._allowed:
            raise UnsafePickleError(f"it asks for {quoted(f'{module}.{name}')}, which such a file does not need")
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside the file."""
        raise UnsafePickleError("it refers to objects outside itself")


def restricted_load(file: IO[bytes], allowed: Mapping[tuple[str, str], Any], encoding: str = "ASCII") -> Any:
    """Read one pickle.

    Args:
        file: opened for reading bytes, seekable.
        allowed: (module, name) as written in the pickle, to what shall stand for it: an inert class or function, which
            copies none of its arguments without a limit. The pickle can call it, but not change it.
        encoding: of texts written by Python 2; ``bytes`` leaves them undecoded.

    Raises:
        UnsafePickleError: the pickle asks for any other name, or would exhaust memory, time or the stack.
        Exception: on damaged bytes pickle raises almost any kind.
    """
    start = file.tell()
    _refuse_absurd(file)
    file.seek(start)
    return _Restricted(file, allowed, encoding).load()


class _Bounded:
    """A file that is never asked for more than it has: a reader makes room for what it asks for."""

    def __init__(self, file: IO[bytes]) -> None:
        at = file.tell()
        self.end = file.seek(0, os.SEEK_END)
        file.seek(at)
        self._file, self.tell, self.readline = file, file.tell, file.readline

    def read(self, size: int) -> bytes:
        """Read at most ``size`` bytes, and at most the rest of the file."""
        return self._file.read(min(size, self.end - self.tell()))


def _refuse_absurd(file: IO[bytes]) -> None:
    """Go through a pickle's steps without making any object, and refuse what no pickler writes."""
    bounded, stack, frame_end = _Bounded(file), _Stack(), 0
    steps = pickletools.genops(cast("IO[bytes]", bounded))
    argument: Any
    for count, (opcode, argument, at) in enumerate(steps):
        if count >= _MOST_STEPS:
            raise UnsafePickleError(f"it has more than {_MOST_STEPS} steps")
        if opcode.name in _NEVER:
            raise UnsafePickleError(f"it has a step {opcode.name}, which such a file does not need")
        if at is not None and at < frame_end < bounded.tell():
            # The unpickler would drop the rest of the frame and run other steps than those seen here.
            raise UnsafePickleError("one of its steps crosses a frame")
        if opcode.name == "FRAME":
            frame_end = bounded.tell() + int(argument)
            if frame_end > bounded.end:
                raise EOFError("it ends within a frame")
        if "PUT" in opcode.name and int(argument) > count:  # it makes room for every index up to the largest
            raise UnsafePickleError("it has a memo index beyond its size")
        stack.step(opcode, argument)


class _Stack:
    """The unpickler's stack and memo, with a number for each object.

    It is 0 for a name that was looked up; for a tuple, and for what a call may have made of one, the count of entries
    with those of tuples inside it; 1 for all else.
    """

    def __init__(self) -> None:
        self._values: list[int | None] = []  # None is a mark
        self._memo: dict[int, int] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Apply an opcode."""
        name = opcode.name
        if "PUT" in name or name == "MEMOIZE":
            self._memo[len(self._memo) if name == "MEMOIZE" else int(argument)] = self._top()
        elif "GET" in name:
            self._values.append(self._memo[int(argument)])
        elif name == "DUP":
            self._values.append(self._top())
        elif name == "MARK":
            self._values.append(None)
        elif name == "POP":
            self._values.pop()
        else:
            popped = self._pop(opcode)
            self._values += [self._made(name, popped)] * len(opcode.stack_after)

    def _top(self) -> int:
        top = self._values[-1]
        if top is None:
            raise UnsafePickleError("it is not written by pickle")
        return top

    def _pop(self, opcode: pickletools.OpcodeInfo) -> list[int]:
        """Pop the operands of an opcode, deepest first."""
        before, popped = opcode.stack_before, list[int]()
        if pickletools.markobject in before:
            while (value := self._values.pop()) is not None:
                popped.append(value)
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            popped.append(self._top())
            self._values.pop()
        return popped[::-1]

    @staticmethod
    def _made(name: str, popped: list[int]) -> int:
        if name in _NAMES:
            return 0
        if name in _IN_PLACE:
            if popped[0] == 0:
                raise UnsafePickleError("it changes what stands for a name")
            return popped[0]
        is_made_of_all = "TUPLE" in name or name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ")
        entries = 1 + sum(popped) if is_made_of_all else 1
        if entries > _MOST_ENTRIES:
            raise UnsafePickleError(f"it has a tuple of more than {_MOST_ENTRIES} entries")
        return entries


class UnfoldingError(ValueError):
    """An archive that ``torch.save`` does not write, compressed or with overlapping members: it could unfold."""


def load_plain(path: Path, is_mapped: bool = False) -> Any:
    """Read a file of ``torch.save``: plain tensors on the host, and containers, numbers and texts around them.

    Args:
        path: the file.
        is_mapped: whether numbers are read only where they are asked for, as files from before torch 1.6 cannot be.

    Raises:
        UnfoldingError: a small file could unfold to any size.
        Exception: torch's reader raises almost any kind on damaged bytes and on objects of any other kind.
    """
    import torch  # slow to import: readers of pickles alone do without

    if _unfolds(path):
        raise UnfoldingError("it is a compressed archive, not a file of torch.save")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an odd file is refused in one line, or its oddity is not in the tensors
        is_mapped = is_mapped and zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)


def _unfolds(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    return packed or sum(member.file_size for member in members) > path.stat().st_size
