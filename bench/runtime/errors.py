"""The errors a user can mend: one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

_LONGEST = 1000  # characters of a line
_REASON = 200  # characters of what a library says
_QUOTED = 80  # characters of a value out of a file


class UserError(Exception):
    """A mistake that a user can mend. The message says in one line what is wrong and what to do."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


class DataError(UserError):
    """A dataset cannot be read."""


class CheckpointError(UserError):
    """A checkpoint or a network description cannot be used."""


class FeatureError(UserError):
    """Features or their statistics cannot be computed or read."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        self.exit(2, f"error: {message}; see --help\n")


def one_line(message: object, longest: int = _LONGEST) -> str:
    """Return a message on one line of at most ``longest`` characters.

    Unprintable characters are escaped. A long message loses its middle: its end says how to mend it.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(message))
    half = longest // 2 - 3
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"


def reason(error: BaseException) -> str:
    """Return the first line of an error, without a file name, or its class name if it has no message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[0] if lines else type(error).__name__, _REASON)


def quoted(value: Any) -> str:
    """Return a value out of a file as one short line; it may be of any type and size."""
    if isinstance(value, str):
        text = repr(value)
        return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 3]}..."
    if value is None or isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 64):
        return repr(value)
    # The repr of a list in a list can be endless: lists of a pickle may share their elements.
    if (
        isinstance(value, list | tuple)
        and len(value) < 10
        and not any(isinstance(v, list | tuple | dict) for v in value)
    ):
        return f"[{', '.join(map(quoted, value))}]"
    return f"a value of the kind {type(value).__name__}"
