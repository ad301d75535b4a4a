"""Per-sample terms of the kernel distance, from which models are compared pairwise on shared seeds.

Polynomial kernel of KID (Binkowski et al. 2018), k(x, y) = (x.y / d + 1)^3. For samples a_i and references r_j the
squared distance, up to a constant of the reference alone, is mean(within) - 2 mean(cross).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["kernel_terms"]

_BLOCK = 256


def kernel_terms(features: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return [N, 2]: within_i = mean of k(a_i, a_j) over j != i, and cross_i = mean of k(a_i, r_j).

    Work is O(N (N + M) d) in blocks, so memory grows with N + M only.

    Args:
        features: [N, d], N at least 2.
        reference: [M, d].
    """
    a, r = features.astype(np.float64), reference.astype(np.float64)
    scale = 1.0 / a.shape[1]
    own = ((a**2).sum(1) * scale + 1) ** 3
    within, cross = np.empty(len(a)), np.empty(len(a))
    for start in range(0, len(a), _BLOCK):
        rows = slice(start, start + _BLOCK)
        within[rows] = (((a[rows] @ a.T) * scale + 1) ** 3).sum(1)
        cross[rows] = (((a[rows] @ r.T) * scale + 1) ** 3).mean(1)
    return np.stack([(within - own) / (len(a) - 1), cross], axis=1)
