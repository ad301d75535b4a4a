"""Time shift (Li et al. 2024): the noise level that fits a state's variance, as in the paper and as in its code."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.diffusion.corrections.base import Correction
from bench.diffusion.types import Call, Level, batched


class _LevelChoice(Correction):
    """What both forms share: where the walk goes, which levels lie near one, and which of them fits an image."""

    moves = True
    neutral: ClassVar[Mapping[str, Any]] = {"window": 0.0}
    typical: ClassVar[Mapping[str, Any]] = {"window": 80.0, "cutoff": 300.0}  # TS-DPM-ADM's example of few steps

    def __init__(self, levels: Sequence[Level], grid: Sequence[Level], window: float, cutoff: float) -> None:
        if not (0 <= window < math.inf and 0 <= cutoff < math.inf):
            raise ValueError(
                f"the time shift's window and cutoff must be finite numbers of at least 0, not {window} and {cutoff}"
            )
        self._walked = sorted(level.t for level in levels)
        self._grid = sorted(grid, key=lambda level: level.t)
        self._t = [level.t for level in self._grid]
        self._half, self._cutoff = window / 2, cutoff
        self._tables: dict[tuple[object, ...], Tensor] = {}

    def _stood_before(self, call: Call) -> float | None:
        """Return the t that the step before this one left, None for a walk's first.

        It is read off where this one goes: where it starts, churn may have moved.
        """
        ends: tuple[Any, ...] = (call.level.t, call.level_next.t)
        if any(isinstance(t, Tensor) for t in ends):
            raise ValueError("a walk takes one time shift; remove the other")
        # The levels above the target: the first is this step's nominal one, the second the step's before.
        noisier = self._walked[bisect_right(self._walked, call.level_next.t) :]
        return noisier[1] if len(noisier) > 1 else None

    def _near(self, centre: Level, above: float = -math.inf, below: float = math.inf) -> tuple[Level, ...]:
        """Return a level and those of the grid at most half a window away, above < t < below, least noisy first."""
        near = self._grid[bisect_left(self._t, centre.t - self._half) : bisect_right(self._t, centre.t + self._half)]
        others = [level for level in near if above < level.t < below and level.t != centre.t]
        return tuple(sorted([centre, *others], key=lambda level: level.t))

    def _fitting(self, x: Tensor, choices: tuple[Level, ...]) -> Level:
        """Return each image's level, the one whose noise variance is next to the variance of its pixels.

        The variance is about the image's own mean, over channels and pixels, with n - 1 (``torch.var``, as in the
        published code). Of two equally near levels the less noisy is taken.
        """
        key = (choices, x.dtype, x.device)
        if key not in self._tables:  # a copy to the device would make every step wait for it
            rows = [(level.t, level.alpha, level.sigma) for level in choices]
            self._tables[key] = torch.tensor(rows, dtype=x.dtype, device=x.device)
        table = self._tables[key]  # [K, 3]
        # |var(x) - sigma^2| of every image and level [B, K]
        apart = (x.flatten(1).var(1)[:, None] - table[:, 2].square()).abs()
        t, alpha, sigma = table[apart.argmin(1)].T.reshape(3, -1, 1, 1, 1)
        return batched(t, alpha, sigma)


class TimeShift(_LevelChoice):
    """Take each state to stand at the level tau that its variance fits (algorithm 3 of the paper).

    Before every step but the first, tau is that of a window around the nominal t whose noise variance is next to the
    state's, var(x) over the pixels of the image. The network is asked at tau, and the step is taken from tau to where
    it was to go anyway. Images choose for themselves. It is done where the step before left a t above the cutoff.

    Why the noise variance: x = alpha x0 + sigma noise has var(x) = alpha^2 var(x0) + sigma^2. The paper takes the first
    term for nothing and matches 1 - alpha_bar, which in the variance-preserving frame is sigma^2. The same assumption,
    a signal that is small against the noise, leaves sigma^2 in EDM's frame, where alpha = 1 and sigma is large. At
    low noise it does not hold, hence the cutoff: there var(x0) is taken for noise, and tau is too noisy. (EDM's t = 300
    is sigma = .32: below the spread of most data.) Over d numbers var(x) scatters by sqrt(2 / d) of itself, .18 for an
    8x8 image and .026 for CIFAR-10: where the levels of a window differ by less, tau is chance.

    Choices of ours: tau is a level of the grid, or the nominal one where the walk steps beside the grid (EDM). It stays
    above the t that the step goes to, so that no step gains noise: the paper's windows are smaller than a step and
    never get there. The window is centred on where the state stands; algorithm 3 names the t before, which of a
    process of all T steps is the next one. A Heun step is moved as a whole: its correcting call is asked where the
    step went, unshifted. ``levels`` tell the first step, so a paired walk along their end is no new start.

    Args:
        levels: the walk's levels, noisiest first, ending in the clean one.
        grid: every level the network knows.
        window: w, in t; tau is at most w/2 away. 0 is off.
        cutoff: t_c, from 0 (the paper counts t from 1).

    Raises:
        ValueError: the window or cutoff is not finite or below 0; at a step, if another shift came before.
    """

    def before(self, x: Tensor, call: Call) -> tuple[Tensor, Call]:
        """Return the state, and the call from its own level."""
        left = self._stood_before(call)
        if call.stage or left is None or left <= self._cutoff:
            return x, call
        choices = self._near(call.level, above=call.level_next.t)
        return (x, call) if len(choices) == 1 else (x, replace(call, level=self._fitting(x, choices)))


class ShiftedTarget(_LevelChoice):
    """Take each step to the level that fits the variance of the state it starts from (the released code, TS-DPM).

    ``apply_time_shift`` of ``pnm_solver.py`` differs from algorithm 3 (:class:`TimeShift`): the network is asked at the
    nominal t and the step taken from there. What is shifted is where the update goes: to the level of a window around
    the *next* t whose noise variance is next to that of the *current* state. The first step is not shifted, nor is one
    whose next t is at or below the cutoff, nor ever the last, to the clean level. The next step then starts from its
    nominal t, whatever the state was taken to.

    Where the window is narrower than two steps, the state's own level lies outside it, so that but for chance the
    choice is its noisiest level: the shift is half a window for every image. The time shift of its ADM port
    (TS-DPM-ADM, DDIM only) is a third thing, not implemented here: the window is around the current t, the target is
    moved as far as the choice is from t, and the variance is matched to the flipped alpha_bar, alpha_bar_{T-1-t}, which
    stands for 1 - alpha_bar_t on a symmetric cosine schedule only.

    Choices of ours: the window ends where the grid does (the code fails there with an AttributeError, of
    ``self.alpha_bar``), and below the t the step starts from, so that no step gains noise (the code lets it). A window
    beside the grid (EDM) holds the nominal target too. For odd windows the code's ``window // 2`` is the same, as t is
    whole.

    Heun steps are refused: they are corrected at the level they were to reach, and the state stands at another.

    Args:
        levels: the walk's levels, noisiest first, ending in the clean one.
        grid: every level the network knows.
        window: in t; the target moves at most half of it. 0 is off.
        cutoff: the t, from 0, above which targets move.

    Raises:
        ValueError: the window or cutoff is not finite or below 0; at a step, one of Heun's, or if another shift came
            before.
    """

    def before(self, x: Tensor, call: Call) -> tuple[Tensor, Call]:
        """Return the state, and the call with its own target."""
        if not call.completes:
            raise ValueError("the released time shift has no corrected steps; use ddpm, ddim or euler")
        if self._stood_before(call) is None or call.level_next.t <= self._cutoff:
            return x, call
        choices = self._near(call.level_next, below=call.level.t)
        return (x, call) if len(choices) == 1 else (x, replace(call, level_next=self._fitting(x, choices)))
