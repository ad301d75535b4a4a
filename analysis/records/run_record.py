"""The account of a run, ``run.json``: read and checked; a folder may be without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.records.files import CHECKSUM, RUN, read_json

# Of what bench.suite.run_record writes; None stands for what is not known before the run has ended.
_KINDS: Mapping[str, tuple[type, ...]] = {
    "configuration": (dict,), "hash": (str,), "command": (list,), "arguments": (list,), "packages": (dict,),
    "python": (str,), "commit": (str, type(None)), "device": (str,), "processes": (int,), "threads": (int,),
    "batch_size": (int,), "compiled": (bool,), "left_out": (list,), "warnings": (list,), "start": (str,),
    "end": (str, type(None)), "network_calls": (int, type(None)), "network_calls_per_second": (int, float, type(None)),
    "images_per_second": (int, float, type(None)), CHECKSUM: (str,),
}  # fmt: skip
_OPTIONAL = ("left_out", "warnings", CHECKSUM)
_OF_CONFIGURATION: Mapping[str, type] = {
    "models": dict, "dataset": str, "sampler": str, "steps": list, "seeds": list, "samples": int, "features": str,
    "measure": list,
}  # fmt: skip


def read_run(root: Path) -> dict[str, Any]:
    """Return what ``run.json`` of a results folder holds, empty where there is none.

    That of a copy published without an account holds the checksum alone.

    Raises:
        ValueError: it is damaged, was edited, or is of another version; the message says how to go on.
    """
    path = root / RUN
    try:
        record = read_json(path)
        if not (isinstance(record, dict) and record.keys() == {CHECKSUM}):
            _check(record)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged ({text}); run again, or delete it to draw without it") from None
    account: dict[str, Any] = record
    return account


def _check(record: Any) -> None:
    """Refuse a record with other keys, or values of other kinds, than the suite writes."""
    if not isinstance(record, dict):
        raise ValueError("it is no table of settings")
    _check_kinds("", record, _KINDS)
    if unknown := [name for name in record if name not in _KINDS]:
        raise ValueError(f"{unknown[0]!r:.80} is unknown: it was edited, or written by another version of the suite")
    if missing := [name for name in _KINDS if name not in record and name not in _OPTIONAL]:
        raise ValueError(f"it has no {missing[0]!r}")
    configuration = record["configuration"]
    _check_kinds("configuration.", configuration, {name: (kind,) for name, kind in _OF_CONFIGURATION.items()})
    if missing := [name for name in _OF_CONFIGURATION if name not in configuration]:
        raise ValueError(f"its configuration has no {missing[0]!r}")
    if not all(isinstance(model, dict) for model in configuration["models"].values()):
        raise ValueError("a model of its configuration is no table")


def _check_kinds(prefix: str, table: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    for name, value in table.items():
        wanted = kinds.get(name, (object,))
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted and object not in wanted):
            raise ValueError(f"{prefix}{name} is {value!r:.40}")
