"""The rule behind ``adm-es-fit``: a uniform divisor of eps from several hundred images, in place of a sweep.

1. The unit: half of the images move by more than a tenth of the data's standard deviation when b goes from 1 to
   1 + unit. The move is linear in b - 1 and hardly noisy, so that a few images tell how far apart two divisors must be
   to be distinguished: about .05 with 10 ancestral steps, .015 with 10 of DDIM.
2. Distances at 1 - unit, 1 and 1 + unit, all on the same noise. If the minimum of the parabola through them is nearer
   to an end than to the middle, the three points move by one unit to that side.
3. What is left of the images goes to the three points. The vertex of their parabola, if it is a minimum between them,
   else the best of them, is the divisor.
4. If the parabola's slope at b = 1 is not larger than half its standard error (jackknife over groups of images), or the
   parabola gains less than a hundredth of the distance, no gain is distinguished from noise, and the divisor is 1. The
   test is lenient, since its errors do not weigh the same: a divisor read off a flat curve costs little, a missed one
   all there was to gain.

The distance is that of Frechet between features divided by the square root of the reference's standard deviation along
each of its principal directions, of which the leading ones count, one for every eight images. Classifier features
spread most between classes, and how many images of which class are drawn is luck, which a plain distance of few images
mostly measures; divided by the whole standard deviation they are less noisy still, but prefer smaller divisors than
the plain distance does. docs/scaling.md compares the rule with a sweep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.measure.quality.frechet import feature_moments, frechet_distance

Matrix = NDArray[np.float64]
# (b, start, stop) to what images start..stop-1 of the shared noise end as under divisor b: final states [n, ...] in the
# data's scale, and features [n, d]. Equal arguments give equal arrays.
Sampled = Callable[[float, int, int], tuple[NDArray[np.floating], NDArray[np.floating]]]

IMAGES = 1456  # less than a tenth of a sweep of 15 divisors with 1024 images each
FEWEST = 512  # images: with fewer there is nothing left for the three points
_PILOT, _NUDGE = 64, 0.02  # images, and the change of b, that tell the unit
_MOVE = 0.1  # of the data's standard deviation: how far half of the images move in a unit
_LARGEST = 0.2  # unit, where b hardly acts
_FIRST = 1 / 11  # of the images, at each of the first three points
_PER_DIRECTION = 8  # images
_POWER = 0.5  # of the standard deviation
_GROUPS = 16  # of the jackknife
_LEAST_SLOPE = 0.5  # standard errors of the slope
_LEAST_GAIN = 0.01  # share of the distance
_DIGITS = 4  # of b


@dataclass(frozen=True)
class Fitted:
    """A fitted divisor.

    Attributes:
        b: the divisor, 1.0 where no gain is distinguished from noise.
        vertex: what it would be without that test.
        slope, error: of the parabola at b = 1, per unit, and its standard error.
        gain: by how much the parabola is lower at the vertex, as a share of the distance at 1.
        unit: distance of neighbouring points.
        points: (b, distance) of the parabola's three points, in the rule's own distance.
        images: how many were sampled; times the network calls of an image, the rule's cost.
    """

    b: float
    vertex: float
    slope: float
    error: float
    gain: float
    unit: float
    points: tuple[tuple[float, float], ...]
    images: int


class _Flattened:
    """Frechet distances to a reference, of features whose principal directions differ less in spread."""

    def __init__(self, mean: Matrix, cov: Matrix) -> None:
        values, vectors = np.linalg.eigh(cov)
        spread = values > values.max() * 1e-9  # a constant feature has no scale
        values, vectors = values[spread][::-1], vectors[:, spread][:, ::-1]  # leading directions first
        self.map = vectors * values ** (-_POWER / 2)
        self.mean, self.variance = mean @ self.map, values ** (1 - _POWER)

    def distance(self, features: NDArray[np.floating]) -> float:
        """Return the distance of features [n, d] along as many directions as n images can tell."""
        count = min(max(len(features) // _PER_DIRECTION, 1), len(self.mean))
        rows = np.asarray(features, dtype=np.float64) @ self.map[:, :count]
        return frechet_distance(*feature_moments(rows), self.mean[:count], np.diag(self.variance[:count]))


class _Images:
    """What divisors made of the shared noise, each image sampled once; ``count`` of them so far."""

    def __init__(self, sampled: Sampled) -> None:
        self.sampled, self.count = sampled, 0
        self._features: dict[float, NDArray[np.floating]] = {}

    def sampled_so_far(self, b: float) -> int:
        """Return how many images of a divisor were sampled."""
        return len(self._features.get(b, ()))

    def states(self, b: float, stop: int) -> Matrix:
        """Return the final states [stop, pixels] of the first images, keeping their features."""
        states, self._features[b] = self.sampled(b, 0, stop)
        self.count += stop
        return np.asarray(states, dtype=np.float64).reshape(stop, -1)

    def features(self, b: float, stop: int) -> NDArray[np.floating]:
        """Return the features [stop, d] of the first images."""
        count = self.sampled_so_far(b)
        if count < stop:
            more = self.sampled(b, count, stop)[1]
            self._features[b] = np.concatenate([self._features[b], more]) if count else more
            self.count += stop - count
        return self._features[b][:stop]


def fit(sampled: Sampled, mean: Matrix, cov: Matrix, spread: float, images: int = IMAGES) -> Fitted:
    """Fit a uniform divisor of eps to a model, sampler and step count.

    Args:
        sampled: draws images under a divisor.
        mean: of the data's features, [d].
        cov: of the data's features, [d, d], with divisor N - 1.
        spread: the data's standard deviation, the root of the mean over pixels of the variance over images.
        images: the most to sample, all divisors together.

    Raises:
        ValueError: fewer images than :data:`FEWEST`.
    """
    if images < FEWEST:
        raise ValueError(f"a fit needs at least {FEWEST} images, not {images}; give it more")
    drawn, flattened = _Images(sampled), _Flattened(mean, cov)
    unit = _unit(drawn, spread)
    nodes = [round(1 + k * unit, _DIGITS) for k in (-1, 0, 1)]
    first = max(round(images * _FIRST), 4 * _PER_DIRECTION)
    towards = _vertex(nodes, [flattened.distance(drawn.features(b, first)) for b in nodes])
    side = round((towards - 1) / unit)
    nodes = [round(1 + (k + side) * unit, _DIGITS) for k in (-1, 0, 1)]
    share = (images - drawn.count + sum(drawn.sampled_so_far(b) for b in nodes)) // len(nodes)
    features = [drawn.features(b, share) for b in nodes]
    distances = [flattened.distance(rows) for rows in features]
    vertex = _vertex(nodes, distances)
    slope, error = _slope(flattened, nodes, features)
    curve = _parabola(nodes, distances)
    gain = float(1 - np.polyval(curve, vertex - 1) / curve[2])
    b = vertex if abs(slope) > _LEAST_SLOPE * error and gain > _LEAST_GAIN else 1.0
    points = tuple(zip(nodes, distances, strict=True))
    return Fitted(b, vertex, slope * unit, error * unit, gain, unit, points, drawn.count)


def _unit(drawn: _Images, spread: float) -> float:
    """Return the change of b that moves the median image by a tenth of the spread."""
    plain = drawn.states(1.0, _PILOT)
    moved = np.square(drawn.states(1 + _NUDGE, _PILOT) - plain).mean(axis=1)
    move = math.sqrt(float(np.median(moved))) / _NUDGE  # a unit of b
    return round(min(_MOVE * spread / move, _LARGEST) if move else _LARGEST, _DIGITS)


def _parabola(nodes: Sequence[float], distances: Sequence[float]) -> NDArray[np.float64]:
    """Return the coefficients in b - 1, the highest first."""
    return np.polyfit(np.array(nodes) - 1, distances, 2)


def _vertex(nodes: Sequence[float], distances: Sequence[float]) -> float:
    """Return the minimum of the parabola through three points, or the best point where it has none between them."""
    square, slope, _ = _parabola(nodes, distances)
    lowest = 1 - slope / (2 * square) if square > 0 else math.nan
    return round(float(lowest if nodes[0] <= lowest <= nodes[-1] else nodes[int(np.argmin(distances))]), _DIGITS)


def _slope(
    flattened: _Flattened, nodes: Sequence[float], features: Sequence[NDArray[np.floating]]
) -> tuple[float, float]:
    """Return the parabola's slope at b = 1, and the jackknife's standard error of it."""
    group = np.arange(len(features[0])) % _GROUPS

    def slope(rows_used: NDArray[np.bool_]) -> float:
        return float(_parabola(nodes, [flattened.distance(rows[rows_used]) for rows in features])[1])

    left_out = np.array([slope(group != k) for k in range(_GROUPS)])
    return slope(group >= 0), math.sqrt((_GROUPS - 1) * float(left_out.var()))
