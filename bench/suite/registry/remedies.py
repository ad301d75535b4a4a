"""The training-free remedies a run can name: a correction of the walk, its constants, the samplers it works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.diffusion.corrections import (
    DifferentialCorrection,
    EpsilonScaling,
    FinalStd,
    FirstCallScaling,
    InputPerturbation,
    PixelCorrection,
    ReverseStdCorrection,
    ShiftedTarget,
    TemporalRescaling,
    TimeShift,
    VarianceNormalisation,
    X0Scaling,
    X0StdMatching,
)
from bench.diffusion.types import Correction, Level
from bench.suite.registry.constants import Constants
from bench.suite.settings import SAMPLERS

Levels = Sequence[Level]
Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Course:
    """The walk that a correction is built for.

    Attributes:
        levels: noisiest first, ending in the clean one.
        grid: every level that the network knows, noisiest first.
        clip: whether x0_hat is clamped to [-1, 1].
    """

    levels: Levels
    grid: Levels
    clip: bool


@dataclass(frozen=True)
class Kind:
    """A correction that a run can name.

    Attributes:
        about: what it does, for the list of models.
        defaults: its constants; None marks one that must be given.
        build: makes the correction of a walk with these constants.
        samplers: those it works with.
        reason: why not with the others.
        even: whether images must be of even height and width.
    """

    about: str
    defaults: Mapping[str, Any]
    build: Callable[[Course, Numbers], Correction]
    samplers: tuple[str, ...] = SAMPLERS
    reason: str = ""
    even: bool = False


KINDS: Mapping[str, Kind] = {
    "epsilon-scaling": Kind(
        "eps divided by b + k i (Ning et al. 2024)",
        {"b": None, "k": 0.0},
        lambda walk, c: EpsilonScaling(walk.levels, c["b"], c["k"]),
    ),
    "epsilon-scaling-x0": Kind(
        "the same in x0_hat alone, as LDM-ES does",
        {"b": None, "k": 0.0},
        lambda walk, c: X0Scaling(walk.levels, c["b"], c["k"]),
        ("ddpm", "ddim"),
        "Euler and Heun steps move along eps and take no x0_hat",
    ),
    "epsilon-scaling-first": Kind(
        "the same but for Heun's correcting calls, as EDM-ES' ablation sampler does",
        {"b": None, "k": 0.0},
        lambda walk, c: FirstCallScaling(walk.levels, c["b"], c["k"]),
    ),
    "time-shift": Kind(
        "each step from the level that the state's variance fits (Li et al. 2024, algorithm 3)",
        {"window": 2.0, "cutoff": 300.0},
        lambda walk, c: TimeShift(walk.levels, walk.grid, window=c["window"], cutoff=c["cutoff"]),
    ),
    "time-shift-code": Kind(
        "each step to the level that the state's variance fits (TS-DPM's code)",
        {"window": 2.0, "cutoff": 300.0},
        lambda walk, c: ShiftedTarget(walk.levels, walk.grid, window=c["window"], cutoff=c["cutoff"]),
        ("ddpm", "ddim", "euler"),
        "a corrected step asks at the level it goes to, and the released code has no such step",
    ),
    "input-perturbation": Kind(
        "what training with input perturbation would give, emulated: a shift in time, and eps / sqrt(1 + gamma^2)",
        {"gamma": 0.1},
        lambda walk, c: InputPerturbation(walk.grid, gamma=c["gamma"]),
    ),
    "input-perturbation-y": Kind(
        "the same for DDPM-y: the shift in time alone",
        {"gamma": 0.1},
        lambda walk, c: InputPerturbation(walk.grid, gamma=c["gamma"], scale=False),
    ),
    "variance-normalisation": Kind(
        "control: each state scaled to the variance that real noised data have",
        {"data_variance": None, "cutoff": 0.0},
        lambda walk, c: VarianceNormalisation(walk.levels, data_variance=c["data_variance"], cutoff=c["cutoff"]),
    ),
    "x0-std": Kind(
        "control: each x0_hat scaled to the spread it has on real noised data (after Yao et al. 2025)",
        {"reference": None},
        lambda walk, c: X0StdMatching(c["reference"], clip=walk.clip),
    ),
    "final-std": Kind(
        "control: only the final images scaled, to the spread of real ones",
        {"std": None},
        lambda walk, c: FinalStd(c["std"]),
    ),
    "dcw": Kind(
        "each state moved away from x0_hat, by wavelet bands (Yu et al. 2026; the released code's weights)",
        {"low": 0.005, "high": 0.0},
        lambda walk, c: DifferentialCorrection(walk.levels, low=c["low"], high=c["high"]),
        even=True,
    ),
    "dcw-reverse": Kind(
        "the same with the weights of the paper's equation 20",
        {"low": 0.052, "high": 0.01},
        lambda walk, c: ReverseStdCorrection(walk.levels, low=c["low"], high=c["high"]),
        ("ddpm", "ddim"),
        "that equation is for variance-preserving levels",
        even=True,
    ),
    "dcw-pixel": Kind(
        "the same on pixels",
        {"c": 0.005},
        lambda walk, c: PixelCorrection(walk.levels, c=c["c"]),
    ),
    "tsr": Kind(
        "temporal score rescaling: eps scaled by the signal-to-noise ratio (arXiv 2510.01184)",
        {"k": 0.95, "s": 1.0},
        lambda walk, c: TemporalRescaling(k=c["k"], s=c["s"]),
    ),
}

# What follows a model's name, as in adm-ts; several may, and act in that order.
SUFFIXES: Mapping[str, str] = {
    "es": "epsilon-scaling",
    "es-linear": "epsilon-scaling",
    "es-fit": "epsilon-scaling",
    "es-x0": "epsilon-scaling-x0",
    "es-first": "epsilon-scaling-first",
    "ts": "time-shift",
    "ts-code": "time-shift-code",
    "ip-emu": "input-perturbation",
    "y-emu": "input-perturbation-y",
    "vn": "variance-normalisation",
    "x0std": "x0-std",
    "final": "final-std",
    "dcw": "dcw",
    "dcw-reverse": "dcw-reverse",
    "dcw-pixel": "dcw-pixel",
    "tsr": "tsr",
}


@dataclass(frozen=True)
class Remedy:
    """A correction and its constants by sampler; those that nothing is known of have their defaults."""

    kind: str
    constants: Mapping[str, Constants] = field(default_factory=dict)

    def at(self, sampler: str, steps: int) -> dict[str, Any]:
        """Return every constant at a step count."""
        found = self.constants.get(sampler, Constants()).at(steps)
        if "span" in found:  # the rise over all steps, which is what stays alike between step counts
            span = found.pop("span")
            found = {"k": span / (steps - 1) if steps > 1 else 0.0} | found
        return {**KINDS[self.kind].defaults, **found}

    def missing(self, sampler: str) -> str | None:
        """Return the name of a constant that must be given and is not, None where none is."""
        known = self.constants.get(sampler, Constants()).names()
        defaults = KINDS[self.kind].defaults
        return next((name for name, value in defaults.items() if value is None and name not in known), None)

    def overridden(self, values: Numbers) -> Remedy:
        """Return the remedy with some constants fixed at every step count, under every sampler."""
        old = {sampler: self.constants.get(sampler, Constants()) for sampler in SAMPLERS}
        return replace(self, constants={sampler: constants.overridden(values) for sampler, constants in old.items()})

    def correction(self, course: Course, sampler: str, steps: int) -> Correction:
        """Return the correction of a walk.

        Raises:
            ValueError: a constant that the correction cannot take.
        """
        return KINDS[self.kind].build(course, self.at(sampler, steps))

    def description(self, sampler: str, steps: int) -> dict[str, Any]:
        """Return kind and constants at a step count, JSON-like."""
        return {"kind": self.kind, **self.at(sampler, steps)}
