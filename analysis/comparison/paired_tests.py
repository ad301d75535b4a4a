"""How far from the data is a model, which of two is closer, and with what error.

The Frechet distance D is a smooth function of means over samples and over reference images, so its error is that of
the mean of its influence functions (:class:`analysis.records.arrays.CellTerms`). For two models A and B whose samples
share their noise, the error of D_A - D_B is that of the mean of the differences. With phi = (phi_even + phi_odd) / 2
for S seeds of N samples, o_i half of what sample i's own weight adds to phi_i, and psi_j for M reference images, also
of the even and of the odd samples,

    Var = 1 / 2 [(1 / S^2) sum_s var phi_s / N + max((1 / S^2) sum_s max(cov(phi_even - o, phi_odd - o)_s, 0) / N, e)]
          + max(cov_j(mean_s psi_even, mean_s psi_odd), 0) / M,
    e = var_j(mean_s (psi_even - psi_odd) / 2) / M.

Near a perfect sampler phi is noise alone: of the samples themselves, which its two halves do not share and whose
variance phi has twice, and of samples and reference images together, which both halves of phi share and psi must not
count again. e is the variance of the latter, as psi shows it: the halves of phi show less where N is a few times the
number of features. phi_i - o_i is what the distance loses without sample i. The first sum keeps o: by chance it makes
up for what each sample's part in the covariance takes off the variance of second order, so that perfect samplers hold
the level. Levels and power are simulated in ``benchmarks/significance.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc, ndtr, stdtr, stdtrit

from analysis.records.arrays import CellTerms, Floats, Terms

CRITICAL = 1.96  # two-sided 5 %
LEVEL = 0.05  # of every family of tests, after Holm's correction
DETECTABLE = 2.80  # standard errors: seen with a chance of 80 % at a two-sided level of 5 %
FEWEST_SEEDS = 5  # of a t-test


@dataclass(frozen=True)
class Comparison:
    """The difference of two models' distances to the reference, first less second.

    Attributes:
        delta: the difference; below 0 the first model is closer.
        error: its standard error.
        seeds: number of seeds that both were run with.
        farthest: the larger of the two Frechet distances, mean over seeds; NaN of other distances.
        distance: ``frechet``, or ``kernel`` (squared) where a cell has no influence functions of the former: N / 2 does
            not exceed the number of features, or the cell was scored before they were recorded; or ``stratified``.
        paired: whether the samples shared their noise under every seed; else both sides' errors add up.
    """

    delta: float
    error: float
    seeds: int
    distance: str = "frechet"
    paired: bool = True
    farthest: float = math.nan

    @property
    def z(self) -> float:
        """Return Delta in standard errors; 0 where the two are the same samples."""
        return self.delta / self.error if self.error > 0 else 0.0


def distance_error(terms: Terms) -> float | None:
    """Return the standard error of a model's mean Frechet distance over seeds, None where a cell has no terms for it.

    It is the error about the distance's expectation at this N. What a finite N adds to the distance is no part of it.
    """
    cells = [*terms.values()]
    influences = _influences(cells)
    return None if influences is None else _frechet_error([[one] for one in influences], _of_reference(cells))


def compare(first: Terms, second: Terms) -> Comparison | None:
    """Compare two models over the seeds both were run with, equal weight a seed; None where they share none.

    Cells of different N are never compared: the distance depends on N. Loops that began from other noise are
    compared as independent samples.
    """
    seeds = [seed for seed in sorted(first.keys() & second.keys()) if first[seed].samples == second[seed].samples]
    pairs = [(first[seed], second[seed]) for seed in seeds if first[seed].samples]
    return _compare_frechet(pairs) or compare_kernels(pairs)


def _compare_frechet(pairs: Sequence[tuple[CellTerms, CellTerms]]) -> Comparison | None:
    firsts, seconds = [a for a, _ in pairs], [b for _, b in pairs]
    influences = _influences(firsts + seconds)
    distances = [(a.distance, b.distance) for a, b in pairs if a.distance is not None and b.distance is not None]
    if influences is None or len(distances) < len(pairs):
        return None
    both = zip(influences[: len(pairs)], influences[len(pairs) :], strict=True)
    sides = [[x - y] if a.shares_noise(b) else [x, y] for (a, b), (x, y) in zip(pairs, both, strict=True)]
    error = _frechet_error(sides, _of_reference(firsts, seconds))
    first, second = map(float, np.mean(distances, axis=0))
    return Comparison(first - second, error, len(pairs), "frechet", _are_paired(pairs), max(first, second))


def compare_kernels(pairs: Sequence[tuple[CellTerms, CellTerms]]) -> Comparison | None:
    """Compare squared kernel distances, mean(within) - 2 mean(cross) but for a constant of the reference.

    With p_i = (within_i - cross_i) of the first less that of the second, over even and over odd partners, and w_sj the
    difference of mean kernels of reference image j with even and with odd samples,
    Var = (1 / S^2) sum_s 2 (var p_s + max(cov(p_even, p_odd)_s, 0)) / N
    + 4 max(cov_j(mean_s w_even, mean_s w_odd), 0) / M.
    Records without the partners' halves have 4 var(p) / N instead, which errs on the safe side near perfect samplers.

    Args:
        pairs: terms of both models, one entry a seed.

    Returns:
        The comparison, None where a cell has no kernel terms.
    """
    deltas, variances, references = [], [], []
    for a, b in pairs:
        if a.kernel is None or b.kernel is None:
            return None
        deltas.append(float((a.kernel - b.kernel).mean(axis=0) @ (1, -2)))
        if a.shares_noise(b):
            within = None if a.within is None or b.within is None else a.within - b.within
            variances.append(_kernel_spread(a.kernel - b.kernel, within))
        else:
            variances.append(_kernel_spread(a.kernel, a.within) + _kernel_spread(b.kernel, b.within))
        if (
            a.within is not None
            and b.within is not None
            and a.kernel_reference is not None
            and b.kernel_reference is not None
        ):
            references.append(a.kernel_reference - b.kernel_reference)
    if not pairs:
        return None
    variance = sum(variances) / len(pairs) ** 2
    if len(references) == len(pairs):
        w = np.mean(references, axis=0)
        variance += 4 * max(_covariance(w), 0) / (pairs[0][0].pooled_n or len(w))
    return Comparison(float(np.mean(deltas)), math.sqrt(variance), len(pairs), "kernel", _are_paired(pairs))


def _kernel_spread(kernel: Floats, within: Floats | None) -> float:
    """Return the variance that samples give a squared kernel distance, or the difference of two on shared noise."""
    p = kernel @ (1, -1)
    if within is None:
        return float(4 * p.var(ddof=1) / len(p))
    return float(2 * (p.var(ddof=1) + max(_covariance(within - kernel[:, 1:]), 0)) / len(p))


def _are_paired(pairs: Sequence[tuple[CellTerms, CellTerms]]) -> bool:
    return all(a.shares_noise(b) for a, b in pairs)


def compare_stratified(first: Terms, second: Terms) -> Comparison | None:
    """Compare Frechet distances at the reference's class shares, over shared seeds; None where a cell has none.

    With u the terms of S seeds, Var = (1 / S^2) sum_s var(u_A - u_B)_s / N, on shared noise.
    """
    deltas, variances = [], []
    for seed in sorted(first.keys() & second.keys()):
        a, b = first[seed], second[seed]
        if a.stratified is None or b.stratified is None or len(a.stratified) != len(b.stratified):
            return None
        if a.stratified_distance is None or b.stratified_distance is None:
            return None
        deltas.append(a.stratified_distance - b.stratified_distance)
        sides = [a.stratified - b.stratified] if a.shares_noise(b) else [a.stratified, b.stratified]
        variances.append(sum(side.var(ddof=1) for side in sides) / len(a.stratified))
    if not deltas:
        return None
    return Comparison(float(np.mean(deltas)), math.sqrt(sum(variances)) / len(deltas), len(deltas), "stratified")


@dataclass(frozen=True)
class ChiSquared:
    """A chi-squared test: its statistic, degrees of freedom, and p."""

    statistic: float
    freedom: int

    @property
    def p(self) -> float:
        """Return the chance of a larger statistic."""
        return float(chdtrc(self.freedom, self.statistic)) if self.freedom else 1.0


def compare_shares(counts: Floats, reference: Floats) -> ChiSquared:
    """Test whether samples have the reference's class proportions (Pearson's test of homogeneity).

    Both are samples: with n_k and m_k images of class k, N and M in all, and p_k = (n_k + m_k) / (N + M),
    chi2 = sum_k (n_k - N p_k)^2 / (N p_k) + (m_k - M p_k)^2 / (M p_k), of K - 1 degrees of freedom.

    Args:
        counts: n, [K].
        reference: m, [K].
    """
    table = np.stack([counts, reference])[:, (counts + reference) > 0]
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return ChiSquared(float(((table - expected) ** 2 / expected).sum()), table.shape[1] - 1)


def compare_classes(first: Terms, second: Terms) -> ChiSquared | None:
    """Test whether two models on shared noise have the same class proportions (Stuart 1955, Maxwell 1970).

    With M_kl the number of places where the first model shows class k and the second class l, d the differences of the
    margins and V = diag(row + column margins) - M - M', chi2 = d' V^-1 d over all classes but one. Places of equal
    classes say nothing. None where a cell has no classes, or the noise was not shared.
    """
    pairs = [(first[seed].classes, second[seed].classes) for seed in first.keys() & second.keys()]
    places = [(a, b) for a, b in pairs if a is not None and b is not None and len(a) == len(b)]
    shared = all(first[seed].shares_noise(second[seed]) for seed in first.keys() & second.keys())
    if not places or len(places) < len(pairs) or not shared:
        return None
    a, b = (np.concatenate(side).astype(int) for side in zip(*places, strict=True))
    joint = np.zeros((max(a.max(), b.max()) + 1,) * 2)
    np.add.at(joint, (a, b), 1)
    difference = joint.sum(axis=1) - joint.sum(axis=0)
    cov = np.diag(joint.sum(axis=1) + joint.sum(axis=0)) - joint - joint.T
    # The rows of V sum to 0: its inverse within the classes that differ anywhere is the pseudo-inverse.
    rank = int(np.linalg.matrix_rank(cov))
    return ChiSquared(float(difference @ np.linalg.pinv(cov, hermitian=True) @ difference), rank)


def _influences(cells: Sequence[CellTerms]) -> list[Floats] | None:
    """Return [N, 3] of each cell: phi, phi_even - o and phi_odd - o; None where there is no cell, or one without terms.

    Where a record has no o, none is taken off any.
    """
    halves = [cell.frechet for cell in cells if cell.frechet is not None]
    if not halves or len(halves) < len(cells):
        return None
    parts = [cell.frechet_self for cell in cells if cell.frechet_self is not None]
    if len(parts) < len(cells):
        parts = [np.zeros(len(half)) for half in halves]
    both = zip(halves, parts, strict=True)
    return [np.column_stack([half.mean(axis=1), half - part[:, None]]) for half, part in both]


def _frechet_error(influences: Sequence[Sequence[Floats]], reference: tuple[float, float]) -> float:
    """Return the standard error of a mean over seeds.

    Args:
        influences: [N, 3] of each seed, from :func:`_influences`, one entry a side.
        reference: from :func:`_of_reference`.
    """
    sides = [one for seed in influences for one in seed]
    every = sum(one[:, 0].var(ddof=1) / len(one) for one in sides) / len(influences) ** 2
    common = sum(max(_covariance(one[:, 1:]), 0) / len(one) for one in sides) / len(influences) ** 2
    alone, together = reference
    return math.sqrt((every + max(common, together)) / 2 + alone)


def _covariance(halves: Floats) -> float:
    return float(np.cov(halves, rowvar=False)[0, 1])


def _of_reference(first: Sequence[CellTerms], second: Sequence[CellTerms] = ()) -> tuple[float, float]:
    """Return the variances that the reference has alone, and together with samples; 0 where it is no sample.

    All seeds share it.
    """
    rows = [cell.frechet_reference for cell in first]
    others = [cell.frechet_reference for cell in second]
    n = first[0].reference_n
    if n is None or any(row is None or len(row) < 2 for row in (*rows, *others)):
        return 0.0, 0.0
    psi = np.mean([row for row in rows if row is not None], axis=0)
    if others:
        psi = psi - np.mean([row for row in others if row is not None], axis=0)
    return max(_covariance(psi), 0) / n, float(np.diff(psi).var(ddof=1)) / (4 * n)


def p_value(z: ArrayLike) -> NDArray[np.float64]:
    """Return the two-sided p of normal z."""
    return np.asarray(2 * ndtr(-np.abs(np.asarray(z, dtype=float))))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Return p values adjusted for their number (Holm 1979): rejecting those below a level errs once with that chance.

    The k-th smallest of m, k from 0, is multiplied by m - k, and is at least the one before. NaN stays, uncounted.
    """
    values = np.asarray(p, dtype=float)
    adjusted = np.full(len(values), np.nan)
    order = np.argsort(values, kind="stable")[: np.count_nonzero(values == values)]  # NaN is sorted last
    scaled = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def rank_intervals(names: Sequence[str], z: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    """Return the lowest and the highest rank that each name may have: rank 1 is the smallest.

    ``low`` is one more than the number of names that are smaller for certain, ``high`` the number of names less those
    that are greater for certain: by the tests of all pairs at level .05 with Holm's correction, so that all intervals
    hold at once with a chance of .95 (after Mogstad, Romano, Shaikh & Wilhelm 2024).

    Args:
        names: what is ranked.
        z: first minus second in standard errors, one entry a pair that was compared.

    Returns:
        Columns ``low`` and ``high`` by name, of the names that were compared with any other.
    """
    pairs = [pair for pair in z if set(pair) <= set(names)]
    adjusted = holm(p_value([z[pair] for pair in pairs]))
    certain = [pair if z[pair] < 0 else pair[::-1] for pair, p in zip(pairs, adjusted, strict=True) if p < LEVEL]
    compared = [name for name in names if any(name in pair for pair in pairs)]
    below, above = Counter(greater for _, greater in certain), Counter(smaller for smaller, _ in certain)
    rows = {name: (1 + below[name], len(compared) - above[name]) for name in compared}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["low", "high"])


def paired_t(first: NDArray[np.float64], second: NDArray[np.float64]) -> dict[str, object]:
    """Return the paired t-test of values by seed: the mean difference with its 95 % interval, t, p, and the seeds.

    With mean m and standard deviation s of n differences, t = m / (s / sqrt(n)) has Student's distribution with n - 1
    degrees of freedom. ``detectable`` is the difference seen with a chance of 80 %. ``reason`` says why there is no
    test.
    """
    n = len(first)
    row: dict[str, object] = dict.fromkeys(("difference", "low", "high", "t", "p", "detectable"), float("nan"))
    row |= {"seeds": n, "reason": ""}
    if n < FEWEST_SEEDS:
        return row | {"reason": f"{FEWEST_SEEDS} shared seeds are needed, not {n}"}
    differences = first - second
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        return row | {"difference": mean, "reason": "the difference is the same under every seed"}
    error = float(differences.std(ddof=1)) / np.sqrt(n)
    half, power = (float(stdtrit(n - 1, q)) * error for q in (0.975, 0.8))
    t = mean / error
    values = {"difference": mean, "low": mean - half, "high": mean + half, "t": t, "p": 2 * stdtr(n - 1, -abs(t))}
    values["detectable"] = half + power
    return row | {name: float(value) for name, value in values.items()}
