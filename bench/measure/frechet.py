"""The Frechet distance between Gaussians fitted to features, by symmetric eigendecomposition in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["feature_moments", "frechet_distance"]


def feature_moments(features: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (mean [d], covariance [d, d] with divisor N - 1) of features [N, d], in float64."""
    rows = np.asarray(features, dtype=np.float64)
    return rows.mean(axis=0), np.cov(rows, rowvar=False).reshape(rows.shape[1], rows.shape[1])


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """Return ||mean1 - mean2||^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)) (Dowson & Landau 1982).

    tr (cov1 cov2)^(1/2) is the sum of the square roots of the eigenvalues of A^T cov2 A with A A^T = cov1, a
    symmetric positive semi-definite matrix, so that no imaginary part can arise and rank deficiency does no harm.

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
    values, vectors = np.linalg.eigh(c1)
    root = vectors * np.sqrt(values.clip(min=0))
    cross = np.linalg.eigvalsh(root.T @ c2 @ root).clip(min=0)
    return float(np.square(m1 - m2).sum() + np.trace(c1) + np.trace(c2) - 2 * np.sqrt(cross).sum())
