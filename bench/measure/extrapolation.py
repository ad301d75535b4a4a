"""The Frechet distance at infinitely many samples, by linear regression on 1/n (Chong & Forsyth 2020, FD-infinity).

A Frechet distance from n samples is too large by about c / n, with c a property of the model, so that equal n does not
make two models comparable. The law holds from about four samples a feature on (d = 64: N FD is 10.8, 10.3, 10.1,
10.0 at N = 100, 500, 1000, 10000); below that an extrapolation leaves half of the bias or more and is refused. The
reference's own finite size is not extrapolated: it is the same for every model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.measure.quality.frechet import feature_moments, frechet_distance

__all__ = ["FEWEST_PER_FEATURE", "frechet_infinity", "intercept", "subset_sizes"]

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
