"""A model of what a run costs: network calls times the time that each was measured to take on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from bench.measure.quality.committed import Unseen
from bench.measure.quality.scores import collect, neighbour_ratio, score
from bench.measure.quality.statistics import summarise
from bench.measure.quality.statistics_files import statistics_cache
from bench.suite.cells.arms import Arms
from bench.suite.cells.reference import Reference
from bench.suite.experiments.chains import Chain
from bench.suite.experiments.experiment import Extra
from bench.suite.experiments.response import Response
from bench.suite.plan import Cell, Unit
from bench.suite.run import Run
from bench.suite.settings import short_hash
from bench.suite.timing import seconds_a_step

__all__ = ["Estimate", "duration", "estimate", "padded_calls", "repays_compiling"]

# Measured on two CPU cores (torch 2.15): compiling took 43 to 86 s, and made networks of 8x8 and 32x32 pixels 1.17 to
# 1.45 times as fast. A gain g repays the compilation after g / (g - 1) times its length: 3 to 7, with a reserve 10.
_REPAID = 10.0
_COMPILING = (20.0, 0.25)  # seconds, and seconds a layer
_AROUND = (10.0, 0.1), (25.0, 0.8)  # seconds of start-up, tables and figures, and of each cell: bare, instrumented
_SCORED = 256  # images scored to learn what scoring costs
_COMPARED = 2048  # images of the reference


def repays_compiling(seconds: float, layers: Sequence[int]) -> bool:
    """Tell whether a run is long enough to repay the compilation of its networks.

    Args:
        seconds: what all network calls of the whole plan take without it, those made before included.
        layers: how many layers each architecture has.
    """
    fixed, each = _COMPILING
    return seconds > _REPAID * sum(fixed + each * count for count in layers)


def duration(seconds: float) -> str:
    """Return a time as people say it, to a few per cent: ``about 45 s``, ``about 3 h 20 min``."""
    if seconds < 9.95:
        return f"about {max(seconds, 0.1):.1f} s"
    if seconds < 99.5:
        return f"about {seconds:.0f} s"
    tens, minutes = round(seconds / 10), round(seconds / 60)
    if tens < 60:
        return f"about {tens // 6} min {10 * (tens % 6)} s"
    if minutes < 60:
        return f"about {minutes} min"
    if minutes < 48 * 60:
        return f"about {minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"about {hours // 24} d {hours % 24} h"


def _padded(images: int, batch: int) -> int:
    """Return how many images the network sees: the last batch is filled up."""
    size = min(batch, images)
    return -(-images // size) * size if size else 0


def _unit_calls(cell: Cell, unit: Unit, batch: int) -> int:
    """Return the network calls of a unit, those of padding included (a call is one image at one level)."""
    images, size = unit.stop - unit.start, min(batch, cell.samples if unit.arm == "free" else unit.stop)
    return cell.unit_cost(unit) // images * (-(-images // size) * size)


def _walked(extra: Extra) -> tuple[Cell, int] | None:
    """Return whose network a measurement asks, and its calls, padding included; None where it asks none."""
    if not isinstance(extra, Chain | Response):
        return None
    images = extra.cell.samples if isinstance(extra, Chain) else extra.part[1]
    return extra.cell, images


def _extra_calls(extra: Extra, batch: int) -> int:
    walked = _walked(extra)
    return 0 if walked is None else extra.cost() // walked[1] * _padded(walked[1], batch)


def padded_calls(run: Run) -> dict[str, int]:
    """Return the network calls of the whole plan by model, padding included, done or not."""
    batch, calls = run.request.batch, {model.name: 0 for model in run.models}
    for cell in run.cells:
        calls[cell.model.name] += sum(_unit_calls(cell, unit, batch) for unit in cell.units(batch))
    for extra in run.extras:
        walked = _walked(extra)
        if walked is not None:
            calls[walked[0].model.name] += _extra_calls(extra, batch)
    return calls


@dataclass(frozen=True)
class Estimate:
    """What is still to be done, in seconds.

    Attributes:
        cells: the walks of each cell that is not complete, by name.
        extras: other measurements, by their line of the plan.
        scoring: features and scores of all cells, and of what they are compared with.
        processes: how many share sampling and scoring.
        around: start-up, tables and figures, as measured on one machine.
    """

    cells: Mapping[str, float]
    extras: Mapping[str, float]
    scoring: float
    processes: int
    around: float = 0.0

    @property
    def sampling(self) -> float:
        """Return the seconds of all network calls, were one process to make them."""
        return sum(self.cells.values()) + sum(self.extras.values())

    @property
    def total(self) -> float:
        """Return the seconds until all is done."""
        return (self.sampling + self.scoring) / self.processes + self.around


class _Prices:
    """Measured seconds of a network call, an image, by what is called: models of one architecture cost the same."""

    def __init__(self, run: Run, reference: Reference) -> None:
        self.run, self.reference, self.batch = run, reference, run.request.batch
        self.cells = [run.store.extended(cell) for cell in run.cells]
        self._walks, self._known = self._longest(), dict[tuple[str, str], float]()

    def of(self, cell: Cell, arm: str) -> float:
        """Return the price in an arm of a cell like this one, with its instruments and remedies."""
        kind = _kind(cell)
        walks = self._walks[kind]
        # Arms of single steps differ by little more than the images shown.
        key = kind, "forced" if arm == "errors" and "forced" in walks else arm
        if key not in self._known:
            self._known[key] = self._measured(*walks[key[1]])
        return self._known[key]

    def _longest(self) -> dict[str, dict[str, tuple[Cell, Unit]]]:
        """Return the longest walk of each kind of cell in each arm."""
        longest: dict[str, dict[str, tuple[Cell, Unit]]] = {}
        for cell in sorted(self.cells, key=lambda cell: cell.steps):
            known = longest.setdefault(_kind(cell), {})
            for unit in sorted(cell.units(self.batch), key=lambda unit: unit.stop - unit.start):
                known[unit.arm] = cell, unit  # the longer, the less its beginning and end weigh
        return longest

    def _measured(self, cell: Cell, unit: Unit) -> float:
        calls = _unit_calls(cell, unit, self.batch)
        images = min(self.batch, calls // (cell.unit_cost(unit) // (unit.stop - unit.start)))
        return seconds_a_step(partial(self._arms, cell), unit) / images

    def _arms(self, cell: Cell, progress: Callable[[int], None]) -> Arms:
        return Arms(cell, self.run.workbench(self.reference, progress))


def _kind(cell: Cell) -> str:
    model = cell.model
    remedies = [remedy.kind for remedy in model.remedies]
    return short_hash([dict(model.description.network), model.description.format, remedies, model.guidance is not None])


def estimate(run: Run, reference: Reference, processes: int = 1) -> Estimate:
    """Measure what network calls cost here, a second or two a network, and return what is left of a run.

    Args:
        run: the plan; its networks are compiled already where the run will compile them.
        reference: what samples are compared with; its features are not needed.
        processes: how many of this kind work side by side, each as fast as this one.

    Raises:
        RunError: a network says what is not finite.
    """
    prices, batch = _Prices(run, reference), run.request.batch
    cells = {
        cell.name: sum(calls * prices.of(cell, arm) for arm, calls in _left(run, cell).items())
        for cell in prices.cells
        if not run.store.is_sampled(cell)
    }
    extras: dict[str, float] = {}
    for extra, cell in _missing(run, reference.features_key()):
        price = prices.of(next(own for own in prices.cells if own.model.name == cell.model.name), "free")
        extras[extra.line] = extras.get(extra.line, 0.0) + price * _extra_calls(extra, batch)
    shares = 1 if run.request.share is None else run.request.share.count
    fixed, each = _AROUND["steps" in run.request.measure]
    around = fixed + each * len(run.cells)
    return Estimate(cells, extras, _scoring(run, reference), processes * shares, around)


def _left(run: Run, cell: Cell) -> dict[str, int]:
    """Return the network calls of a cell that are still to be made, by arm."""
    calls: dict[str, int] = {}
    for unit in cell.units(run.request.batch):
        if not run.store.has_shard(cell, unit):
            calls[unit.arm] = calls.get(unit.arm, 0) + _unit_calls(cell, unit, run.request.batch)
    return calls


def _missing(run: Run, features: str) -> Iterator[tuple[Extra, Cell]]:
    for extra in run.extras:
        walked = _walked(extra)
        if walked is not None and extra.remaining(run.out, features):
            yield extra, walked[0]


def _scoring(run: Run, reference: Reference) -> float:
    """Return the seconds of all features and scores; the distances of large features (Inception's) are left out."""
    waiting = [
        cell for cell in run.cells if not (run.store.is_sampled(cell) and run.store.is_scored(cell, reference.key()))
    ]
    if not waiting:
        return 0.0
    data, extractor = reference.data, reference.extractor
    train = data.part("train")
    if isinstance(data, Unseen):  # grey images take as long as real ones
        train = torch.full((_COMPARED, *data.shape), 127, dtype=torch.uint8)
    count = min(run.request.samples, _SCORED, len(train))
    images, scale = train[:count], run.request.samples / count
    near = _seconds(lambda: neighbour_ratio(images, train, data.part("heldout")))
    if extractor is None:
        return len(waiting) * scale * near
    features = _seconds(lambda: collect(extractor, images, ""))
    each, once = near + features, 0.0 if reference.kept_statistics() else len(train) / count * features
    if extractor.embedded:
        known = summarise(extractor, train[:_COMPARED], "")
        found = collect(extractor, images, "")
        each += _seconds(lambda: list(score(found, known, extractor, "")))
    elif run.request.reference or _is_cached(reference, extractor.key):
        once = 0.0
    return len(waiting) * scale * each + once


def _is_cached(reference: Reference, key: str) -> bool:
    name = f"{key}-{reference.data.content_hash()}-{reference.data.count('train')}-*.npz"
    return any(statistics_cache().glob(name))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
