"""The processes of a run: alone, one share of a job array, or the ranks that ``torchrun`` started.

Units of work are taken by number. Alone they come in order; a share takes every n-th; ranks take the next free one from
a counter in torch.distributed's store, so that a fast rank takes more and nobody hands work out.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from bench.runtime.errors import UserError, one_line, reason
from bench.suite.settings import ConfigError
from bench.suite.shares import Share, parse_share

__all__ = ["AgreedError", "Ranks", "Team", "TeamError", "is_launched", "join", "speaks", "spoken_once"]

_PATIENCE = timedelta(days=30)  # a rank waits for the longest shard of another; torchrun ends ranks whose peer died


class AgreedError(ConfigError):
    """A mistake that every process of the team raises; the one that speaks to the user tells it."""


class TeamError(UserError):
    """Another process of the team is gone; one line."""


class Team:
    """A process without others.

    Attributes:
        rank: 0 for the process that speaks to the user.
        size: how many processes share the work now.
        share: the part of the work that is this team's, None for all of it.
    """

    rank, size, local_rank = 0, 1, 0

    def __init__(self, share: Share | None = None) -> None:
        self.share = share
        self._counters: dict[str, int] = {}

    @property
    def leads(self) -> bool:
        """Tell whether this process speaks to the user."""
        return self.rank == 0

    def take(self, kind: str, count: int) -> Iterator[int]:
        """Yield the numbers of the units of a kind, out of ``count``, that this process is to do."""
        yield from range(count) if self.share is None else range(self.share.index, count, self.share.count)

    def gather(self, lines: Sequence[str]) -> list[str]:
        """Return the lines of all processes, by rank, each once; every process must ask."""
        return list(dict.fromkeys(lines))

    @contextmanager
    def together(self, *mistakes: type[Exception]) -> Iterator[None]:
        """Leave with an error in every process where one fails within, so that none waits for it in vain.

        Args:
            mistakes: the errors meant.

        Raises:
            AgreedError: the line of the first process that failed. Alone the mistake itself.
        """
        line: list[str] = []
        try:
            yield
        except mistakes as error:
            if self.size == 1 or isinstance(error, TeamError):
                raise
            line = [one_line(error)]
        told = self.gather(line)
        if told:
            raise AgreedError(told[0])

    def add(self, counter: str, count: int) -> int:
        """Add to a counter that all processes share and return its value."""
        self._counters[counter] = self._counters.get(counter, 0) + count
        return self._counters[counter]

    def close(self) -> None:
        """Part, when all is done."""


class Ranks(Team):
    """One of the processes that ``torchrun`` started; they share the results folder."""

    def __init__(self) -> None:
        super().__init__()
        with _exchange():
            served, self.rank, self.size = next(rendezvous("env://", timeout=_PATIENCE))
            served.set_timeout(_PATIENCE)
            # The launcher's store outlives ranks that it starts again, with what they had written there.
            store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}-of-{self.size}", served)
            # Only words are exchanged, never states: gloo serves every device.
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=_PATIENCE)
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self._store = PrefixStore("bench", store)

    def take(self, kind: str, count: int) -> Iterator[int]:
        """Yield the next number that no rank has taken, until there is none."""
        while (number := self._add(f"taken-{kind}", 1) - 1) < count:
            yield number

    def gather(self, lines: Sequence[str]) -> list[str]:
        """Return the lines of all ranks; waits for every one of them."""
        found: list[list[str]] = [[] for _ in range(self.size)]
        with _exchange():
            dist.all_gather_object(found, list(lines))
        return list(dict.fromkeys(line for part in found for line in part))

    def add(self, counter: str, count: int) -> int:
        """Add to a counter in the store."""
        return self._add(f"count-{counter}", count)

    def _add(self, name: str, count: int) -> int:
        with _exchange():
            return int(self._store.add(name, count))

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


@contextmanager
def _exchange() -> Iterator[None]:
    """Say in one line what torch says over many when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise TeamError(
            f"another process of this run ended ({one_line(reason(error))}); the same command goes on where it stopped"
        ) from None


def is_launched() -> bool:
    """Tell whether ``torchrun`` started this process."""
    return dist.is_available() and dist.is_torchelastic_launched() and {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def speaks() -> bool:
    """Tell whether this process speaks to the user, before any has met the others, too."""
    return not is_launched() or os.environ.get("RANK", "0") == "0"


@contextmanager
def spoken_once() -> Iterator[None]:
    """Within, what every process prints alike is printed by one."""
    with ExitStack() as stack:
        if not speaks():
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
        yield


def join(shard: str | None) -> Team:
    """Return the team of this process, and on CUDA take the GPU of the local rank.

    Args:
        shard: what ``--shard`` says, None without.

    Raises:
        AgreedError: that is no share, or one was asked for under ``torchrun``.
        TeamError: the others cannot be reached.
    """
    try:
        share = None if shard is None else parse_share(shard)
    except ConfigError as error:
        raise AgreedError(str(error)) from None
    if not is_launched():
        return Team(share)
    if share is not None:
        raise AgreedError(f"--shard {share} is for processes without torchrun, whose ranks share the work already")
    team = Ranks()
    if torch.cuda.is_available():
        torch.cuda.set_device(team.local_rank % torch.cuda.device_count())
    return team
