"""What a run was made with, as ``run.json`` records it, without the paths of the machine it ran on."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from analysis.records.files import read_json

_JOINTS = re.compile(r"([=,])")  # of --out=PATH and of name=PATH,name=PATH


def read_configuration(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Return names and values of the command, the configuration and the environment; empty where none can be read."""
    try:
        record = _scrubbed(read_json(root / "run.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    words, configuration = record.pop("command", None), record.pop("configuration", None)
    command = shlex.join(str(word) for word in words) if isinstance(words, list) else None
    parts = {"Configuration": configuration, "Environment": {"command": command, **record}}
    sections = {heading: list(_flat("", content)) for heading, content in parts.items()}
    return {heading: rows for heading, rows in sections.items() if rows}


def without_paths(text: str) -> str:
    """Return text with absolute paths, also those after ``=`` and ``,``, cut to their last part."""
    return "".join(_last(part) for part in _JOINTS.split(text))


def _last(part: str) -> str:
    for path in (PurePosixPath(part), PureWindowsPath(part)):
        if path.is_absolute() or part.startswith("~"):
            return path.name
    return part


def _scrubbed(value: Any) -> Any:
    """Return a value of ``run.json`` with absolute paths cut to their last part."""
    if isinstance(value, dict):
        return {without_paths(name): _scrubbed(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_scrubbed(inner) for inner in value]
    return without_paths(value) if isinstance(value, str) else value


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the entries of nested dictionaries with dotted names; lists stay on one line."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else name, inner)
    elif value is not None:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
