"""Noise schedules, respacing and the levels a solver visits, in float64.

Conventions of guided-diffusion (``gaussian_diffusion.py``, ``respace.py``): training indices t count from 0, the
least noisy, to T - 1; papers count from 1.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bench.diffusion.types import CLEAN, Level

_EDM_RHO = 7.0
_EDM_LOW, _EDM_HIGH = 0.002, 80.0  # sigma
_EDM_T = 1000  # a scale for plots beside models of 1000 training steps; no network sees it
_FLOW = re.compile(r"flow(?:\(([^(),]+)\))?")
FLOW_T = 1000  # t = 1000 sigma
_MOST_SHIFT = 100.0
_LONGEST = 100_000  # far above any training; it comes from files
_LEAST_LINEAR = 21  # the last beta, 20 / T, stays below 1
_BETWEEN = re.compile(r"(linear|scaled_linear|sigmoid)\(([^(),]+),([^(),]+)\)")
_ZERO_SNR = re.compile(r"zero_snr\((.+)\)")
_SIGMOID_REACH = 6.0  # of diffusers' schedule
_LEAST_SIGNAL = float(np.finfo(np.float32).tiny)  # states are float32, and x0_hat divides by the signal


def betas(name: str, T: int) -> NDArray[np.float64]:
    """Return the forward variances beta_t, float64 [T], t from 0.

    ``linear`` is Ho et al. 2020 rescaled to T steps; ``cosine`` is Nichol & Dhariwal 2021, eq. 17, with beta
    capped at .999. The numbers are the published ones at any T; :func:`alpha_bars` refuses those that leave no signal.
    ``linear(START,END)`` runs evenly between two betas that are not rescaled, and ``scaled_linear(START,END)`` between
    their square roots (Rombach et al. 2022; Stable Diffusion is ``scaled_linear(0.00085,0.012)`` with T = 1000),
    ``sigmoid(START,END)`` along 1 / (1 + exp(-u)), u from -6 to 6 (diffusers).

    Raises:
        ValueError: unknown name, ends that are no variances, or T below 1 or above 100,000.
    """
    if T < 1:
        raise ValueError(f"a schedule needs at least one training step, not {T}")
    if T > _LONGEST:
        raise ValueError(f"a schedule has at most {_LONGEST} training steps, not {T}")
    if name == "linear":
        scale = 1000 / T  # Ho et al. 2020 have T = 1000
        return np.linspace(scale * 1e-4, scale * 0.02, T)
    if name == "cosine":

        def signal(u: float) -> float:  # alpha_bar at u = t / T, Nichol & Dhariwal 2021, eq. 17
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        return np.array([min(1 - signal((t + 1) / T) / signal(t / T), 0.999) for t in range(T)])
    if ends := _BETWEEN.fullmatch(name):
        return _between(ends[1], ends[2], ends[3], T)
    raise ValueError(
        f"unknown noise schedule {name!r}; choose cosine, linear or flow, or give the ends of one as in"
        " linear(0.0001,0.02) or scaled_linear(0.00085,0.012), or a flow's shift as in flow(3)"
    )


def _between(kind: str, first: str, last: str, T: int) -> NDArray[np.float64]:
    try:
        start, end = float(first), float(last)
    except ValueError:
        start = end = math.nan
    if not (0 < start < 1 and 0 < end < 1):
        raise ValueError(f"the ends of {kind}({first},{last}) must be numbers above 0 and below 1")
    if kind == "linear":
        return np.linspace(start, end, T)
    if kind == "sigmoid":
        return (end - start) / (1 + np.exp(-np.linspace(-_SIGMOID_REACH, _SIGMOID_REACH, T))) + start
    return np.linspace(math.sqrt(start), math.sqrt(end), T) ** 2


def alpha_bars(name: str, T: int) -> NDArray[np.float64]:
    """Return the cumulative signal powers alpha_bar_t = prod_{s<=t} (1 - beta_s), float64 [T].

    Besides the names of :func:`betas`: ``zero_snr(NAME)``, whose roots are moved and stretched so that the last is 0
    (Lin et al. 2024, algorithm 1), and the names that :func:`schedule_table` gives.

    Raises:
        ValueError: what :func:`betas` refuses, a T so small that a rescaled beta reaches 1, or a T so large that
            float32 cannot tell what is left of the signal from nothing.
    """
    if isinstance(name, ScheduleTable):
        if len(name.bars) != T:
            raise ValueError(f"the table of alpha_bar has {len(name.bars)} entries, and T is {T}; they must agree")
        return name.bars
    if inner := _ZERO_SNR.fullmatch(name):
        return _without_last_signal(alpha_bars(inner[1], T))
    variances = betas(name, T)
    if variances.max() >= 1.0:
        raise ValueError(f"the {name} schedule needs T of at least {_LEAST_LINEAR}, not {T}: its variances reach 1")
    bars = np.cumprod(1.0 - variances, dtype=np.float64)  # alpha_bar_t = prod_s (1 - beta_s)
    if bars[-1] < _LEAST_SIGNAL:
        raise ValueError(f"the {name} schedule leaves no signal after {T} steps; lower its variances or T")
    return bars


class ScheduleTable(str):
    """The name of a schedule that is no formula, with its alpha_bar_t as ``bars``, float64 [T]."""

    bars: NDArray[np.float64]

    def __str__(self) -> str:
        return self  # a plain string has no numbers


def _without_last_signal(bars: NDArray[np.float64]) -> NDArray[np.float64]:
    roots = np.sqrt(bars)
    moved: NDArray[np.float64] = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return moved


def zero_snr(schedule: str) -> str:
    """Return the name of a schedule that is moved to end without signal; of a table, with its moved numbers."""
    name = f"zero_snr({schedule})"
    return _named(name, _without_last_signal(schedule.bars)) if isinstance(schedule, ScheduleTable) else name


def _named(name: str, bars: NDArray[np.float64]) -> ScheduleTable:
    table = ScheduleTable(name)
    table.bars = bars
    return table


def schedule_table(bars: NDArray[np.float64]) -> ScheduleTable:
    """Return a schedule of any numbers, under a name that holds their hash.

    Args:
        bars: alpha_bar_t [T], falling, above 0 and below 1; the last may be 0.

    Raises:
        ValueError: they are no such numbers.
    """
    bars = np.asarray(bars, dtype=np.float64)
    if bars.ndim != 1 or not 1 <= len(bars) <= _LONGEST:
        raise ValueError(f"alpha_bar must be a list of 1 to {_LONGEST} numbers, not of shape {bars.shape}")
    if not (bars[0] < 1 and (np.diff(bars) < 0).all() and (bars[-1] == 0 or bars[-1] >= _LEAST_SIGNAL)):
        raise ValueError("alpha_bar must fall from below 1 to 0 or above, t by t")
    return _named(f"table({hashlib.sha256(bars.astype('<f8').tobytes()).hexdigest()[:16]})", bars)


def respace(spec: int | str, T: int) -> NDArray[np.int64]:
    """Return the sorted training indices a shortened process visits, int64 [steps].

    Args:
        spec: ``"N"`` for N evenly spread indices that always include 0 and T - 1, rounded half to even as
            the published code does; ``"ddimN"`` for the smallest whole stride from 0 that gives exactly N. By the names
            of diffusers: ``"leadingN"`` has the stride T // N from 0, ``"linspaceN"`` N even indices from 0 to T - 1,
            ``"trailingN"`` the rounded stride T / N down from T - 1.
        T: training length.

    Raises:
        ValueError: N is not a whole number in 1..T, or no whole stride gives "ddimN" (the nearest N that one
            gives is named).
    """
    text = str(spec).strip()
    parts = _SPACED.fullmatch(text)
    if parts is None:
        raise ValueError(f"steps must be a whole number or 'ddimN', not {text!r}")
    spacing, steps = parts[1], int(parts[2])
    if not 1 <= steps <= T:
        raise ValueError(f"steps must lie between 1 and {T}, the training length, not {steps}")
    if steps == 1 and spacing != "ddim":  # published code keeps index 0 alone; a one-step sampler must start from noise
        return np.array([T - 1])
    return _SPACINGS[spacing](steps, T)


def _spread(steps: int, T: int) -> NDArray[np.int64]:
    stride = (T - 1) / (steps - 1)
    # The published code accumulates the stride; so does this, for the same rounding.
    positions = itertools.accumulate(itertools.repeat(stride, steps - 1), initial=0.0)
    return np.array([round(position) for position in positions], dtype=np.int64)


def _strided(steps: int, T: int) -> NDArray[np.int64]:
    possible = {len(range(0, T, stride)): stride for stride in range(T, 0, -1)}  # the smallest stride wins
    if steps not in possible:
        nearest = min(possible, key=lambda n: (abs(n - steps), n))
        raise ValueError(f"no whole stride gives ddim{steps} with {T} training steps; the nearest is ddim{nearest}")
    return np.arange(0, T, possible[steps], dtype=np.int64)


def _leading(steps: int, T: int) -> NDArray[np.int64]:
    return np.arange(steps, dtype=np.int64) * (T // steps)


def _linspace(steps: int, T: int) -> NDArray[np.int64]:
    return np.linspace(0, T - 1, steps).round().astype(np.int64)


def _trailing(steps: int, T: int) -> NDArray[np.int64]:
    return np.arange(T, 0, -T / steps).round().astype(np.int64)[steps - 1 :: -1] - 1


_SPACINGS = {"": _spread, "ddim": _strided, "leading": _leading, "linspace": _linspace, "trailing": _trailing}
_SPACED = re.compile(rf"({'|'.join(_SPACINGS)})([0-9]+)")


def levels(schedule: str, T: int, spec: int | str) -> tuple[Level, ...]:
    """Return the levels of a variance-preserving walk, noisiest first, ending in the clean level (steps + 1 of them).

    The respaced process has exactly the training process's alpha_bar at its indices, and the network sees the
    original index.

    Raises:
        ValueError: what :func:`alpha_bars` or :func:`respace` refuse.
    """
    bars = alpha_bars(schedule, T)
    # alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar)
    noisy = [Level(int(t), math.sqrt(bars[t]), math.sqrt(1.0 - bars[t])) for t in respace(spec, T)]
    return (*reversed(noisy), CLEAN)


def _edm_sigmas(count: int, low: float, high: float, rounded: Callable[[float], float]) -> list[float]:
    """Return noise levels, noisiest first; arguments as in edm_levels."""
    low, high = max(_EDM_LOW, low) ** (1 / _EDM_RHO), min(_EDM_HIGH, high) ** (1 / _EDM_RHO)
    # Karras et al. 2022, eq. 5
    return [rounded((high + i / max(count - 1, 1) * (low - high)) ** _EDM_RHO) for i in range(count)]


def edm_position(sigma: float) -> float:
    """Return where sigma lies on EDM's scale, rho = 7: 0 at sigma .002, 999 at sigma 80. It is a level's ``t``."""
    low, high = _EDM_LOW ** (1 / _EDM_RHO), _EDM_HIGH ** (1 / _EDM_RHO)
    return (_EDM_T - 1) * (sigma ** (1 / _EDM_RHO) - low) / (high - low)


def edm_levels(
    steps: int, low: float = 0.0, high: float = math.inf, rounded: Callable[[float], float] = float
) -> tuple[Level, ...]:
    """Return ``steps`` levels of EDM, noisiest first, and the clean one (Karras et al. 2022, eq. 5; rho 7).

    Args:
        steps: solver steps, at least 1; one step starts at the noisiest level.
        low: least noise level the network knows, which replaces .002 if it is larger.
        high: largest one, which replaces 80 if it is smaller.
        rounded: maps a level to the nearest that the network knows.

    Raises:
        ValueError: no steps, or so many that two of them fall on one level.
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least one step, not {steps}")
    sigmas = _edm_sigmas(steps, low, high, rounded)
    if any(a <= b for a, b in itertools.pairwise(sigmas)):
        raise ValueError(f"{steps} steps are more than this model has noise levels; use fewer")
    return (*(Level(edm_position(sigma), 1.0, sigma) for sigma in sigmas), CLEAN)


def edm_grid(low: float = 0.0, high: float = math.inf, rounded: Callable[[float], float] = float) -> tuple[Level, ...]:
    """Return the levels that a network knows, noisiest first, at most 1000 of them; arguments as in edm_levels."""
    sigmas = dict.fromkeys(_edm_sigmas(_EDM_T, low, high, rounded))
    return tuple(Level(edm_position(sigma), 1.0, sigma) for sigma in sigmas)


def flow_shift(name: str) -> float:
    """Return the timestep shift of a schedule ``flow`` or ``flow(SHIFT)``, 1 without one.

    Raises:
        ValueError: the name is another, or its shift is no number from 0.01 to 100.
    """
    parts = _FLOW.fullmatch(name)
    if parts is None:
        raise ValueError(f"{name!r} is no flow; give flow or, with a timestep shift, flow(3)")
    try:
        shift = float(parts[1] or 1)
    except ValueError:
        shift = math.nan
    if not 1 / _MOST_SHIFT <= shift <= _MOST_SHIFT:
        raise ValueError(f"the shift of {name} must be a number from {1 / _MOST_SHIFT:g} to {_MOST_SHIFT:g}")
    return shift


def flow_levels(name: str, steps: int) -> tuple[Level, ...]:
    """Return the levels of a flow, noisiest first, and the clean one: alpha = 1 - sigma, sigma from 1 down.

    Without a shift sigma is even, 1 - i / steps. A shift s moves it to s sigma / (1 + (s - 1) sigma) (Esser et al.
    2024, eq. 23): a larger one spends more steps at high noise. The network is asked at t = 1000 sigma.

    Raises:
        ValueError: no steps, or what :func:`flow_shift` refuses.
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least one step, not {steps}")
    shift = flow_shift(name)
    even = [1 - i / steps for i in range(steps)]
    sigmas = [shift * u / (1 + (shift - 1) * u) for u in even]
    return (*(Level(FLOW_T * sigma, 1 - sigma, sigma) for sigma in sigmas), CLEAN)


def flow_grid() -> tuple[Level, ...]:
    """Return a thousand even levels of a flow, noisiest first, which stand for all that a network knows."""
    return flow_levels("flow", FLOW_T)[:-1]
