"""The account of a run, ``run.json``: what was asked, with what it was computed, and how fast."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.files.writing import read_json, write_json
from bench.suite.processes.ranks import Team
from bench.suite.run import Run

_PACKAGES = (
    "torch", "numpy", "scipy", "pandas", "diffusers", "safetensors", "torch-fidelity", "clean-fid", "scikit-learn",
)  # fmt: skip
_LARGEST = 1e300  # no count and no seconds are more


class RunRecord:
    """Writes and reads the ``run.json`` of a run; the file of another run in the same folder counts as none."""

    def __init__(self, run: Run) -> None:
        self.run, self.path = run, run.out / "run.json"

    def _read(self) -> dict[str, Any]:
        record = read_json(self.path) or {}
        return record if record.get("hash") == self.run.config.hash else {}

    @property
    def compiled(self) -> bool | None:
        """Return whether the networks were compiled when this run was started, None where it was not."""
        compiled = self._read().get("compiled")
        return compiled if isinstance(compiled, bool) else None

    @property
    def has_ended(self) -> bool:
        """Tell whether the work ended; True where there is no account of this run."""
        record = self._read()
        return not record or record.get("end") is not None

    @contextmanager
    def record(self, team: Team) -> Iterator[None]:
        """Write the account before and after the work, on the rank that leads."""
        if not team.leads:
            yield
            return
        configuration = self.run.config
        record: dict[str, Any] = {
            "configuration": configuration.description,
            "hash": configuration.hash,
            "command": sys.argv,
            "arguments": configuration.request.arguments,
            "packages": {name: _version(name) for name in _PACKAGES},
            "python": platform.python_version(),
            "commit": _commit(),
            "device": str(configuration.device),
            "processes": team.size,
            "threads": torch.get_num_threads(),
            "batch_size": configuration.request.batch,
            "compiled": self.run.compiled,
            **({"left_out": configuration.left_out} if configuration.left_out else {}),
            **({"warnings": self.run.warnings} if self.run.warnings else {}),
            "start": self._read().get("start") or _now(),  # the first, if the run was interrupted
            "end": None,
            "network_calls": None,
            "network_calls_per_second": None,
            "images_per_second": None,
        }
        write_json(self.path, record)
        yield
        self.end()

    def end(self) -> None:
        """Write when the work ended and how fast it was, if there is an account of this run."""
        record = self._read()
        if record:
            write_json(self.path, record | {"end": _now()} | _speed(self.run))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the code, None where it is not in git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _number(value: object) -> float:
    """Return a number as it is; anything else, which only a stranger's record holds, as 0."""
    return value if isinstance(value, int | float) and abs(value) < _LARGEST else 0.0


def _speed(run: Run) -> dict[str, float | None]:
    """Return the network calls of the whole run (a call is one image at one level) and how fast a process made them."""
    records = [run.store.metrics(cell) or {} for cell in run.cells]
    sampling = sum(_number(record.get("seconds")) for record in records)
    seconds = sampling + sum(extra.seconds(run.out) for extra in run.extras)
    calls = sum(int(_number(record.get("network_calls"))) for record in records)
    calls += sum(extra.cost() for extra in run.extras)
    images = sum(bool(record) for record in records) * run.config.request.samples
    return {
        "network_calls": calls,
        "network_calls_per_second": round(calls / seconds, 1) if seconds else None,
        "images_per_second": round(images / sampling, 2) if sampling else None,
    }
