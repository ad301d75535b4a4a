from itertools import pairwise

import numpy as np
import pytest

from bench.suite.tuning.epsilon_scaling import FEWEST, fit

WIDTH = 6
IMAGES = 1400
SENSITIVITY = 1.5  # of the states: they move by this times b - 1, so that the unit is .1 / 1.5


class Drawn:
    """Images whose features have a known distance to the reference, and what was asked for."""

    def __init__(self, lowest, slope=8.0, noise=0.02, seed=0, acts=SENSITIVITY):
        self.lowest, self.slope, self.noise = lowest, slope, noise
        self.seed, self.acts = seed, acts
        self.asked = []

    def __call__(self, b, start, stop):
        self.asked.append((b, start, stop))
        z = np.random.default_rng(self.seed).standard_normal((IMAGES, WIDTH))[start:stop]
        own = np.random.default_rng([self.seed, 1, round(b * 1e4)]).standard_normal((IMAGES, WIDTH))[start:stop]
        features = z + self.noise * own
        features[:, 0] += self.slope * (b - self.lowest)  # |difference of means|^2 is slope^2 (b - lowest)^2
        return z[:, :4].reshape(-1, 1, 2, 2) + self.acts * (b - 1), features.astype(np.float32)

    def fit(self, images=IMAGES):
        return fit(self, np.zeros(WIDTH), np.eye(WIDTH), 1.0, images)


# The mean of the first feature is off by sampling: std 1 / sqrt(share), share being about 430 images a point. The
# vertex is then off by that over the slope, .006; four of them.
TOLERANCE = 4 / np.sqrt(430) / 8


@pytest.mark.parametrize("lowest", [0.9, 0.96, 1.05, 1.1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_known_minimum_is_found(lowest, seed):
    found = Drawn(lowest, seed=seed).fit()
    assert (found.vertex, found.b) == (pytest.approx(lowest, abs=TOLERANCE), found.vertex)


def test_the_unit_is_what_moves_images_by_a_tenth_of_their_spread():
    assert Drawn(1.05).fit().unit == pytest.approx(0.1 / SENSITIVITY, abs=5e-5)  # rounded to four digits


@pytest.mark.parametrize("images", [FEWEST, 700, IMAGES])
@pytest.mark.parametrize("lowest", [0.9, 1.0, 1.1])
def test_no_image_is_sampled_twice_and_the_budget_is_kept(images, lowest):
    drawn = Drawn(lowest)
    found = drawn.fit(images)
    assert Drawn(lowest).fit(images) == found  # a fit repeats
    counted = sum(stop - start for _, start, stop in drawn.asked)
    assert found.images == counted <= images
    assert counted > images - 3  # nothing is left but what does not fill three points
    for b in {b for b, *_ in drawn.asked}:
        ranges = sorted((start, stop) for other, start, stop in drawn.asked if other == b)
        assert ranges[0][0] == 0
        assert all(before[1] == after[0] for before, after in pairwise(ranges))


def test_a_curve_that_is_flat_gives_1():
    found = Drawn(1.0, slope=0.0, noise=0.0).fit()
    assert found.b == 1.0
    assert found.slope == pytest.approx(0, abs=1e-9)  # equal features at all divisors
    still = Drawn(1.0, slope=0.0, noise=0.0, acts=0.0).fit()
    assert (still.unit, still.b) == (0.2, 1.0)  # what moves nothing has the largest unit


def test_noise_alone_is_told_from_a_gain_by_the_slope():
    # Independent noise at each divisor: the slope exceeds half its standard error in 62 % of trials, so that more than
    # 28 of 30 have a probability of 1e-5.
    found = [Drawn(1.0, slope=0.0, seed=seed, noise=1.0).fit() for seed in range(30)]
    assert sum(fitted.b != 1.0 for fitted in found) <= 28
    for fitted in found:
        told = abs(fitted.slope) > fitted.error / 2 and fitted.gain > 0.01
        assert fitted.b == (fitted.vertex if told else 1.0)


def test_a_gain_below_a_hundredth_of_the_distance_is_none():
    # The mean of a second feature is off by 10 at any divisor, so that the distance is 100; the minimum gains .16.
    drawn = Drawn(1.05, noise=0.0)

    def far(b, start, stop):
        states, features = drawn(b, start, stop)
        return states, features + np.float32([0, 10, 0, 0, 0, 0])

    found = fit(far, np.zeros(WIDTH), np.eye(WIDTH), 1.0, IMAGES)
    assert found.vertex == pytest.approx(1.05, abs=TOLERANCE)
    assert 0 < found.gain < 0.01
    assert found.b == 1.0


@pytest.mark.parametrize(("lowest", "side"), [(0.2, -1), (3.0, 1)])
def test_a_minimum_beyond_reach_gives_the_last_point(lowest, side):
    found = Drawn(lowest).fit()
    assert found.b == pytest.approx(1 + side * 2 * found.unit, abs=1e-3)
    assert found.b in [b for b, _ in found.points]


def test_points_are_three_equal_steps_with_1_among_them():
    for lowest in (0.9, 1.0, 1.1):
        divisors = [b for b, _ in Drawn(lowest).fit().points]
        assert 1.0 in divisors
        assert np.diff(divisors) == pytest.approx(np.diff(divisors)[0], abs=1.5e-4)  # rounded to four digits


def test_features_without_spread_are_left_out():
    drawn = Drawn(1.05)
    cov = np.diag([1.0] * WIDTH + [0.0])

    def wider(b, start, stop):
        states, features = drawn(b, start, stop)
        return states, np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1)

    found = fit(wider, np.r_[np.zeros(WIDTH), 1.0], cov, 1.0, IMAGES)
    assert found.b == pytest.approx(1.05, abs=TOLERANCE)


def test_more_features_than_images_are_no_obstacle():
    width = 600

    def wide(b, start, stop):
        rows = np.random.default_rng(0).standard_normal((IMAGES, width))[start:stop]
        rows[:, -1] = 3 * rows[:, -1] + 30 * (b - 1.05)  # the leading direction
        return rows[:, :4] + SENSITIVITY * (b - 1), rows

    found = fit(wide, np.zeros(width), np.diag([1.0] * (width - 1) + [9.0]), 1.0, FEWEST)
    assert np.isfinite(found.slope)
    assert found.b == pytest.approx(1.05, abs=0.03)  # mean off by 3 / sqrt(130) over 30, three of them


def test_too_few_images_are_refused_in_one_line():
    with pytest.raises(ValueError, match="at least 512 images, not 100") as caught:
        Drawn(1.0).fit(100)
    assert "\n" not in str(caught.value)
