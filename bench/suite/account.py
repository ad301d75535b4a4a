"""The account of a run, ``run.json``: what was asked, with what it was computed, and how fast."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import torch

from bench.files.writing import read_json, write_json
from bench.suite.environment import environment
from bench.suite.processes.ranks import Team
from bench.suite.run import Run

__all__ = ["account", "end", "has_end"]

_MOST = 1e300  # no count and no seconds are more


@contextmanager
def account(run: Run, team: Team) -> Iterator[None]:
    """Write ``run.json`` before and after the work, on the rank that leads."""
    if not team.leads:
        yield
        return
    record: dict[str, Any] = {
        "configuration": run.configuration(),
        "hash": run.hash(),
        "command": sys.argv,
        "arguments": run.request.arguments,
        **environment(),
        "device": str(run.device),
        "processes": team.size,
        "threads": torch.get_num_threads(),
        "batch_size": run.request.batch,
        "compiled": run.compiled,
        **({"left_out": run.left_out} if run.left_out else {}),
        "start": _first_start(run) or _now(),
        "end": None,
        "network_calls": None,
        "network_calls_per_second": None,
        "images_per_second": None,
    }
    write_json(run.out / "run.json", record)
    yield
    end(run)


def end(run: Run) -> None:
    """Write when the work ended and how fast it was into the run's own ``run.json``, if it is there."""
    record = _own(run)
    if record is not None:
        write_json(run.out / "run.json", record | {"end": _now()} | _speed(run))


def has_end(run: Run) -> bool:
    """Tell whether the run's own ``run.json`` says when the work ended; that of another run is as good."""
    record = _own(run)
    return record is None or record.get("end") is not None


def _own(run: Run) -> dict[str, Any] | None:
    """Return what this very run has written, None where it has not."""
    record = read_json(run.out / "run.json") or {}
    return record if record.get("hash") == run.hash() else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _first_start(run: Run) -> str | None:
    """Return when this very run was first started, if it was interrupted."""
    record = _own(run) or {}
    return str(record["start"]) if "start" in record else None


def _number(value: object) -> float:
    """Return a number as it is and anything else, which only a stranger's record holds, as 0."""
    return value if isinstance(value, int | float) and abs(value) < _MOST else 0.0


def _speed(run: Run) -> dict[str, float | None]:
    """Return the network calls of the whole run (a call is one image at one level) and how fast a process made them."""
    cells = [run.store.metrics(cell) or {} for cell in run.cells]
    sampling = sum(_number(found.get("seconds")) for found in cells)
    seconds = sampling + sum(extra.seconds(run.out) for extra in run.extras)
    calls = sum(int(_number(found.get("network_calls"))) for found in cells)
    calls += sum(extra.cost() for extra in run.extras)
    images = sum(bool(found) for found in cells) * run.request.samples
    return {
        "network_calls": calls,
        "network_calls_per_second": round(calls / seconds, 1) if seconds else None,
        "images_per_second": round(images / sampling, 2) if sampling else None,
    }
