"""Ratios measured in one run: interleaved pairs, their median and range, as table lines and as a CSV file."""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binom

from bench.files.writing import write_atomic


@dataclass(frozen=True)
class Setting:
    """What is measured, and how often.

    Attributes:
        device: where networks run; statistics are measured on the CPU.
        pairs: interleaved pairs of a comparison that takes long; quick ones take three times as many.
        batch: images a network call, for networks at ``size``.
        steps: solver steps of a walk.
        size: of the images, pixels a side.
        widths: model channels of the networks.
        features: length of the feature vectors.
        counts: images that give features and walk for the memory, few (below ``features``) and many.
        tested: images of the pixel tests.
        levels: noise levels of the stored states.
        isolated: give each sampler a process of its own.
    """

    device: torch.device
    pairs: int = 3
    batch: int = 32
    steps: int = 4
    size: int = 32
    widths: tuple[int, ...] = (32, 64)
    features: int = 2048
    counts: tuple[int, int] = (500, 5000)
    tested: int = 100
    levels: int = 5
    isolated: bool = True

    @property
    def many(self) -> int:
        """Return the pairs of a quick comparison, or of one whose ratio must be known to a percent."""
        return 3 * self.pairs


@dataclass(frozen=True)
class Comparison:
    """One row: a quantity of ours and of what it is compared with, lower is better, and theirs / ours.

    ``ours`` and ``theirs`` are medians; ``ratio``, ``low`` and ``high`` are the median and range of the pairs' own
    ratios, of CPU time the 95 % interval of that median. ``goal`` is the least ratio that was aimed at, if any.
    """

    part: str
    name: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    low: float
    high: float
    goal: float | None
    pairs: int
    threads: int
    device: str
    torch: str


HEADER = (
    "| part | what | compared with | ours | theirs | unit | theirs / ours | lowest to highest | goal |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def line(row: Comparison) -> str:
    """Return a row of the Markdown table under :data:`HEADER`."""
    goal = "" if row.goal is None else f"{row.goal:.3g}"
    entries = (
        row.part, row.name, row.peer, f"{row.ours:.4g}", f"{row.theirs:.4g}", row.unit, f"{row.ratio:.4g}",
        f"{row.low:.4g} to {row.high:.4g}", goal,
    )  # fmt: skip
    return f"| {' | '.join(entries)} |"


def seconds(call: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long a call takes by a clock, the device's work included."""
    wait(device)
    start = clock()
    call()
    wait(device)
    return clock() - start


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratios(
    part: str,
    name: str,
    peer: str,
    measured: Sequence[tuple[float, float]],
    setting: Setting,
    *,
    unit: str = "s",
    goal: float | None = None,
) -> Comparison:
    """Return the row of (ours, theirs) pairs, at least one."""
    each = [theirs / ours for ours, theirs in measured]
    ours, theirs = (statistics.median(side) for side in zip(*measured, strict=True))
    device = setting.device.type
    device = torch.cuda.get_device_name(setting.device) if device == "cuda" else device
    about = (len(measured), torch.get_num_threads(), device, torch.__version__)
    return Comparison(part, name, peer, ours, theirs, unit, statistics.median(each), min(each), max(each), goal, *about)


def compare(
    part: str,
    name: str,
    peer: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    setting: Setting,
    *,
    pairs: int | None = None,
    warm: bool = True,
    images: int | None = None,
    goal: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time two calls in interleaved pairs, the order of each pair the other way round.

    Args:
        part: part of the suite.
        name: what is done.
        peer: what it is compared with.
        ours: one call.
        theirs: the other, of the same work.
        setting: device, and pairs unless given.
        pairs: how many.
        warm: make both calls once before.
        images: how many a call makes; the unit then is milliseconds an image.
        goal: least ratio aimed at.
        clock: of seconds; ``time.process_time`` counts what this process computes, whatever else the machine does.
    """
    if warm:
        ours()
        theirs()
    measured = []
    for pair in range(setting.pairs if pairs is None else pairs):
        first, second = (ours, theirs) if pair % 2 == 0 else (theirs, ours)
        taken = seconds(first, setting.device, clock), seconds(second, setting.device, clock)
        measured.append(taken if pair % 2 == 0 else taken[::-1])
    if images is None:
        return ratios(part, name, peer, measured, setting, goal=goal)
    each = [(1000 * mine / images, 1000 * other / images) for mine, other in measured]
    row = ratios(part, name, peer, each, setting, unit="ms/image", goal=goal)
    return row if clock is time.perf_counter else _with_interval(row, each)


def _with_interval(row: Comparison, measured: Sequence[tuple[float, float]]) -> Comparison:
    """Return a row whose low and high are the 95 % interval of the median, by order statistics (exact at any law)."""
    each, n = sorted(theirs / ours for ours, theirs in measured), len(measured)
    rank = max(int(binom.ppf(0.025, n, 0.5)), 1)  # the pairs below the median are binomial
    return replace(row, low=each[rank - 1], high=each[-rank])


def write_csv(path: Path, rows: Iterable[Comparison]) -> None:
    """Write rows; they replace what the file has of the same part and device, and its other rows stay."""
    new = list(rows)
    replaced = {(row.part, row.device) for row in new}
    old = [row for row in read_csv(path) if (row.part, row.device) not in replaced]

    def write(partial: Path) -> None:
        with partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([field.name for field in fields(Comparison)])
            writer.writerows([_text(value) for value in astuple(row)] for row in (*old, *new))

    write_atomic(path, write)


def _text(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def read_csv(path: Path) -> list[Comparison]:
    """Return the rows of a file that :func:`write_csv` wrote, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [_row(entries) for entries in csv.DictReader(file)]


def _row(entries: Mapping[str, Any]) -> Comparison:
    numbers = {name: float(entries[name]) for name in ("ours", "theirs", "ratio", "low", "high")}
    counts = {name: int(entries[name]) for name in ("pairs", "threads")}
    goal = float(entries["goal"]) if entries["goal"] else None
    return Comparison(**{**entries, **numbers, **counts, "goal": goal})
