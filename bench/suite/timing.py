"""How long network calls take here: the beginning of real walks, instruments and all, under a stopwatch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from bench.suite.cells.arms import Arms
from bench.suite.plan import Unit

__all__ = ["seconds_a_call", "seconds_a_step"]

_LONGEST = 0.5  # seconds to look on for, after a first call that warms up
_MOST = 30  # calls


class _Enough(Exception):
    """The walk was watched for long enough."""


class _Stopwatch:
    """Told of network calls as they are made; ``marks`` are the times at which they were complete."""

    def __init__(self, device: torch.device, fewest: int) -> None:
        self.device, self.fewest = device, fewest
        self.marks = [time.perf_counter()]

    def __call__(self, images: int) -> None:
        """Take the time.

        Raises:
            _Enough: there is nothing more to learn.
        """
        _wait(self.device)
        self.marks.append(time.perf_counter())
        timed, seconds = len(self.marks) - 2, self.marks[-1] - self.marks[1]
        if timed >= self.fewest and (timed >= _MOST or seconds >= _LONGEST):
            raise _Enough


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_a_step(make: Callable[[Callable[[int], None]], Arms], unit: Unit) -> float:
    """Walk the beginning of a unit and return the median time of a network call with all that belongs to it.

    Args:
        make: returns a cell's walks, given what to tell of network calls.
        unit: of the cell.

    Raises:
        RunError: a walk came to its end and was not finite.
    """
    for _ in range(2):  # a walk too short to warm up in is walked again
        watch = _Stopwatch(torch.device("cpu"), 1)
        arms = make(watch)
        watch.device, watch.fewest = arms.device, arms.solver.stages
        try:
            arms.compute(unit)
        except _Enough:
            break
        if len(watch.marks) > 2 + watch.fewest:
            break
    return _median(watch.marks, watch.fewest)


def _median(marks: Sequence[float], stages: int) -> float:
    """Return the median of a call's share of the time between marks ``stages`` apart, if possible without the first."""
    known = marks[1:] if len(marks) > 1 + stages else marks
    apart = min(stages, len(known) - 1)
    return statistics.median((b - a) / apart for a, b in zip(known, known[apart:], strict=False))


def seconds_a_call(call: Callable[[], object], device: torch.device) -> float:
    """Return the median time of a call, after one that warms up."""
    times: list[float] = []
    for _ in range(4):
        started = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - started)
        if len(times) > 1 and sum(times[1:]) > _LONGEST:
            break
    return statistics.median(times[1:])
