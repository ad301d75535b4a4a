"""The remedies without training: corrections of a walk, their constants, and the samplers they work with.

A remedy has one kind, and some kinds have variants, which a config file names. A record calls a variant
``<kind>-<variant>``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from bench.suite.registry.constants import Constants
from bench.suite.settings import SAMPLERS

if TYPE_CHECKING:
    from bench.diffusion.corrections import Correction
    from bench.diffusion.types import Level

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Walk:
    """The walk that a correction is built for.

    Attributes:
        levels: noisiest first, ending in the clean one.
        grid: every level the network was trained at, noisiest first.
        clip: whether x0_hat is clamped to [-1, 1].
    """

    levels: Sequence[Level]
    grid: Sequence[Level]
    clip: bool


@dataclass(frozen=True)
class Kind:
    """A correction that a run can name.

    Attributes:
        about: one line for the list of models.
        defaults: its constants; None marks one that must be given.
        build: makes the correction of a walk with these constants, whose names are those of its arguments. Its first
            argument is the module of corrections, which is imported late because it imports torch.
        samplers: those it works with; multistep ones refuse whatever moves states by themselves.
        frames: of the levels that it works on.
        reason: why it does not work with the others.
        even: whether images must have even height and width.
        null_time: whether the network is asked without a time too, which only some can be.
        calls: the network's calls of one prediction, by the constants.
    """

    about: str
    defaults: Numbers
    build: Callable[[Any, Walk, Numbers], Correction]
    samplers: tuple[str, ...] = SAMPLERS
    reason: str = ""
    frames: tuple[str, ...] = ("vp", "edm", "flow")
    even: bool = False
    null_time: bool = False
    calls: Callable[[Numbers], int] = lambda c: 1


KINDS: Mapping[str, Kind] = {
    "epsilon-scaling": Kind(
        "eps divided by b + k i (Ning et al. 2024)",
        {"b": None, "k": 0.0},
        lambda make, walk, c: make.EpsilonScaling(walk.levels, **c),
    ),
    "epsilon-scaling-x0": Kind(
        "in x0_hat alone, as LDM-ES does",
        {"b": None, "k": 0.0},
        lambda make, walk, c: make.X0Scaling(walk.levels, **c),
        ("ddpm", "ddim", "dpmpp-2m", "unipc"),
        "Euler and Heun steps move along one derivative, and take no x0_hat apart from eps",
    ),
    "epsilon-scaling-velocity": Kind(
        "x - x0_hat divided, in a flow the velocity (ComfyUI)",
        {"b": None, "k": 0.0},
        lambda make, walk, c: make.VelocityScaling(walk.levels, **c),
        reason="x - x0_hat is neither the noise nor the velocity there",
        frames=("edm", "flow"),
    ),
    "epsilon-scaling-first": Kind(
        "not in Heun's correcting calls, as EDM-ES' ablation sampler does",
        {"b": None, "k": 0.0},
        lambda make, walk, c: make.FirstCallScaling(walk.levels, **c),
    ),
    "time-shift": Kind(
        "each step from the level that the state's variance fits (Li et al. 2024, algorithm 3)",
        {"window": 2.0, "cutoff": 300.0},
        lambda make, walk, c: make.TimeShift(walk.levels, walk.grid, **c),
    ),
    "time-shift-code": Kind(
        "each step to the level that the state's variance fits, as TS-DPM's code does",
        {"window": 2.0, "cutoff": 300.0},
        lambda make, walk, c: make.ShiftedTarget(walk.levels, walk.grid, **c),
        tuple(name for name in SAMPLERS if name != "heun"),
        "a corrected step asks at the level it goes to, and the released code has no such step",
    ),
    "input-perturbation": Kind(
        "training with input perturbation, emulated: a shift in time, and eps / sqrt(1 + gamma^2)",
        {"gamma": 0.1},
        lambda make, walk, c: make.InputPerturbation(walk.grid, **c),
    ),
    "input-perturbation-y": Kind(
        "for DDPM-y: the shift in time alone",
        {"gamma": 0.1},
        lambda make, walk, c: make.InputPerturbation(walk.grid, scale=False, **c),
    ),
    "variance-normalisation": Kind(
        "control: each state scaled to the variance of real noised data",
        {"data_variance": None, "cutoff": 0.0},
        lambda make, walk, c: make.VarianceNormalisation(walk.levels, **c),
    ),
    "variance-normalisation-x0": Kind(
        "each x0_hat scaled to its spread on real noised data (after Yao et al. 2025)",
        {"reference": None},
        lambda make, walk, c: make.X0StdMatching(clip=walk.clip, **c),
    ),
    "variance-normalisation-final": Kind(
        "only the final images scaled, to the spread of real ones",
        {"std": None},
        lambda make, walk, c: make.FinalStd(**c),
    ),
    "dcw": Kind(
        "each state moved away from x0_hat, by wavelet bands (Yu et al. 2026, the code's weights)",
        {"low": 0.005, "high": 0.0},
        lambda make, walk, c: make.DifferentialCorrection(walk.levels, **c),
        even=True,
    ),
    "dcw-reverse": Kind(
        "with the weights of the paper's equation 20",
        {"low": 0.052, "high": 0.01},
        lambda make, walk, c: make.ReverseStdCorrection(walk.levels, **c),
        reason="that equation is for variance-preserving levels",
        frames=("vp",),
        even=True,
    ),
    "dcw-piecewise": Kind(
        "low bands above a t, the others below it (the paper's equations 42 and 43)",
        {"low": 0.052, "high": 0.01, "threshold": 100.0},
        lambda make, walk, c: make.PiecewiseCorrection(walk.levels, **c),
        even=True,
    ),
    "dcw-pixel": Kind("on pixels", {"c": 0.005}, lambda make, walk, c: make.PixelCorrection(walk.levels, **c)),
    "nag": Kind(
        "noise awareness guidance: away from the network without a time (Zhong et al. 2026)",
        {"w": 1.0},
        lambda make, walk, c: make.NoiseAwareness(**c),
        reason="networks that can be asked without a time are trained on indices",
        frames=("vp",),
        null_time=True,
        calls=lambda c: 2 if c["w"] else 1,
    ),
    "noise-scaling": Kind(
        "the noise of random steps and of churn, a little stronger (EDM's S_noise)",
        {"s": 1.003},
        lambda make, walk, c: make.NoiseScaling(**c),
        ("ddpm", "ddim", "euler", "heun", "sde"),
        "its steps draw no noise",
    ),
    "sigma-lying": Kind(
        "the network told sigma (1 - d) (ComfyUI)",
        {"d": 0.05},
        lambda make, walk, c: make.SigmaLying(walk.grid, **c),
    ),
    "tsr": Kind(
        "temporal score rescaling: eps scaled by the signal-to-noise ratio (arXiv 2510.01184)",
        {"k": 0.95, "s": 1.0},
        lambda make, walk, c: make.TemporalRescaling(**c),
    ),
}


def split_kind(name: str) -> tuple[str, str]:
    """Return the (kind, variant) of a remedy's name in a record; the variant is empty where it has none."""
    for kind in KINDS:
        if name.startswith(f"{kind}-"):
            return kind, name.removeprefix(f"{kind}-")
    return name, ""


# The variants of each kind, which stand behind it in KINDS.
VARIANTS: Mapping[str, tuple[str, ...]] = {
    kind: tuple(variant for _, variant in group if variant)
    for kind, group in groupby(map(split_kind, KINDS), key=itemgetter(0))
}

# What follows a model's name, as in adm-ts; several may, and act in that order.
SUFFIXES: Mapping[str, str] = {
    "es": "epsilon-scaling",
    "es-linear": "epsilon-scaling",
    "es-fit": "epsilon-scaling",
    "ts": "time-shift",
    "ip-emu": "input-perturbation",
    "dcw": "dcw",
    "nag": "nag",
    "noise": "noise-scaling",
    "lie": "sigma-lying",
    "tsr": "tsr",
}


def describe_remedies() -> list[str]:
    """Return the lines of a list: the suffixes, and the kinds with variants, which a config file names."""
    suffixes: dict[str, list[str]] = {kind: [] for kind in VARIANTS}
    for suffix, kind in SUFFIXES.items():
        suffixes[kind].append(f"-{suffix}")
    lines = [f"{', '.join(names):<24} {KINDS[kind].about}" for kind, names in suffixes.items() if names]
    variants = [f"{kind:<24} {', '.join(names)}" for kind, names in VARIANTS.items() if names]
    return [*lines, "", "variants of corrections, for a --config file:", *variants]


@dataclass(frozen=True)
class Remedy:
    """A correction and its constants by sampler; a constant without a value has the default of its kind."""

    kind: str
    constants: Mapping[str, Constants] = field(default_factory=dict)

    @property
    def defaults(self) -> Numbers:
        """Return the constants of its kind; None marks one that must be given."""
        return KINDS[self.kind].defaults

    @property
    def has_span(self) -> bool:
        """Tell whether it is an epsilon scaling, whose slope k may be given by its rise over all steps."""
        return {"b", "k"} <= set(self.defaults)

    def at(self, sampler: str, steps: int) -> dict[str, Any]:
        """Return every constant at a step count."""
        constants = self.constants.get(sampler, Constants()).at(steps)
        if "span" in constants:  # the rise over all steps: it stays alike between step counts
            span = constants.pop("span")
            constants = {"k": span / (steps - 1) if steps > 1 else 0.0} | constants
        return {**self.defaults, **constants}

    def missing(self, sampler: str) -> str | None:
        """Return the name of a constant that must be given and is not, None where there is none."""
        names = self.constants.get(sampler, Constants()).names()
        return next((name for name, value in self.defaults.items() if value is None and name not in names), None)

    def overridden(self, values: Numbers) -> Remedy:
        """Return the remedy with some constants fixed at every step count, under every sampler."""
        old = {sampler: self.constants.get(sampler, Constants()) for sampler in SAMPLERS}
        return replace(self, constants={sampler: constants.overridden(values) for sampler, constants in old.items()})

    def correction(self, walk: Walk, sampler: str, steps: int) -> Correction:
        """Return the correction of a walk.

        Raises:
            ValueError: a constant that the correction cannot take.
        """
        from bench.diffusion import corrections

        return KINDS[self.kind].build(corrections, walk, self.at(sampler, steps))

    def description(self, sampler: str, steps: int) -> dict[str, Any]:
        """Return kind and constants at a step count, JSON-like."""
        return {"kind": self.kind, **self.at(sampler, steps)}
