"""The Frechet distance between Gaussians fitted to features, by pivoted Cholesky factors in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lapack


def feature_moments(features: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (mean [d], covariance [d, d] with divisor N - 1) of features [N, d], in float64."""
    rows = np.asarray(features, dtype=np.float64)
    return rows.mean(axis=0), np.cov(rows, rowvar=False).reshape(rows.shape[1], rows.shape[1])


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """Return ||mean1 - mean2||^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)) (Dowson & Landau 1982).

    With cov1 = A A^T and cov2 = B B^T, tr (cov1 cov2)^(1/2) is the sum of the singular values of A^T B, so that no
    imaginary part can arise. The factors have as many columns as their covariance has rank, so that no root is taken
    of what rounding leaves of a zero: with fewer images than features the distance is as exact as with many.

    Args:
        mean1: [d].
        cov1: [d, d], symmetric.
        mean2: [d].
        cov2: [d, d], symmetric.

    Returns:
        The squared distance, at least 0 up to rounding.

    Raises:
        ValueError: shapes disagree or a value is not finite.
    """
    m1, m2 = (np.atleast_1d(np.asarray(m, dtype=np.float64)) for m in (mean1, mean2))
    c1, c2 = (np.atleast_2d(np.asarray(c, dtype=np.float64)) for c in (cov1, cov2))
    if m1.shape != m2.shape or c1.shape != c2.shape or c1.shape != (len(m1), len(m1)):
        raise ValueError(
            f"moments of different features: means {m1.shape}, {m2.shape}, covariances {c1.shape}, {c2.shape}"
        )
    if not all(np.isfinite(a).all() for a in (m1, m2, c1, c2)):
        raise ValueError("moments hold values that are not finite")
    cross = _factor(c1).T @ _factor(c2)
    gram = cross @ cross.T if len(cross) <= cross.shape[1] else cross.T @ cross
    trace = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0)).sum()
    return float(np.square(m1 - m2).sum() + np.trace(c1) + np.trace(c2) - 2 * trace)


def _factor(cov: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return A [d, rank] with A A^T = cov; the rank is LAPACK's, pivots below d eps / 2 of the largest are none."""
    packed, pivots, rank, _ = lapack.dpstrf(cov, lower=1)
    factor = np.empty((len(cov), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    return factor


FEWEST_PER_FEATURE = 4
_SIZES = 5
_SUBSETS = 4  # a size: as many as are disjoint at the smallest


def subset_sizes(n: int, features: int) -> list[int]:
    """Return five sizes from max(2 d, n / 4) to n, equispaced in 1/n so that each weighs the same in the regression.

    Raises:
        ValueError: n is below four samples a feature.
    """
    if n < FEWEST_PER_FEATURE * features:
        raise ValueError(f"{features} features need {FEWEST_PER_FEATURE * features} samples, not {n}")
    smallest = max(2 * features, n / 4)
    return [round(float(1 / inverse)) for inverse in np.linspace(1 / smallest, 1 / n, _SIZES)]


def intercept(sizes: NDArray[np.float64], distances: NDArray[np.float64]) -> float:
    """Return the least-squares line's value at 1/n = 0 of one distance a size."""
    slope_and_intercept = np.polyfit(1 / sizes, distances, 1)
    return float(slope_and_intercept[1])


def frechet_infinity(
    samples: NDArray[np.float32], mean: NDArray[np.float64], cov: NDArray[np.float64], seed: int = 0
) -> float:
    """Return the Frechet distance of samples [N, d] to a Gaussian, extrapolated to N = infinity; it may be negative.

    Each size's distance is the mean over four subsets, windows of one random order as far apart as they go: disjoint
    at a quarter of the samples. All samples together are one set and count once.

    Args:
        samples: features, N at least 4 d.
        mean: the reference's, [d].
        cov: the reference's, [d, d].
        seed: of the random orders; the same seed gives the same value.

    Raises:
        ValueError: N is below 4 d.
    """
    n, rng = len(samples), np.random.default_rng(seed)
    sizes = subset_sizes(n, samples.shape[1])
    distances = []
    for size in sizes:
        order, subsets = rng.permutation(n), _SUBSETS if size < n else 1
        windows = [np.roll(order, -(k * n // subsets))[:size] for k in range(subsets)]
        found = [frechet_distance(*feature_moments(samples[rows]), mean, cov) for rows in windows]
        distances.append(np.mean(found))
    return intercept(np.array(sizes, dtype=np.float64), np.array(distances))
