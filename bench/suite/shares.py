"""A share of a run's work: ``--shard i/n``, for job arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.suite.settings import ConfigError

__all__ = ["Share", "parse_share"]

_MOST = 100_000
_PATTERN = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")  # more digits would be out of range


@dataclass(frozen=True)
class Share:
    """Every ``count``-th unit of work, from the ``index``-th, 0 to count - 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_share(text: str) -> Share:
    """Read ``i/n``, i from 0 to n - 1; n counts as 0, so that arrays numbered from 1 to n cover the same work.

    Raises:
        ConfigError: it is anything else.
    """
    found = _PATTERN.fullmatch(text)
    if found is None:
        raise ConfigError(f"--shard: {text!r} is not i/n, such as 0/4")
    index, count = map(int, found.groups())
    if not 0 < count <= _MOST or index > count:
        raise ConfigError(f"--shard: {text!r} is out of range; i goes from 0 to n - 1, or from 1 to n")
    return Share(index % count, count)
