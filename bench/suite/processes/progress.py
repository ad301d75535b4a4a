"""What a run says while it works: a progress line for people, JSON lines and TensorBoard scalars for machines."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from bench.suite.processes.ranks import Team

__all__ = ["Scalars", "Watch", "log_path"]

_EVERY = 1.0  # seconds between two exchanges with the other ranks


class Scalars(Protocol):
    """What TensorBoard's writer offers of what is used here."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Write one number."""
        ...

    def close(self) -> object:
        """Write what is left."""
        ...


def log_path(root: Path, team: Team) -> Path:
    """Return where a process logs; each has a file of its own, since not every file system can share one."""
    share = "" if team.share is None else f"-shard-{team.share.index}-of-{team.share.count}"
    return root / f"log{share}{'' if team.leads else f'-rank-{team.rank}'}.jsonl"


class Watch:
    """Counts network calls, images and cells over all ranks.

    Args:
        team: who works.
        calls: network calls that this team has to make in all, and how many of them were made before.
        cells: how many cells the run has, and how many of them were complete before.
        log: where events go, one JSON object a line: ``time`` (UTC), ``event``, ``rank`` and what belongs to it.
        shown: show a progress line, on the rank that leads.
        scalars: TensorBoard's writer, None without.
    """

    def __init__(
        self,
        team: Team,
        calls: tuple[int, int],
        cells: tuple[int, int],
        log: Path,
        shown: bool,
        scalars: Scalars | None = None,
    ) -> None:
        self.team, self.cells, self.total, self._log, self._scalars = team, cells, calls[0], log, scalars
        self._bar = tqdm(
            total=calls[0], initial=calls[1], unit="call", unit_scale=True, disable=not (shown and team.leads)
        )
        self._began = self._exchanged = time.monotonic()
        self._pending, self._before = {"calls": 0, "images": 0, "cells": 0}, calls[1]
        self._lock = threading.Lock()  # work may be finished beside the next walk
        self._log.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self._log)

    def begin(self, what: str) -> None:
        """Say what this process works on."""
        self._bar.set_description(what)

    def calls(self, count: int) -> None:
        """Count network calls just made; now and then the ranks tell each other."""
        with self._lock:
            self._pending["calls"] += count
        if time.monotonic() - self._exchanged >= _EVERY:
            self.exchange()

    def images(self, count: int) -> None:
        """Count finished samples."""
        with self._lock:
            self._pending["images"] += count

    def cell(self) -> None:
        """Count a complete cell."""
        with self._lock:
            self._pending["cells"] += 1
        self.exchange()

    def event(self, event: str, **facts: Any) -> None:
        """Write a line of the log."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, "rank": self.team.rank, **facts}, default=str)
        with self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def scores(self, model: str, values: Mapping[str, float], steps: int) -> None:
        """Write the scores of a complete cell against its steps."""
        for name, value in values.items() if self._scalars else ():
            assert self._scalars is not None
            self._scalars.add_scalar(f"{name}/{model}", value, steps)

    def close(self) -> None:
        """Show the last count and put everything away."""
        self.exchange()
        self._bar.close()
        if self._scalars is not None:
            self._scalars.close()

    def exchange(self) -> None:
        """Tell the other ranks what was done here, and show what was done by all."""
        with self._lock:
            self._exchanged = time.monotonic()
            totals = {name: self.team.add(name, count) for name, count in self._pending.items()}
            self._pending = dict.fromkeys(self._pending, 0)
            if self.team.leads:
                self._show(totals)

    def _show(self, totals: Mapping[str, int]) -> None:
        seconds = max(self._exchanged - self._began, 1e-9)
        speed = totals["images"] / seconds
        self._bar.set_postfix_str(
            f"cells {self.cells[1] + totals['cells']}/{self.cells[0]}, {speed:.3g} images/s", refresh=False
        )
        self._bar.update(self._before + totals["calls"] - self._bar.n)
        if self._scalars is not None:
            self._scalars.add_scalar("run/network_calls", self._before + totals["calls"], int(seconds))
            self._scalars.add_scalar("run/images_per_second", speed, int(seconds))


def _drop_torn_line(log: Path) -> None:
    """Cut off a last line that a full disk left without its end."""
    content = log.read_bytes() if log.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(log, whole)
