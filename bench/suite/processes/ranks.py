"""The processes of a run: alone, one share of a job array, or the ranks that ``torchrun`` started.

Units of work are taken by number. Alone they come in order; a share takes every n-th; ranks take the next free one from
a counter in torch.distributed's store, so that a fast rank takes more and nobody hands work out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from bench.runtime.distributed import AgreedError, Group, is_launched
from bench.suite.settings import ConfigError

_PATIENCE = timedelta(days=30)  # a rank waits for the longest shard of another; torchrun ends ranks whose peer died

_MAX_SHARES = 100_000
_SHARE = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")  # more digits would be out of range


@dataclass(frozen=True)
class Share:
    """A share of a run's work: every ``count``-th unit, from the ``index``-th, 0 to count - 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_share(text: str) -> Share:
    """Read ``i/n``, i from 0 to n - 1; n counts as 0, so that arrays numbered from 1 to n cover the same work.

    Raises:
        ConfigError: it is anything else.
    """
    match = _SHARE.fullmatch(text)
    if match is None:
        raise ConfigError(f"--shard: {text!r} is not i/n, such as 0/4")
    index, count = map(int, match.groups())
    if not 0 < count <= _MAX_SHARES or index > count:
        raise ConfigError(f"--shard: {text!r} is out of range; i goes from 0 to n - 1, or from 1 to n")
    return Share(index % count, count)


class Team(Group):
    """The processes of a run, which share its units of work.

    Attributes:
        share: the part of the work that is this team's, None for all of it.
    """

    def __init__(self, share: Share | None = None) -> None:
        super().__init__()
        self.share = share

    def take(self, kind: str, count: int) -> Iterator[int]:
        """Yield the numbers of the units of a kind, out of ``count``, that this process does.

        Several processes take the next number that none has taken, until there is none.
        """
        if self.share is not None:
            yield from range(self.share.index, count, self.share.count)
        elif self.size == 1:
            yield from range(count)
        else:
            while (number := self.add(f"taken-{kind}", 1) - 1) < count:
                yield number

    def gather(self, lines: Sequence[str]) -> list[str]:
        """Return the lines of all processes, by rank, each once; every process must ask."""
        return list(dict.fromkeys(line for part in self.collect(list(lines)) for line in part))


def join(shard: str | None) -> Team:
    """Return the team of this process, and on CUDA take the GPU of the local rank.

    Args:
        shard: what ``--shard`` says, None without.

    Raises:
        AgreedError: that is no share, or one was asked for under ``torchrun``.
        PeerError: the others cannot be reached.
    """
    try:
        share = None if shard is None else parse_share(shard)
    except ConfigError as error:
        raise AgreedError(str(error)) from None
    if not is_launched():
        return Team(share)
    if share is not None:
        raise AgreedError(f"--shard {share} is for processes without torchrun, whose ranks share the work already")
    import torch

    team = Team.meet(patience=_PATIENCE)  # words are exchanged, never states: gloo serves every device
    if torch.cuda.is_available():
        torch.cuda.set_device(team.local_rank % torch.cuda.device_count())
    return team
