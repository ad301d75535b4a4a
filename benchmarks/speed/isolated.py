"""Calls in processes of their own, as their users run them: what one side does to memory or threads is not the other's.

Which matters: the suite tells the allocator to keep what it frees, and compiled code leaves its own threads behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeAlias

import torch

from bench.models.acceleration import CompileError
from benchmarks.comparison import Setting, wait

_PATIENCE = 10.0  # seconds
Make: TypeAlias = Callable[[], Callable[[], object]]  # picklable: builds the call where it is to run


@contextmanager
def contestant(make: Make, setting: Setting) -> Iterator[Callable[[], object]]:
    """Yield what ``make`` builds, in a process of its own unless the setting says otherwise."""
    if not setting.isolated:
        yield make()
        return
    process = _Isolated(make, setting.device)
    try:
        yield process
    finally:
        process.close()


class _Isolated:
    """A call that another process makes when it is asked to; asking costs a tenth of a millisecond."""

    def __init__(self, make: Make, device: torch.device) -> None:
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, torch.get_num_threads(), str(device)))
        self._process.start()
        other.close()
        self._is_ready = False

    def __call__(self) -> None:
        if not self._is_ready:
            failure = self._pipe.recv()
            if failure is not None:
                raise CompileError(failure)
            self._is_ready = True
        self._pipe.send(True)
        self._pipe.recv()

    def close(self) -> None:
        """Let the process end by itself, and end it where it does not."""
        with suppress(OSError):  # it may have ended already
            self._pipe.send(False)
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def _serve(pipe: Connection, make: Make, threads: int, device: str) -> None:
    torch.set_num_threads(threads)
    try:
        call = make()
    except CompileError as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    while pipe.recv():
        call()
        wait(torch.device(device))
        pipe.send(None)
