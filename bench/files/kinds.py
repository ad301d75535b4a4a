"""What stands in the place of a file that a download tool did not fetch."""

from __future__ import annotations

from pathlib import Path

_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype", b"<html", b"<?xml")
_START = 128  # bytes that are looked at


def placeholder(path: Path) -> str:
    """Return what stands in a file's place and how to get the file, empty for any other content.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_START).lstrip()
    if start.startswith(_POINTER):
        return "is a pointer of Git LFS and not the file itself; run git lfs pull in its folder"
    if start.lower().startswith(_PAGES):
        return "is a web page and not the file itself; download it again, by a direct link"
    return ""
