"""The error of everything that reads a dataset."""

from __future__ import annotations

__all__ = ["DataError", "one_line", "reason"]

_LONGEST = 1000


class DataError(ValueError):
    """A dataset cannot be read; one line that says which file and how to mend it.

    File names come from strangers, so the message is that of :func:`one_line`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(message: object) -> str:
    """Return a message on one line: what is unprintable is escaped, and the middle of what is endless cut."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(message))
    half = _LONGEST // 2 - 3
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"  # the end says how to mend it


def reason(error: Exception) -> str:
    """Return an error's first line without the file's name, or its kind where it has no words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
