"""Floors: what an exact denoiser of Gaussian data gives on a cell's levels, as rows of ``steps.csv`` and spectra.

Nothing is clipped or scaled. Arm ``gaussian`` starts from noise, ``gaussian-paired`` from noised data, and
``gaussian-forced`` takes single steps from noised data. Quantities are those of
:mod:`bench.measure.instruments.step_table`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from bench.diffusion.solvers import Solver
from bench.diffusion.types import Level
from bench.measure.instruments.gaussian import Energy, GaussianState, LinearGaussian
from bench.measure.instruments.spectra import RadialBins, haar_energy
from bench.measure.instruments.step_table import Row, delta_floor, delta_rows, state_row

Arrays = dict[str, NDArray[np.float64]]


def band_energies(shape: Sequence[int]) -> Energy:
    """Return a function from images [n, D] to their radial spectrum and Haar energies, [n, bins + 4].

    Args:
        shape: (C, H, W), H and W at least 2.
    """
    bins = RadialBins(shape[1], shape[2])

    def energy(images: NDArray[np.float64]) -> NDArray[np.float64]:
        pixels = torch.from_numpy(images).reshape(-1, *shape)
        return torch.cat([bins.density(pixels), haar_energy(pixels)], dim=1).double().numpy()

    return energy


def walk_ratios(law: LinearGaussian, levels: Sequence[Level], solver: Solver) -> Arrays:
    """Return the sums over pixels of a free-running walk over those of real noised data, in O(D^2) a step.

    ``eps_ratio`` [steps]: root of E||eps||^2 at solver index i; ``variance_ratio`` [steps]: Var(x) of the state reached
    from there. Both by i, the least noisy first.
    """
    ratios, state = [], law.prior(levels[0])
    for level, level_next in pairwise(levels):
        eps = (law.eps_energy(state) / law.eps_energy(law.forward(level))) ** 0.5
        state = law.step(state, level_next, solver, follow=False)
        ratios.append((eps, state.variance.mean() / law.forward(level_next).variance.mean()))
    by_index = np.array(ratios[::-1])
    return {"eps_ratio": by_index[:, 0], "variance_ratio": by_index[:, 1]}


class GaussianFloors:
    """The rows and spectra of one law on one walk's levels.

    Args:
        law: Gaussian with the data's mean and covariance.
        levels: the walk's levels, noisiest first, ending in the clean one.
        indices: solver indices to report.
        solver: the update rule.
        paired: whether to walk from noised data too.
        energy: bands whose energies to report, None for no spectra.
    """

    def __init__(
        self,
        law: LinearGaussian,
        levels: Sequence[Level],
        indices: Sequence[int],
        solver: Solver,
        paired: bool = False,
        energy: Energy | None = None,
    ) -> None:
        self.law, self.levels, self.solver, self.energy = law, levels, solver, energy
        self.follow = law.follows(len(levels) - 1)
        self.indices = list(indices)
        starts = {"gaussian": law.prior(levels[0])}
        if paired:
            starts["gaussian-paired"] = law.forward(levels[0])
        self.bands: dict[str, dict[int, NDArray[np.float64]]] = {}
        self.rows = [row for arm, start in starts.items() for row in self._walk(arm, start)]
        self.rows += [row for i in self.indices for row in self._forced(i)]

    def spectra(self) -> Arrays:
        """Return ``<arm>/spectrum|haar_state|x0`` [indices, bands]; NaN where a band is not known."""
        arrays: Arrays = {}
        for name, values in self.bands.items():
            unknown = np.full_like(next(iter(values.values())), np.nan)
            table = np.stack([values.get(i, unknown) for i in self.indices])  # [indices, bins + 4]
            arm, source = name.rsplit("/", 1)
            arrays |= {f"{arm}/spectrum_{source}": table[:, :-4], f"{arm}/haar_{source}": table[:, -4:]}
        return arrays

    def _walk(self, arm: str, start: GaussianState) -> Iterator[Row]:
        state, solver = start, self.solver.begin()
        for position, level_next in enumerate(self.levels[1:]):
            i, before = len(self.levels) - 2 - position, self.law.folded(state, self.follow)
            state = self.law.step(before, level_next, solver, self.follow)
            if i in self.indices:
                yield from self._step(arm, i, before, state)

    def _forced(self, i: int) -> Iterator[Row]:
        level, level_next = self.levels[len(self.levels) - 2 - i :][:2]
        before = self.law.forward(level)  # q(x_t)
        yield from self._step("gaussian-forced", i, before, self.law.step(before, level_next, self.solver.begin()))

    def _step(self, arm: str, i: int, state: GaussianState, reached: GaussianState) -> Iterator[Row]:
        """Yield the rows of one step: of the call at index i, and of the state it reached at i - 1."""
        state = self.law.churned(state, self.solver)
        if self.energy is not None:
            for source, images in (("x0", self.law.denoised(state)), ("state", reached)):
                energies = self.law.band_energy(images, self.energy)
                if energies is not None:
                    self.bands.setdefault(f"{arm}/{source}", {})[i] = energies
        yield state_row(arm, i, state.level, None, "eps_rms", self.law.eps_energy(state) ** 0.5)
        if arm != "gaussian":  # from noise x is independent of x0
            error = (self.law.error_energy(state) / len(state.mean)) ** 0.5
            yield state_row(arm, i, state.level, None, "x0_rmse", error)
        yield from self._state_rows(arm, i - 1, reached)

    def _state_rows(self, arm: str, i: int, state: GaussianState) -> Iterator[Row]:
        level, marginal = state.level, float(state.variance.mean())
        yield state_row(arm, i, level, None, "var_marginal", marginal)
        # The eigenvalues' mean is that of the pixels' variances.
        truth = level.alpha**2 * float(self.law.values.mean()) + level.sigma**2
        if truth > 0:
            yield state_row(arm, i, level, None, "variance_ratio", marginal / truth)
        residual = self.law.residual_variance(state)
        if residual is None or self.law.squares is None:
            return
        residual = residual.clip(min=0)  # rounding, where a pixel is constant
        if arm != "gaussian":
            yield state_row(arm, i, level, None, "var_conditional", residual.mean())
        pred_std = float(np.sqrt(residual).mean())
        yield state_row(arm, i, level, None, "pred_std", pred_std)
        is_forced = arm == "gaussian-forced"
        floor = None if is_forced else delta_floor(level, self.law.squares @ self.law.values)
        yield from delta_rows(arm, i, level, None, pred_std, floor)
