"""The cost of a run: its network calls, counted, and what one of them takes here, measured in a moment."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.measure.features.extractors import Extractor
from bench.models.acceleration import CompileError
from bench.runtime.distributed import AgreedError
from bench.runtime.errors import FeatureError
from bench.suite.cells.reference import Reference
from bench.suite.cells.walks import CellWalks
from bench.suite.experiments.chains import Chain
from bench.suite.experiments.exact import ExactSamplers
from bench.suite.experiments.response import Response
from bench.suite.plan import Cell
from bench.suite.processes.ranks import Team
from bench.suite.registry.model import Model
from bench.suite.run import Run, notes
from bench.suite.run_record import RunRecord
from bench.suite.settings import short_hash
from bench.suite.store.resume import extended, is_sampled, is_scored

_COMPILE_FROM = 600.0  # seconds of uncompiled network calls an architecture: see settle_compiling
_GAIN = 1.3  # an uncompiled call takes so many times as long as a compiled one; 1.17 to 1.45 on two CPU cores
_COMPILATION = 60.0  # seconds; 43 to 86 there
_WORTH_TIMING = 100  # batches: the time of fewer decides nothing
_TIMED_SECONDS, _TIMED_CALLS = 0.2, 30  # of a measurement, at most
_TIMED_IMAGES = 64  # of the features' measurement
# Start-up, tables and figures take so many times as long as the imports before a forecast, each cell so many more.
_START_UP, _CELL_FIGURES = 1.7, 0.04


class _Enough(Exception):
    """The stopwatch has timed enough calls."""


class _Stopwatch:
    """Takes the time of each prediction, as the progress of a walk.

    ``marks`` has the times when predictions were done, ``calls`` the network calls of the last one, an image each.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.marks, self.calls = device, list[float](), 1

    def __call__(self, calls: int) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        self.marks.append(time.perf_counter())
        self.calls = calls
        # The first call warms up. Three more are enough where calls are slow, and hold both of Heun's.
        if len(self.marks) >= 4 and (
            len(self.marks) > _TIMED_CALLS or self.marks[-1] - self.marks[0] >= _TIMED_SECONDS
        ):
            raise _Enough

    def seconds(self) -> float:
        """Return the median time of a call, an image; a pair of predictions is taken together, since Heun's differ."""
        return statistics.median((b - a) / 2 for a, b in zip(self.marks, self.marks[2:], strict=False)) / self.calls


def seconds_a_call(run: Run, cell: Cell, reference: Reference) -> float:
    """Walk the beginning of a cell; return the seconds of a network call, an image, with all that belongs to it.

    Raises:
        RunError: the network predicts what is not finite.
    """
    batch, watch = run.config.request.batch, _Stopwatch(run.config.device)
    arms = CellWalks(cell, run.context(reference, watch))
    unit = next(iter(cell.units(batch)))
    try:
        while len(watch.marks) < 4:  # a walk of one step is walked again
            arms.compute(unit)
    except _Enough:
        pass
    return watch.seconds()


def duration(seconds: float) -> str:
    """Return a rounded time: ``about 45 s``, ``about 3 h 20 min``."""
    if seconds < 9.95:
        return f"about {max(seconds, 1):.0f} s"
    if seconds < 99.5:
        return f"about {5 * round(seconds / 5)} s"
    minutes = seconds / 60
    if minutes < 10:
        return f"about {int(minutes)} min {10 * int(seconds % 60 / 10)} s"
    if minutes < 59.5:
        return f"about {minutes:.0f} min"
    minutes = 10 * round(minutes / 10)
    if minutes < 48 * 60:
        return f"about {minutes // 60} h {minutes % 60} min"
    return f"about {minutes // 1440} d {minutes % 1440 // 60} h"


def _padded(calls: int, images: int, size: int) -> int:
    """Return network calls with those of padding: the last batch of ``size`` images is filled up."""
    return calls // images * (-(-images // size) * size) if images else 0


def network_calls(run: Run, only_left: bool) -> Counter[str]:
    """Return the network calls by model (a call is one image at one level), padding included.

    Args:
        run: the plan.
        only_left: leave out what was done before.
    """
    batch, calls = run.config.request.batch, Counter[str]()
    for cell in (extended(run.store, cell) for cell in run.cells):
        if only_left and is_sampled(run.store, cell):
            continue
        for unit in cell.units(batch):
            if not (only_left and run.store.has_shard(cell, unit)):
                size = min(batch, cell.samples if unit.arm == "free" else unit.stop)
                calls[cell.model.name] += _padded(cell.unit_cost(unit), unit.stop - unit.start, size)
    for extra in run.extras:
        if isinstance(extra, Chain | Response) and (not only_left or extra.remaining(run.out)):
            images = extra.cell.samples if isinstance(extra, Chain) else extra.part[1]
            calls[extra.cell.model.name] += _padded(extra.cost(), images, min(batch, images))
    return calls


class Timing:
    """Seconds of uncompiled network calls by architecture: one measurement for each."""

    def __init__(self, run: Run, reference: Reference) -> None:
        self.run, self.reference, self._prices = run, reference, dict[str, float]()

    def seconds(self, calls: Counter[str]) -> float:
        """Return the seconds of network calls, by model, in one process."""
        return sum(count * self._price(name) for name, count in calls.items())

    def _price(self, name: str) -> float:
        longest = max((cell for cell in self.run.cells if cell.model.name == name), key=lambda cell: cell.steps)
        key = architecture(longest.model)
        if key not in self._prices:
            self._prices[key] = seconds_a_call(self.run, extended(self.run.store, longest), self.reference)
        return self._prices[key]


def architecture(model: Model) -> str:
    """Return what models of one architecture share."""
    return short_hash([dict(model.description.network), model.description.format, model.guidance is not None])


def settle_compiling(run: Run, reference: Reference, team: Team) -> bool:
    """Compile a run's networks if asked to; return whether they are compiled.

    ``--compile auto`` compiles where the network calls of the whole plan would take ten minutes for each architecture
    and process. An earlier decision in the run's account stands, so that an interruption changes nothing. Every process
    of a team must call this, and gets the same answer.

    Raises:
        AgreedError: ``--compile on``, and the networks cannot be compiled.
    """
    asked = run.config.request.compile
    earlier = RunRecord(run).compiled if asked == "auto" else None
    if not run.config.fits and not network_calls(run, only_left=True):
        return bool(earlier)
    wanted = team.leads and (asked == "on" or earlier or (asked == "auto" and _repays(run, reference, team, earlier)))
    if not team.gather(["compile"] if wanted else []):
        return False
    problems = team.gather(_compile(run))
    if not problems:
        return True
    for network in run.networks.values():
        network.stop_compiled()
    if asked == "on":
        raise AgreedError(f"--compile on: {problems[0]}; use --compile off")
    if team.leads:
        print(f"note: networks are not compiled ({problems[0]})", file=sys.stderr)
    return False


def _repays(run: Run, reference: Reference, team: Team, earlier: bool | None) -> bool:
    """Tell whether ``auto`` compiles."""
    calls, batch = network_calls(run, only_left=False), run.config.request.batch
    if run.config.fits or earlier is False or calls.total() < _WORTH_TIMING * batch:
        return False
    processes = team.size * run.config.request.shares
    return Timing(run, reference).seconds(calls) / processes >= _COMPILE_FROM * _architectures(run)


def _architectures(run: Run) -> int:
    return len({architecture(model) for model in run.config.models})


def _compile(run: Run) -> list[str]:
    """Compile every network; return what went wrong."""
    distinct = {id(run.networks[model.name]): model for model in run.config.models}
    for model in distinct.values():
        try:
            run.networks[model.name].to(run.config.device).compile(*_example(run, model))
        except CompileError as error:
            return [str(error)]
    return []


def _example(run: Run, model: Model) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what a network is called with, in batches of the size that nearly all samples are drawn in."""
    request, device = run.config.request, run.config.device
    count = request.batch if run.config.fits else min(request.batch, request.samples)
    t = torch.full((count,), 1 if model.description.frame == "vp" else 1.0, device=device)
    labels = torch.zeros(count, dtype=torch.long, device=device) if model.description.classes else None
    return torch.zeros(count, *run.config.data.shape, device=device), t, labels


def forecast(run: Run, reference: Reference, processes: int) -> float:
    """Return the seconds that are left of a run; nothing is compiled to learn it.

    Raises:
        RunError: a network predicts what is not finite.
    """
    processes *= run.config.request.shares
    fixed = time.process_time() * (_START_UP + _CELL_FIGURES * len(run.cells))  # before anything is measured
    shared = _feature_seconds(run, reference) + _exact_seconds(run, reference)
    return _sampling_seconds(run, reference, processes) + shared / processes + fixed


def _sampling_seconds(run: Run, reference: Reference, processes: int) -> float:
    left, timing, asked = network_calls(run, only_left=True), Timing(run, reference), run.config.request.compile
    seconds = timing.seconds(left) / processes
    if not left or asked == "off":
        return seconds
    whole = timing.seconds(network_calls(run, only_left=False)) / processes
    if asked == "auto" and whole < _COMPILE_FROM * _architectures(run):
        return seconds
    return seconds / _GAIN + _COMPILATION * _architectures(run)


def _feature_seconds(run: Run, reference: Reference) -> float:
    """Return the seconds of the features of all samples that are not scored."""
    unscored = sum(not is_scored(run.store, cell, reference.key()) for cell in run.cells)
    extractor: Extractor | None = reference.extractor
    if extractor is None or not unscored:
        return 0.0
    images = torch.full((_TIMED_IMAGES, *run.config.data.shape), 127, dtype=torch.uint8)
    started = time.perf_counter()
    extractor.extract(images, _TIMED_IMAGES)
    each = (time.perf_counter() - started) / _TIMED_IMAGES
    return each * unscored * run.config.request.samples


def _exact_seconds(run: Run, reference: Reference) -> float:
    """Return the seconds of the exact samplers that are not complete; a run has one sampler, so that one is timed."""
    left = [extra for extra in run.extras if isinstance(extra, ExactSamplers) and not extra.is_complete(run.out)]
    if not left:
        return 0.0
    closed, image = left[0].seconds_a_step(run.context(reference, lambda calls: None))
    return sum(extra.steps() * (closed + image * extra.images(run.config.data)) for extra in left)


def cost_line(run: Run) -> str:
    """Return the network calls of the cells and of each measurement that has its own, done ones included."""
    calls = Counter({"cells": sum(sum(cell.cost()) for cell in run.cells)})
    for extra in run.extras:
        if extra.cost():  # exact samplers ask no network
            calls[extra.measure] += extra.cost()
    return "network calls: " + ", ".join(f"{count:,} for {name}" for name, count in calls.items())


def dry_run(run: Run, team: Team) -> Iterator[str]:
    """Yield the resolved plan and what it will cost here, line by line.

    Raises:
        RunError: a network predicts what is not finite.
    """
    configuration = run.config
    request, data = configuration.request, configuration.data
    images = f"{len(data.images)} images, {len(data.part('heldout'))} held out"
    images = "images not at hand" if configuration.left_out else images
    yield f"dataset   {data.name} ({images}, preprocessing {data.preprocessing})"
    yield from (f"left out  {name}, for want of images (--data-dir)" for name in configuration.left_out)
    settings = ", ".join(f"{name} {value}" for name, value in configuration.sampler.description().items())
    yield f"sampling  {settings}"
    yield f"samples   {request.samples} a cell, internal batch {request.batch}, on {configuration.device}"
    yield f"out       {run.out}"
    if request.tune is not None and configuration.fits:
        for cell in run.cells:
            yield f"  {request.tune.text} for {cell.model.name} at {cell.steps} steps"
        return
    yield from _plan(run)
    unscored = ""
    try:
        reference = run.reference()
    except FeatureError as error:  # of the whole plan, only this cannot be done here
        reference, unscored = Reference(data, None), f"; a run would refuse: {error}"
    yield from (f"note      {line}" for line in notes(run, reference))
    yield f"time      {duration(forecast(run, reference, team.size))} here{unscored}"


def _plan(run: Run) -> Iterator[str]:
    """Yield a line for each cell and measurement, and the total."""
    total = instruments = 0
    for cell in run.cells:
        costs = cell.cost()
        total, instruments = total + sum(costs), instruments + costs[1]
        state = "done" if is_sampled(run.store, extended(run.store, cell)) else "to do"
        yield f"  {cell.name:<32} {sum(costs):>12,} network calls  {state}{_treatment(cell)}"
    for line in dict.fromkeys(extra.line for extra in run.extras):
        extras = [extra for extra in run.extras if extra.line == line]
        done, calls = sum(extra.is_complete(run.out) for extra in extras), sum(extra.cost() for extra in extras)
        total, instruments = total + calls, instruments + calls
        state = {0: "to do", len(extras): "done"}.get(done, f"{done} of {len(extras)} done")
        yield f"  {line:<32} {calls:>12,} network calls  {state}"
    yield f"total     {total:,} network calls, {100 * instruments / total:.1f} % of them for the instruments"


def _treatment(cell: Cell) -> str:
    """Return the remedies of a cell's walks with their constants."""
    treatments = []
    for remedy in cell.model.remedies:
        constants = remedy.at(cell.config.sampler, cell.steps)
        if remedy.kind == "epsilon-scaling":
            treatments.append(f"eps / ({constants['b']:.5g} + {constants['k']:.3g} i)")
        else:
            numbers = [f"{name} {value:.5g}" for name, value in constants.items() if not isinstance(value, list)]
            treatments.append(" ".join([remedy.kind, *numbers]))
    return "  " + ", ".join(treatments) if treatments else ""
