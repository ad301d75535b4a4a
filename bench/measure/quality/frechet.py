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

    With cov1 = A A^T and cov2 = B B^T, tr (cov1 cov2)^(1/2) is the sum of the singular values of A^T B, which are real.
    A factor has as many columns as its covariance has rank. So rounding errors of zero eigenvalues have no root, and
    the distance is as exact with fewer images than features as with many.

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
    cross = _factor(c1).T @ _factor(c2)  # A^T B
    gram = cross @ cross.T if len(cross) <= cross.shape[1] else cross.T @ cross
    trace = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0)).sum()
    return float(np.square(m1 - m2).sum() + np.trace(c1) + np.trace(c2) - 2 * trace)


def _factor(cov: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return A [d, rank] with A A^T = cov; LAPACK ends the rank at pivots below d eps / 2 of the largest."""
    packed, pivots, rank, _ = lapack.dpstrf(cov, lower=1)
    factor = np.empty((len(cov), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    return factor
