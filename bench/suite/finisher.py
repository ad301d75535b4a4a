"""Work that follows a walk (features, files, scores), done beside the next walk where that gains anything."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Finisher"]


class Finisher:
    """Does one thing at a time, in the order given.

    Args:
        beside: use a thread of its own. It gains where the walk computes on another device than the host; on the host
            itself both would only share the cores.
    """

    def __init__(self, beside: bool) -> None:
        self.beside = beside
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def submit(self, work: Callable[[], object]) -> None:
        """Do the work, now or beside what follows; waits for what was given before, so that nothing piles up.

        Raises:
            BaseException: what earlier work has raised.
        """
        self.wait()
        if not self.beside:
            work()
            return
        # A daemon: what is half written at an interruption is never read, and nobody should have to wait for it.
        self._thread = threading.Thread(target=self._do, args=(work,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for what was given.

        Raises:
            BaseException: what it has raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # whatever it is belongs to the thread that waits
            self._failure = error
