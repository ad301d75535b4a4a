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
    context = get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, make, torch.get_num_threads(), str(setting.device)))
    process.start()
    other.close()

    def ask() -> None:  # which costs a tenth of a millisecond
        pipe.send(True)
        failure = pipe.recv()
        if failure is not None:
            raise CompileError(failure)

    try:
        yield ask
    finally:
        with suppress(OSError):  # it may have ended already
            pipe.send(False)
        process.join(_PATIENCE)
        process.kill()  # where it does not end by itself
        process.join()


def _serve(pipe: Connection, make: Make, threads: int, device: str) -> None:
    """Build a call, then make it whenever asked to; answer with what keeps it from being built, None if nothing."""
    torch.set_num_threads(threads)
    call, failure = None, None
    try:
        call = make()
    except CompileError as error:
        failure = str(error)
    while pipe.recv():
        if call is not None:
            call()
            wait(torch.device(device))
        pipe.send(failure)
