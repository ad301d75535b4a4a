"""The rules that a correction is checked by, and what it does against known biases."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bench.check.walks import (
    BIASES,
    FRAMES,
    MANY,
    OPPOSITES,
    SHOWN,
    SOLVERS,
    Oracle,
    biased_images,
    distance,
    exact,
    measured,
    states,
)
from bench.diffusion.corrections import Correction, InOrder
from bench.diffusion.types import Level, Prediction
from bench.runtime.errors import UserError, reason

_FEW = 5  # images that the rules are checked on
_ALIKE = 1e-9  # of an image in batches of two sizes, float64
_BETTER = 0.01  # of the error: a smaller change is none
_TRIED = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0)  # u of constants on the line from neutral (0) to typical (1)
RULES = ("neutral is plain", "inputs stay", "finite", "any batch", "works or refuses", "right direction")


class CheckError(UserError):
    """The class cannot be checked; the message says why and what to give."""


@dataclass(frozen=True)
class Subject:
    """A correction's class with its constants.

    Attributes:
        name: of the class.
        make: the class.
        typical: constants at work.
        neutral: constants that switch it off, None where none are known.
    """

    name: str
    make: Callable[..., Correction]
    typical: Mapping[str, Any]
    neutral: Mapping[str, Any] | None

    def at(self, frame: str, constants: Mapping[str, Any], clip: bool = False) -> Correction:
        """Return the correction of a frame's walk.

        Raises:
            Exception: whatever the constructor raises.
        """
        path, grid = FRAMES[frame]
        given = {"levels": path, "grid": grid, "clip": clip, **measured(frame)}
        names = inspect.signature(self.make).parameters
        made = self.make(**{name: value for name, value in given.items() if name in names} | dict(constants))
        if not isinstance(made, Correction):
            raise CheckError(f"{self.name} makes no Correction; derive it from bench.diffusion.corrections.Correction")
        return made

    def between(self, u: float) -> dict[str, Any] | None:
        """Return the constants at u on the line from neutral (0) to typical (1), None where there is none."""
        ends = self.neutral or {}
        moved = {name: value for name, value in ends.items() if name in self.typical}
        if not moved:
            return None
        line = {name: float(value + u * (self.typical[name] - value)) for name, value in moved.items()}
        return {**self.typical, **line}


class Watched(InOrder):
    """A correction whose inputs are compared with copies of them after every hook; ``touched`` names what changed."""

    def __init__(self, correction: Correction) -> None:
        super().__init__([correction])
        self.touched: set[str] = set()

    def _hook(self, name: str, inputs: Sequence[Tensor], act: Callable[[], Any]) -> Any:
        copies = [tensor.clone() for tensor in inputs]
        result = act()
        if not all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(inputs, copies, strict=True)):
            self.touched.add(name)
        return result

    def before(self, x: Tensor, call: Any) -> Any:
        """Watch ``before``."""
        return self._hook("before", [x], partial(super().before, x, call))

    def ask(self, network: Any, x: Tensor, level: Level) -> Any:
        """Watch ``ask``."""
        return self._hook("ask", [x], partial(super().ask, network, x, level))

    def prediction(self, pred: Prediction, x: Tensor, call: Any) -> Any:
        """Watch ``prediction``."""
        return self._hook("prediction", [pred.x0, pred.eps, x], partial(super().prediction, pred, x, call))

    def noise(self, z: Tensor) -> Any:
        """Watch ``noise``."""
        return self._hook("noise", [z], partial(super().noise, z))

    def after(self, x_next: Tensor, pred: Prediction, call: Any) -> Any:
        """Watch ``after``."""
        return self._hook("after", [x_next, pred.x0, pred.eps], partial(super().after, x_next, pred, call))


@dataclass(frozen=True)
class Errors:
    """The distance that a bias leaves between the laws of the samples with and without it, on the same noise.

    Attributes:
        plain: without the correction.
        treated: with it, at its typical constants.
        tried: with it, by u: constants on the line from neutral (0) to typical (1).
    """

    plain: float
    treated: float
    tried: Mapping[float, float]

    @property
    def best(self) -> tuple[float, float]:
        """Return u and the error where it is least."""
        return min(self.tried.items(), key=lambda pair: pair[1])

    @property
    def lessened(self) -> bool:
        """Tell whether some constants on the typical side of neutral lessen the error."""
        return min(error for u, error in self.tried.items() if u > 0) < (1 - _BETTER) * self.plain


@dataclass
class Findings:
    """What a check found.

    Attributes:
        broken: by rule, where it is broken.
        unknown: rules that could not be checked, with the reason.
        refusals: by (frame, solver), why the correction refuses it.
        errors: by (bias, frame, solver).
        calls: network calls a step, over those of the plain sampler.
        seconds: time of a walk of an exact denoiser, over that of the plain sampler.
    """

    broken: dict[str, list[str]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    refusals: dict[tuple[str, str], str] = field(default_factory=dict)
    errors: dict[tuple[str, str, str], Errors] = field(default_factory=dict)
    calls: float = 1.0
    seconds: float = 1.0

    def breaks(self, rule: str, where: str) -> None:
        """Note that a rule is broken somewhere."""
        self.broken.setdefault(rule, []).append(where)


def check(subject: Subject) -> Findings:
    """Check a correction in every frame with every solver, then under every bias."""
    findings = Findings()
    if subject.neutral is None:
        subject = replace(subject, neutral=_neutral(subject))
    if subject.neutral is None:
        findings.unknown["neutral is plain"] = "no constants of 0 or 1 switch it off; give --neutral NAME=VALUE"
    for place in SOLVERS:
        _check_place(subject, place, findings)
    for bias, place in product((*BIASES, *OPPOSITES), SHOWN):
        if place not in findings.refusals:
            findings.errors[bias, *place] = _errors(subject, bias, place)
    _check_direction(subject, findings)
    _account(subject, findings)
    return findings


@cache
def _plain(place: tuple[str, str]) -> list[Tensor]:
    """Return the states of the plain sampler, which every correction is compared with."""
    return states(place, None, exact(), range(_FEW))


def _neutral(subject: Subject) -> Mapping[str, Any] | None:
    """Return constants of 0 or 1 that make the plain sampler, None where none do."""
    place = ("vp", "ddim")
    for values in product((0.0, 1.0), repeat=len(subject.typical)):
        constants = dict(zip(subject.typical, values, strict=True))
        try:
            off = states(place, subject.at(place[0], constants), exact(), range(_FEW))
        except Exception:  # a user's class may raise anything; the rules run it again and show what
            continue
        if constants and all(map(torch.equal, off, _plain(place))):
            return constants
    return None


def _check_place(subject: Subject, place: tuple[str, str], findings: Findings) -> None:
    """Check the rules of one solver in one frame; a correction that refuses it owes nothing more there."""
    name, oracle = f"{place[1]} ({place[0]})", exact()
    try:
        watched = Watched(subject.at(place[0], subject.typical))
        made = states(place, watched, oracle, range(_FEW))
        clipped = states(place, subject.at(place[0], subject.typical, clip=True), oracle, range(_FEW), clip=True)
        alone = states(place, subject.at(place[0], subject.typical), oracle, range(1, 2))
        off = plain = _plain(place)
        if subject.neutral is not None:
            off = states(place, subject.at(place[0], {**subject.typical, **subject.neutral}), oracle, range(_FEW))
    except CheckError:
        raise
    except Exception as error:  # a user's code may raise anything
        if not isinstance(error, ValueError | UserError):
            findings.breaks("works or refuses", f"{name}: {type(error).__name__}: {reason(error)}")
        elif "\n" in str(error) or not str(error):
            findings.breaks("works or refuses", f"{name}: its reason is not one line")
        findings.refusals[place] = reason(error)
        return
    if watched.touched:
        findings.breaks("inputs stay", f"{name}: {', '.join(sorted(watched.touched))}")
    if not all(state.isfinite().all() for state in (*made, *clipped)):
        findings.breaks("finite", name)
    apart = [
        (one - many[1:2]).abs().max() / many.abs().max().clamp(min=1) for one, many in zip(alone, made, strict=True)
    ]
    if max(apart) > _ALIKE:
        findings.breaks("any batch", name)
    if not all(map(torch.equal, off, plain)):
        findings.breaks("neutral is plain", name)


def _errors(subject: Subject, bias: str, place: tuple[str, str]) -> Errors:
    """Measure the error of a biased walk against the unbiased one on the same noise: with and without correction."""
    unbiased, oracle = biased_images(place, None), {**BIASES, **OPPOSITES}[bias]()

    def error(constants: Mapping[str, Any]) -> float:
        return distance(states(place, subject.at(place[0], constants), oracle, range(MANY))[-1], unbiased)

    treated = error(subject.typical)
    tried = {1.0: treated}
    for u in _TRIED:
        constants = subject.between(u)
        if u != 1 and constants is not None:
            try:
                tried[u] = error(constants)
            except (ValueError, UserError):  # no constants of this correction
                continue
    return Errors(distance(biased_images(place, bias), unbiased), treated, tried)


def _check_direction(subject: Subject, findings: Findings) -> None:
    """Find a correction of the wrong sign: on its typical side of neutral it lessens no error of too little spread.

    The size of its typical constants does not matter, nor errors that grow beside one that it lessens: a correction is
    too strong for the one bias at constants that are right for the other.
    """
    if set(measured("vp")) & set(inspect.signature(subject.make).parameters):
        findings.unknown["right direction"] = "it sets what is measured on the data, and has no sign"
        return
    errors = [error for (bias, *_), error in findings.errors.items() if bias in BIASES]
    opposite = [error for (bias, *_), error in findings.errors.items() if bias in OPPOSITES]
    grows = any(error.treated > (1 + _BETTER) * error.plain for error in errors)
    if any(error.lessened for error in errors) or not grows:
        return
    more = f", and lessens {sum(error.lessened for error in opposite)} of {len(opposite)} of the opposite ones"
    findings.breaks("right direction", f"it lessens no error of too little spread{more}")


class Counted(Oracle):
    """The exact denoiser, which counts its calls."""

    calls = 0

    def __call__(self, x: Tensor, level: Level, cond: Tensor | None = None) -> Prediction:
        """Count a call, and answer it."""
        self.calls += 1
        return super().__call__(x, level)


def _account(subject: Subject, findings: Findings) -> None:
    """Count the network calls and take the time of walks with and without the correction."""
    place = next((place for place in SOLVERS if place not in findings.refusals), None)
    if place is None:
        return
    counts, times = [], []
    for correction in (None, subject.at(place[0], subject.typical)):
        oracle = Counted()
        started = time.perf_counter()
        states(place, correction, oracle, range(MANY))
        times.append(time.perf_counter() - started)
        counts.append(oracle.calls)
    findings.calls, findings.seconds = counts[1] / counts[0], times[1] / times[0]
