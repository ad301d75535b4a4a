"""The processes of ``torchrun`` that train one network together: each holds a replica and a part of every batch.

They exchange the sum of the gradients, once an iteration, and a few words. ``DistributedDataParallel`` is not used: the
gradient penalty differentiates twice, which its hooks do not take.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from bench.models.train.batches import Part
from bench.runtime.errors import UserError, one_line, reason

T = TypeVar("T")


class ReplicaError(UserError):
    """What another process refused, or why several cannot train together; one line."""


class Replicas:
    """This process among those that train one network; alone it exchanges nothing.

    Every method but :meth:`part` must be called by all processes, in the same order.

    Attributes:
        rank: 0 for the process that reads, writes and speaks.
        size: how many processes there are.
        complete: whether they all were there at the last exchange.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size, self.complete = rank, size, True

    @property
    def leads(self) -> bool:
        """Tell whether this process reads, writes and speaks."""
        return self.rank == 0

    def part(self, batch: int) -> Part:
        """Return which images of a batch are this process's: contiguous, by rank, their counts one apart at most."""
        return Part(batch * self.rank // self.size, batch * (self.rank + 1) // self.size, batch)

    def check(self, batch: int, device: torch.device) -> None:
        """Refuse what cannot be shared, and take the device.

        Raises:
            ReplicaError: more processes than images in a batch, or a device that is not each process's own.
        """
        if self.size == 1:
            return
        if batch < self.size:
            raise ReplicaError(f"{self.size} processes cannot share batches of {batch}; start at most {batch}")
        if device.type not in ("cpu", "cuda"):
            raise ReplicaError(f"several processes train on cpu or cuda, not on {device.type}; choose another --device")
        if device.type == "cuda":
            if device.index != int(os.environ["LOCAL_RANK"]):
                raise ReplicaError(f"{device} cannot be the GPU of every process; give --device cuda")
            torch.cuda.set_device(device)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients by their sums over all processes, in one exchange."""
        if self.size == 1:
            return
        # Each process has shown its network images of its own, so that the same gradients exist in all.
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        totals = flat.split([gradient.numel() for gradient in gradients])
        for gradient, total in zip(gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes of a tensor, in place; the same bits in each."""
        if self.size > 1:
            with self._exchange():
                dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """Return the largest of the processes' values. It passes through the host and waits for no device."""
        if self.size == 1:
            return value
        values = torch.tensor(value)
        with self._exchange():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def of_leader(self, make: Callable[[], T]) -> T:
        """Return what ``make`` returns in the process that leads, the only one that calls it.

        Raises:
            ReplicaError: it failed there.
        """
        made: list[T | None] = [None]
        with self.together():
            if self.leads:
                made = [make()]
        if self.size > 1:
            with self._exchange():
                dist.broadcast_object_list(made)
        return made[0]  # type: ignore[return-value]  # None only where make returns it

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave with an error in every process where one fails within, so that none waits for it in vain.

        Raises:
            ReplicaError: the line of the first process that failed. Alone the mistake itself.
        """
        mistake = None
        try:
            yield
        except (UserError, OSError) as error:
            if self.size == 1:
                raise
            mistake = one_line(error)
        line = self._first(mistake)
        if line is not None:
            raise ReplicaError(line)

    def parsed(self, parse: Callable[[], T]) -> T:
        """Return what ``parse`` makes of the command line; where a process refuses, one line and all exit."""
        if self.size == 1:
            return parse()
        out, err, code = io.StringIO(), io.StringIO(), None
        try:
            with redirect_stdout(out), redirect_stderr(err):
                made = parse()
        except SystemExit as stop:
            code = stop.code
        said = self._first(None if code is None else (code, out.getvalue(), err.getvalue()))
        if said is None:
            return made
        code, printed, complained = said
        if self.leads:
            print(printed, end="")
            print(complained, end="", file=sys.stderr)
        raise SystemExit(code)

    def _first(self, told: T | None) -> T | None:
        """Return what the first process that has something tells, None where nobody has."""
        found: list[T | None] = [told] * self.size
        if self.size > 1:
            with self._exchange():
                dist.all_gather_object(found, told)
        return next((one for one in found if one is not None), None)

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Say in one line what torch says over many when another process is gone."""
        try:
            yield
        except RuntimeError as error:
            self.complete = False
            raise ReplicaError(
                f"another process of this training ended ({reason(error)}); the same command goes on from the last save"
            ) from None


ALONE = Replicas()


@contextmanager
def joined() -> Iterator[Replicas]:
    """Join the other processes where ``torchrun`` started several, and part at the end.

    Tensors on the CPU are exchanged by gloo, those on GPUs by NCCL.

    Raises:
        ReplicaError: they cannot be reached.
    """
    if not dist.is_torchelastic_launched() or os.environ.get("WORLD_SIZE") == "1":
        yield ALONE
        return
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        served, rank, size = next(rendezvous("env://"))
        # The launcher's store outlives processes that it starts again, with what they had written there.
        store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}-of-{size}", served)
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        raise ReplicaError(f"the processes that torchrun started cannot meet ({reason(error)})") from None
    replicas = Replicas(rank, size)
    try:
        yield replicas
    finally:
        # Not after an error of this process alone: NCCL would wait for exchanges that the others never take part in.
        if replicas.complete and not isinstance(sys.exception(), Exception):
            _part(store, size)
            dist.destroy_process_group()


def _part(store: Store, size: int) -> None:
    """Wait, but not for long, until all have come here: to one that is slow to wake, gloo calls who left early lost."""
    parting = PrefixStore("parting", store)
    with suppress(RuntimeError):  # whoever is not heard of has left or is about to
        if parting.add("count", 1) == size:
            parting.set("all", "")
        parting.wait(["all"], timedelta(seconds=10))
