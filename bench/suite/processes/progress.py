"""The progress of a run: a line for people, JSON lines for machines."""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.runtime.progress import progress_bar
from bench.suite.processes.ranks import Team

_EXCHANGE_EVERY = 1.0  # seconds between two exchanges with the other ranks


def log_path(root: Path, team: Team) -> Path:
    """Return where a process logs; each has its own file, since not every file system can share one."""
    share = "" if team.share is None else f"-shard-{team.share.index}-of-{team.share.count}"
    return root / f"log{share}{'' if team.leads else f'-rank-{team.rank}'}.jsonl"


class Progress:
    """Counts network calls, images and cells over all ranks.

    Args:
        team: the processes at work.
        calls: network calls that this team has to make in all, and how many of them were made before.
        cells: how many cells the run has, and how many of them were complete before.
        log: where events go, one JSON object a line: ``time`` (UTC), ``event``, ``rank`` and the event's facts.
        shown: show the progress, on the rank that leads.
    """

    def __init__(self, team: Team, calls: tuple[int, int], cells: tuple[int, int], log: Path, shown: bool) -> None:
        self.team, self.cells, self.total, self._log = team, cells, calls[0], log
        self._bar = progress_bar(
            shown=shown and team.leads, total=calls[0], initial=calls[1], unit="call", unit_scale=True
        )
        self._began = self._exchanged = time.monotonic()
        self._pending, self._before = {"calls": 0, "images": 0, "cells": 0}, calls[1]
        self._lock = threading.Lock()  # work may be finished beside the next walk
        self._log.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self._log)

    def begin(self, work: str) -> None:
        """Show what this process works on."""
        self._bar.set_description(work, refresh=False)

    def calls(self, count: int) -> None:
        """Count network calls just made; now and then the ranks exchange their counts."""
        with self._lock:
            self._pending["calls"] += count
        if time.monotonic() - self._exchanged >= _EXCHANGE_EVERY:
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

    def close(self) -> None:
        """Show the last count."""
        self.exchange()
        self._bar.close()

    def exchange(self) -> None:
        """Add the counts of this rank to those of the others, and show the sums."""
        with self._lock:
            self._exchanged = time.monotonic()
            totals = {name: self.team.add(name, count) for name, count in self._pending.items()}
            self._pending = dict.fromkeys(self._pending, 0)
            if self.team.leads:
                cells = f"cells {self.cells[1] + totals['cells']}/{self.cells[0]}"
                speed = totals["images"] / max(self._exchanged - self._began, 1e-9)
                self._bar.set_postfix_str(f"{cells}, {speed:.3g} images/s", refresh=False)
                self._bar.update(self._before + totals["calls"] - self._bar.n)


def _drop_torn_line(log: Path) -> None:
    """Cut off a last line that a full disk left without its end."""
    content = log.read_bytes() if log.exists() else b""
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(log, end)
