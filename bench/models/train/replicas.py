"""The processes of ``torchrun`` that train one network together: each holds a replica and a part of every batch.

They exchange the sum of the gradients, once an iteration, and a few words. ``DistributedDataParallel`` is not used: the
gradient penalty differentiates twice, which its hooks do not take.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bench.models.train.batches import Part
from bench.runtime.distributed import AgreedError, Group, is_launched

T = TypeVar("T")


class Replicas(Group):
    """This process among those that train one network; alone it exchanges nothing.

    Every method but :meth:`part` must be called by all processes, in the same order.
    """

    def part(self, batch: int) -> Part:
        """Return which images of a batch are this process's: contiguous, by rank, their counts one apart at most."""
        return Part(batch * self.rank // self.size, batch * (self.rank + 1) // self.size, batch)

    def check(self, batch: int, device: torch.device) -> None:
        """Refuse what cannot be shared, and take the device.

        Raises:
            AgreedError: more processes than images in a batch, or a device that is not each process's own.
        """
        if self.size == 1:
            return
        if batch < self.size:
            raise AgreedError(f"{self.size} processes cannot share batches of {batch}; start at most {batch}")
        if device.type not in ("cpu", "cuda"):
            raise AgreedError(f"several processes train on cpu or cuda, not on {device.type}; choose another --device")
        if device.type == "cuda":
            if device.index != int(os.environ["LOCAL_RANK"]):
                raise AgreedError(f"{device} cannot be the GPU of every process; give --device cuda")
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
            with self.exchange():
                dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """Return the largest of the processes' values. It passes through the host and waits for no device."""
        if self.size == 1:
            return value
        values = torch.tensor(value)
        with self.exchange():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def of_leader(self, make: Callable[[], T]) -> T:
        """Return what ``make`` returns in the process that leads, the only one that calls it.

        Raises:
            AgreedError: it failed there.
        """
        made: list[T | None] = [None]
        with self.together():
            if self.leads:
                made = [make()]
        if self.size > 1:
            with self.exchange():
                dist.broadcast_object_list(made)
        return made[0]  # type: ignore[return-value]  # None only where make returns it

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
        said = self.first(None if code is None else (code, out.getvalue(), err.getvalue()))
        if said is None:
            return made
        code, printed, complained = said
        if self.leads:
            print(printed, end="")
            print(complained, end="", file=sys.stderr)
        raise SystemExit(code)


_PATIENCE = timedelta(seconds=10)
ALONE = Replicas()


@contextmanager
def joined() -> Iterator[Replicas]:
    """Join the other processes where ``torchrun`` started several, and part at the end.

    Tensors on the CPU are exchanged by gloo, those on GPUs by NCCL.

    Raises:
        PeerError: they cannot be reached.
    """
    if not is_launched():
        yield ALONE
        return
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    replicas = Replicas.meet("cpu:gloo,cuda:nccl" if nccl else "gloo")
    try:
        yield replicas
    finally:
        # Not after an error of this process alone: NCCL would wait for exchanges that the others never take part in.
        if replicas.complete and not isinstance(sys.exception(), Exception):
            replicas.close(_PATIENCE)
