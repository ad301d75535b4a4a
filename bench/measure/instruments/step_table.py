"""The table of per-step quantities of a cell, one row a quantity and level.

With sigma_p the data's standard deviation at pixel p, and (alpha, sigma) the level of a row:

* ``eps_norm``, ``eps_used_norm``, ``x0_norm``, ``clipped``, ``x0_rmse``: mean over images, std over images.
* ``plain_eps_norm``, ``plain_x0_norm``, ``plain_x0_rmse``: the same of the model without guidance, at the guided
  walk's states; ``guidance_norm``: ||eps - plain eps||. Where classifier-free guidance acts, whose rows ``eps_norm``
  and so on are the guided prediction's.
* ``eps_rms``: root of the mean over images of ||eps||^2, the norm that has a closed form.
* ``x0_bias``: mean over pixels of the mean error. ``x0_nu``: mean over pixels of the error's std (Ning et al. 2023,
  nu_t). Their std is over pixels.
* ``var_marginal``: mean over pixels of Var(x). ``variance_ratio``: the same over mean(alpha^2 sigma_p^2 + sigma^2). Its
  std is that over images of each image's share of the ratio, so that std / sqrt(n) is the standard error.
* ``var_conditional``: mean over pixels of Var(x - alpha x0), on walks that know x0.
* ``pred_std``: mean over pixels of the std of x - alpha x0; on walks from noise, which are independent of x0, of
  sqrt(Var(x) + alpha^2 sigma_p^2). ``delta_t`` = (pred_std - sigma)^2 is the published measure (Ning et al. 2024,
  ``x_t_distribution_consecutive_sampling``).
* ``floor_std``: pred_std of an exact sampler whose state is independent of x0, mean of sqrt(sigma^2 + 2 alpha^2
  sigma_p^2). ``delta_t_floor`` = (floor_std - sigma)^2. ``excess_std`` = pred_std - floor_std, signed. Paired walks of
  class-conditional models have none of the three, because the state shares the class of x0.

Rows of a network call stand at the level that the network saw (solver index i, 0 the least noisy). Rows of a state
stand at the level that it reached, i = -1 being the clean one. ``stage`` 1 marks the correcting call of a Heun step:
its i is that of the step, its level the one the step reached. Recorded loops may have more stages, each at a level of
its own. All other rows have stage 0. Standard deviations over
images divide by n - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.diffusion.solvers import Solver
from bench.diffusion.types import Level
from bench.measure.instruments.moments import Moments

Arrays = Mapping[str, NDArray[np.float64]]
# Numbers per image and step, in the order of the columns of a record's scalars.
SCALARS = ("eps_norm", "eps_used_norm", "x0_norm", "clipped", "energy", "x0_mse")
# The same of a walk under classifier-free guidance.
GUIDED_SCALARS = ("plain_eps_norm", "plain_x0_norm", "guidance_norm", "plain_x0_mse")


@dataclass(frozen=True)
class Row:
    """One row of ``steps.csv``."""

    arm: str
    i: int
    stage: int
    t: float
    alpha: float
    sigma: float
    n: int | None  # None where the value is exact
    quantity: str
    value: float
    std: float = float("nan")


STEP_COLUMNS = tuple(field.name for field in fields(Row))


@dataclass(frozen=True)
class PixelStatistics:
    """The data's per-pixel mean and variance, float64 [C, H, W], in the [-1, 1] scale."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


def to_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return rows as a table, each arm's noisiest level first."""
    table = pd.DataFrame([astuple(row) for row in rows], columns=list(STEP_COLUMNS)).astype({"n": "Int64"})
    return table.sort_values(["arm", "quantity", "i", "stage"], ascending=[True, True, False, True], ignore_index=True)


def delta_floor(level: Level, pixel_variance: NDArray[np.float64]) -> float:
    """Return floor_std: the published pred_std of an exact sampler whose state is independent of x0.

    Args:
        level: level of the state.
        pixel_variance: Var(x0) per pixel.
    """
    return float(np.sqrt(level.sigma**2 + 2 * level.alpha**2 * pixel_variance).mean())


def call_levels(levels: Sequence[Level], solver: Solver | None = None) -> dict[tuple[int, int], Level]:
    """Return the level of each network call of a walk by (i, stage); the solver's churn raises those of stage 0."""
    calls = {}
    for position, (level, level_next) in enumerate(pairwise(levels)):
        i = len(levels) - 2 - position
        calls[i, 0] = solver.churned(level)[0] if solver else level
        calls[i, 1] = level_next
    return calls


def measured_rows(
    arm: str,
    record: Arrays,
    indices: Sequence[int],
    levels: Sequence[Level],
    data: PixelStatistics,
    solver: Solver | None = None,
    forgets: bool = True,
    calls: Mapping[tuple[int, int], Level] | None = None,
) -> Iterator[Row]:
    """Yield the rows of one arm.

    Args:
        arm: ``free``, ``paired``, ``forced-train``, ``forced-heldout``, or an arm of an exact denoiser.
        record: merged state of the arm's probe.
        indices: solver indices of the pixel rows.
        levels: levels of the walk, noisiest first, ending in the clean one.
        data: statistics of the training images.
        solver: the update rule, whose churn raises the levels of the calls.
        forgets: whether the state of an exact sampler is independent of x0; if not, the floor and the excess over it
            are left out.
        calls: the level of each network call by (i, stage); None takes those of the suite's own solvers.
    """
    at = {len(levels) - 2 - position: level for position, level in enumerate(levels)}  # i -> level, -1 is clean
    knows_x0 = "residual/count" in record
    calls = call_levels(levels, solver) if calls is None else calls
    yield from _call_rows(arm, record, "scalars", calls, knows_x0)
    if "guided/count" in record:
        yield from _call_rows(arm, record, "guided", calls, knows_x0)
    energy_spread = np.sqrt(Moments.variance(_moments(record, "scalars")))[:, SCALARS.index("energy")]
    made = record["scalars/count"].reshape(-1, len(levels) - 1) > 0  # [stages, steps]
    for row, i in enumerate(indices):
        part = {key: value[row : row + 1] for key, value in record.items() if not key.startswith("scalars/")}
        if knows_x0:
            yield from _error_rows(arm, part, i, calls[i, 0])
        completing = i + (len(levels) - 1) * int(np.flatnonzero(made[:, i]).max(initial=0))
        yield from _state_rows(arm, part, i - 1, at[i - 1], data, float(energy_spread[completing]), forgets)


def _moments(record: Arrays, name: str) -> dict[str, NDArray[np.float64]]:
    return {key: record[f"{name}/{key}"] for key in ("count", "mean", "second")}


def _call_rows(
    arm: str, record: Arrays, kind: str, calls: Mapping[tuple[int, int], Level], knows_x0: bool
) -> Iterator[Row]:
    """Yield the rows of each recorded call: those of ``scalars``, or of ``guided``."""
    *names, square = SCALARS if kind == "scalars" else GUIDED_SCALARS
    moments = _moments(record, kind)
    spreads = np.sqrt(Moments.variance(moments))
    steps = 1 + max(i for i, _ in calls)
    for row in np.flatnonzero(moments["count"]).tolist():
        stage, i = divmod(row, steps)
        level, n, (*mean, mean_square) = calls[i, stage], moments["count"][row], moments["mean"][row].tolist()
        for name, value, spread in zip(names, mean, spreads[row], strict=False):
            if name != "energy":  # the spread of another quantity
                yield state_row(arm, i, level, n, name, value, spread, stage)
        if kind == "scalars":
            rms = moments["second"][row, SCALARS.index("eps_norm")] ** 0.5
            yield state_row(arm, i, level, n, "eps_rms", rms, stage=stage)
        if knows_x0:
            # The spread of a root by the delta method: d sqrt(m) = dm / (2 sqrt(m)).
            root = mean_square**0.5
            spread = spreads[row, -1] / (2 * root) if root else 0.0
            yield state_row(arm, i, level, n, square.replace("mse", "rmse"), root, spread, stage)


def _error_rows(arm: str, part: Arrays, i: int, level: Level) -> Iterator[Row]:
    error = _moments(part, "error")
    n = error["count"][0]
    nu = np.sqrt(Moments.variance(error))
    yield state_row(arm, i, level, n, "x0_bias", error["mean"].mean(), error["mean"].std())
    yield state_row(arm, i, level, n, "x0_nu", nu.mean(), nu.std())


def _state_rows(
    arm: str, part: Arrays, i: int, level: Level, data: PixelStatistics, energy_spread: float, forgets: bool
) -> Iterator[Row]:
    state = _moments(part, "state")
    n, variance = state["count"][0], Moments.variance(state)[0]
    yield state_row(arm, i, level, n, "var_marginal", variance.mean(), variance.std())
    truth = level.alpha**2 * float(data.variance.mean()) + level.sigma**2  # mean over pixels
    if truth > 0:
        yield state_row(arm, i, level, n, "variance_ratio", variance.mean() / truth, energy_spread / truth)
    if "residual/count" in part:
        residual = Moments.variance(_moments(part, "residual"))[0]
        yield state_row(arm, i, level, n, "var_conditional", residual.mean(), residual.std())
        pred = np.sqrt(residual)
    else:
        # x is independent of x0: Var(x - alpha x0) = Var(x) + alpha^2 Var(x0).
        pred = np.sqrt(variance + level.alpha**2 * data.variance)
    pred_std = float(pred.mean())
    yield state_row(arm, i, level, n, "pred_std", pred_std, pred.std())
    floor = delta_floor(level, data.variance) if forgets and "forced" not in arm else None
    yield from delta_rows(arm, i, level, n, pred_std, floor)


def delta_rows(arm: str, i: int, level: Level, n: float | None, pred_std: float, floor: float | None) -> Iterator[Row]:
    """Yield the rows of ``delta_t`` and, where there is a floor of ``pred_std``, those of the floor and the excess."""
    yield state_row(arm, i, level, n, "delta_t", (pred_std - level.sigma) ** 2)
    if floor is not None:
        yield state_row(arm, i, level, n, "floor_std", floor)
        yield state_row(arm, i, level, n, "delta_t_floor", (floor - level.sigma) ** 2)
        yield state_row(arm, i, level, n, "excess_std", pred_std - floor)


def state_row(
    arm: str, i: int, level: Level, n: float | None, quantity: str, value: float, std: float = float("nan"),
    stage: int = 0,
) -> Row:  # fmt: skip
    """Return the row of a quantity of n images at a level; n is None where the value is exact."""
    count = None if n is None else int(n)
    return Row(arm, i, stage, level.t, level.alpha, level.sigma, count, quantity, float(value), float(std))
