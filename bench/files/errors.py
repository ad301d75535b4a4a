"""The error of everything that reads a dataset."""

from __future__ import annotations

__all__ = ["DataError", "reason"]


class DataError(ValueError):
    """A dataset cannot be read; one line that says which file and how to mend it.

    File names come from strangers, so line breaks and other unprintable characters of the message are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


def reason(error: Exception) -> str:
    """Return an error's first line without the file's name, or its kind where it has no words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
