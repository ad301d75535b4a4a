"""The processes that ``torchrun`` started: how they meet, exchange values and fail together.

This file imports torch only where processes meet, so that a command without others starts fast.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

from bench.runtime.errors import UserError, one_line, reason

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")


class AgreedError(UserError):
    """A mistake of one process that every process raises; the one that speaks prints it."""


class PeerError(UserError):
    """Another process is gone, or the processes cannot meet."""


def is_launched() -> bool:
    """Tell whether ``torchrun`` started this process among others."""
    started = {"TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"} <= os.environ.keys()
    return started and os.environ["WORLD_SIZE"] != "1"


def speaks() -> bool:
    """Tell whether this process prints for the user; the answer is the same before any process has met another."""
    return not is_launched() or os.environ["RANK"] == "0"


def note(message: str) -> None:
    """Print a remark on stderr, one line; of several processes the first alone."""
    if speaks():
        print(f"note: {one_line(message)}", file=sys.stderr, flush=True)


@contextmanager
def spoken_once() -> Iterator[None]:
    """Within, what all processes print alike is printed by one."""
    if speaks():
        yield
        return
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


class Group:
    """The processes of one command: one alone, or those that ``torchrun`` started.

    Every method but :meth:`add` must be called by all processes, in the same order.

    Attributes:
        rank: this process's number; 0 reads, writes and speaks.
        size: the number of processes.
        local_rank: this process's number on its machine.
        complete: whether all processes took part in the last exchange.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size, self.local_rank, self.complete = rank, size, 0, True
        self._store: Store | None = None
        self._counters: dict[str, int] = {}

    @classmethod
    def meet(cls, backend: str = "gloo", patience: timedelta | None = None) -> Self:
        """Return the group of all processes that ``torchrun`` started, as soon as all are there.

        Args:
            backend: what exchanges tensors, as in ``torch.distributed.init_process_group``.
            patience: how long a process waits for the others in each exchange; None is torch's default.

        Raises:
            PeerError: they cannot meet.
        """
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        waits: dict[str, Any] = {} if patience is None else {"timeout": patience}
        try:
            served, rank, size = next(rendezvous("env://", **waits))
            if patience is not None:
                served.set_timeout(patience)
            # The launcher's store outlives processes that it starts again, and holds what they wrote.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
            store = PrefixStore(f"attempt-{attempt}-of-{size}", served)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, **waits)
        except (RuntimeError, ValueError) as error:
            raise PeerError(f"the processes that torchrun started cannot meet ({reason(error)})") from None
        group = cls()
        group.rank, group.size = rank, size
        group.local_rank = int(os.environ.get("LOCAL_RANK", rank))
        group._store = PrefixStore("bench", store)
        return group

    @property
    def leads(self) -> bool:
        """Tell whether this process reads, writes and speaks."""
        return self.rank == 0

    def collect(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values = [value] * self.size
        with self.exchange():
            dist.all_gather_object(values, value)
        return values

    def first(self, value: T | None) -> T | None:
        """Return the first value by rank that is not None, None where all are."""
        return next((other for other in self.collect(value) if other is not None), None)

    def add(self, counter: str, count: int) -> int:
        """Add to a counter that all processes share; return its value."""
        if self._store is None:
            self._counters[counter] = self._counters.get(counter, 0) + count
            return self._counters[counter]
        with self.exchange():
            return int(self._store.add(counter, count))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave with an error in every process if a UserError or OSError leaves one, so that none waits for it in vain.

        Raises:
            AgreedError: the message of the first process that failed. A process alone raises its own error.
        """
        mistake = None
        try:
            yield
        except (UserError, OSError) as error:
            if self.size == 1 or isinstance(error, PeerError):
                raise
            mistake = one_line(error)
        message = self.first(mistake)
        if message is not None:
            raise AgreedError(message)

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Say in one line what torch says in many when another process is gone.

        Raises:
            PeerError: it is.
        """
        try:
            yield
        except RuntimeError as error:
            self.complete = False
            raise PeerError(
                f"another process ended ({reason(error)}); the same command goes on where it stopped"
            ) from None

    def close(self, patience: timedelta | None = None) -> None:
        """Leave the group.

        Args:
            patience: how long to wait for the others to leave too. To a process that is slow to wake, gloo reports
                those that left early as lost.
        """
        if self._store is None:
            return
        import torch.distributed as dist

        if patience is not None:
            with suppress(RuntimeError):  # a process that does not come has left, or is about to
                if self._store.add("parting", 1) == self.size:
                    self._store.set("all parting", "")
                self._store.wait(["all parting"], patience)
        dist.destroy_process_group()
