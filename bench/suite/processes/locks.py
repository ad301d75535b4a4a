"""Claims on a results folder: locks that end with the process that holds them, however it ends.

They keep a second run out of a folder, and let several processes of one run share it: under ``torchrun`` the first rank
holds the folder for all, jobs of ``--shard i/n`` hold it together, each with a part of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import portalocker
from portalocker import LockFlags

from bench.suite.processes.ranks import Share
from bench.suite.settings import ConfigError

_FOLDER = ".locks"


class Claims:
    """The claims of one process on a results folder.

    Args:
        root: the folder; created when the first claim is made.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._noted = root, False

    @contextmanager
    def folder(self, share: Share | None = None) -> Iterator[None]:
        """Hold the folder: alone, or with the jobs of the other shares.

        Raises:
            ConfigError: another process holds it.
        """
        held = f"{self.root} is in use by another run; wait for it, stop it, or choose another --out"
        with ExitStack() as locks:
            kind = LockFlags.EXCLUSIVE if share is None else LockFlags.SHARED
            if not locks.enter_context(self._lock("run", kind | LockFlags.NON_BLOCKING)):
                raise ConfigError(held)
            if share is not None:
                name = f"share-{share.index}-of-{share.count}"
                if not locks.enter_context(self._lock(name, LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)):
                    raise ConfigError(f"--shard {share} is already running on {self.root}; wait for it or stop it")
            yield

    def setup(self) -> AbstractContextManager[bool]:
        """Hold the right to set cells up; processes of one run take turns."""
        return self._lock("setup", LockFlags.EXCLUSIVE)

    def drawing(self) -> AbstractContextManager[bool]:
        """Hold the right to write tables and figures; processes that end together take turns."""
        return self._lock("drawing", LockFlags.EXCLUSIVE)

    def cell(self, name: str) -> AbstractContextManager[bool]:
        """Try to hold the right to complete a cell; False while another process is at it."""
        return self._lock(f"cell-{name}", LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)

    @contextmanager
    def _lock(self, name: str, flags: LockFlags) -> Iterator[bool]:
        path = self.root / _FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = True
        with path.open("a+") as file:  # NFS shares locks of readable files only
            try:
                portalocker.lock(file, flags)
            except portalocker.exceptions.AlreadyLocked:
                mine = False
            except portalocker.exceptions.LockException:
                # A file system without locks must not keep anyone from running; every write is safe without them.
                if not self._noted:
                    line = f"{path.parent} cannot be locked here; see to it that one run at a time uses it"
                    print(f"note: {line}", file=sys.stderr)
                self._noted = True
            yield mine  # closing the file releases it
