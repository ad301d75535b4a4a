"""The stopwatch over the beginning of a walk, on a clock of our own."""

from collections import namedtuple

import pytest
import torch

from bench.suite import timing
from bench.suite.plan import Unit
from bench.suite.timing import seconds_a_call, seconds_a_step

CPU = torch.device("cpu")
Rule = namedtuple("Rule", "stages")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


class Walks:
    """Stands in for a cell's walks: every network call takes its time, in the order given."""

    device = CPU

    def __init__(self, clock, seconds, progress, stages=1):
        self.clock, self.seconds, self.progress, self.solver = clock, seconds, progress, Rule(stages)
        self.made = 0

    def compute(self, unit):
        for seconds in self.seconds:
            self.clock.now += seconds
            self.made += 1
            self.progress(4)


def watched(clock, seconds, stages=1):
    made = []

    def make(progress):
        made.append(Walks(clock, seconds, progress, stages))
        return made[-1]

    return seconds_a_step(make, Unit("free", 0, 4)), [walks.made for walks in made]


def test_the_first_call_warms_up_and_the_median_counts(clock):
    assert watched(clock, [5.0, 0.1, 0.1, 0.3, 0.1])[0] == pytest.approx(0.1)


def test_a_slow_network_is_called_twice(clock):
    assert watched(clock, [9.0, 3.0, 3.0, 3.0]) == (pytest.approx(3.0), [2])


def test_a_fast_one_for_half_a_second_at_most(clock):
    assert watched(clock, [0.1] * 100) == (pytest.approx(0.1), [6])


def test_the_fastest_for_some_calls(clock):
    assert watched(clock, [0.001] * 100) == (pytest.approx(0.001), [31])


def test_both_calls_of_a_step_count(clock):
    # Of Heun's two calls one carries the instruments.
    assert watched(clock, [9.0, *[0.1, 0.2] * 10], stages=2)[0] == pytest.approx(0.15)


def test_a_walk_of_one_step_is_walked_again_when_warm(clock):
    seconds = [2.0]
    walks = []

    def make(progress):
        walks.append(Walks(clock, list(seconds), progress))
        seconds[0] = 0.5
        return walks[-1]

    assert seconds_a_step(make, Unit("free", 0, 4)) == pytest.approx(0.5)
    assert len(walks) == 2


def test_a_call(clock):
    times = iter([7.0, 0.2, 0.1, 0.3])

    def call():
        clock.now += next(times)

    assert seconds_a_call(call, CPU) == pytest.approx(0.2)


def test_a_slow_call_is_made_twice(clock):
    times = iter([7.0, 3.0])

    def call():
        clock.now += next(times)

    assert seconds_a_call(call, CPU) == pytest.approx(3.0)
