"""SIGINT and SIGTERM: one line, the exit code of the signal, and no work torn.

This file imports the standard library alone, so that a command can listen before it has imported anything slow.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_LISTENED = (signal.SIGINT, signal.SIGTERM)
_UNREAD = 141  # the exit code of a program that SIGPIPE ended, 128 + 13


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; ``code`` is the exit code, 130 for SIGINT and 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def exit_code(stop: KeyboardInterrupt) -> int:
    """Return the exit code of an interruption: 128 and the number of the signal."""
    return stop.code if isinstance(stop, Interrupted) else 128 + signal.SIGINT


def say_interrupted() -> None:
    """Print the one line; of the processes of torchrun the first alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0":
        print("interrupted; the same command goes on where it stopped", file=sys.stderr, flush=True)


def end_at_once() -> None:
    """Let a signal end the process from now on: while Python still imports there is nothing to tidy up."""
    for number in _LISTENED:
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    say_interrupted()
    os._exit(128 + number)


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run a command as a program and exit with its code; where nobody reads its output any more, without a word."""
    try:
        try:
            code: Any = main()
        except SystemExit as stop:  # of a parser, whose text may not be written yet
            code = stop.code
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())  # Python writes what is left at its end
        code = _UNREAD
    sys.exit(code)


def _report_but_torn_archives(report: sys.UnraisableHookArgs) -> None:
    """Report what Python cannot raise, as ever, but not that an archive which the signal tore cannot close itself."""
    if getattr(report.object, "__qualname__", "") != "ZipFile.__del__":
        sys.__unraisablehook__(report)


class Signals:
    """Listens while it is entered. The first signal raises :class:`Interrupted`, or waits where it is held.

    An error after it becomes :class:`Interrupted`, too. Later signals are ignored: torchrun passes on what the terminal
    sent already. Outside the main thread, where Python allows no handlers, nothing is heard; nor within another that
    listens, which then is the one to hear.

    Attributes:
        received: the number of the first signal, 0 before it.
    """

    def __init__(self) -> None:
        self.received = 0
        self._held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        within = isinstance(getattr(signal.getsignal(signal.SIGINT), "__self__", None), Signals)
        if threading.current_thread() is threading.main_thread() and not within:
            self._before = {number: signal.signal(number, self._hear) for number in _LISTENED}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            # A process that ends for a signal has said so, and must not say it again.
            signal.signal(number, signal.SIG_IGN if self.received and handler is _end else handler)
        if self.received and isinstance(error, Exception):  # what code that imports made of the interruption
            raise Interrupted(self.received) from error

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            return
        self.received = number
        sys.unraisablehook = _report_but_torn_archives
        if not self._held:
            raise Interrupted(number)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Within, a signal is noted in ``received`` and raises nothing."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
