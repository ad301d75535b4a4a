"""Several corrections in a row: the order in which each of their hooks comes, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.diffusion.corrections import (
    Correction,
    EpsilonScaling,
    InOrder,
    PixelCorrection,
    VarianceNormalisation,
    X0Scaling,
)
from bench.diffusion.types import CLEAN, Call, Level, Prediction


def test_predictions_are_changed_in_the_stated_order():
    # eps = .5 at (alpha, sigma) = (.6, .8) and x = 1. A divisor of 2 in x0 alone, one of 4 in both:
    # first x0, then both: x0 and eps are made anew from .5 / 4 = .125: x0 = (1 - .8 * .125) / .6 = 1.5.
    # First both, then x0 of what is .125 now: .0625, x0 = (1 - .8 * .0625) / .6 = 1.583333, eps = .125.
    level = Level(1, 0.6, 0.8)
    path, x = (level, CLEAN), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    in_x0, both = X0Scaling(path, 2.0), EpsilonScaling(path, 4.0)
    given = Prediction(0.5 * x, (x - 0.8 * 0.5 * x) / 0.6), x, Call(0, level, CLEAN, True)
    for row, x0 in (([in_x0, both], 1.5), ([both, in_x0], 1.583333)):
        got = InOrder(row).prediction(*given)
        assert (got[0].item(), got[1].item()) == (pytest.approx(x0, abs=1e-6), 0.125)


def test_states_are_changed_in_the_stated_order():
    # x_next = (3, 1), x0 = (0, 0), reached level (.8, .6), variance wanted .64 * 1 + .36 = 1.
    # First x += .5 (x - x0) = (4.5, 1.5), of std 3 / sqrt(2): scaled to (2.121320, .707107).
    # First scaled by 1 / sqrt(2) to (2.121320, .707107), then one and a half times that: (3.181981, 1.060660).
    path = (Level(2, 0.6, 0.8), Level(1, 0.8, 0.6), CLEAN)
    x = torch.tensor([3.0, 1.0], dtype=torch.float64).view(1, 1, 1, 2)
    away, scaled = PixelCorrection(path, 0.5), VarianceNormalisation(path, data_variance=1.0, cutoff=0)
    given = x, Prediction(x, 0 * x), Call(0, path[0], path[1], True)
    for row, wanted in (([away, scaled], [2.121320, 0.707107]), ([scaled, away], [3.181981, 1.060660])):
        assert InOrder(row).after(*given).flatten().tolist() == pytest.approx(wanted, abs=1e-6)


class Double(Correction):
    """Doubles the state, moves the level to t = 7, and shows the network twice what it is given."""

    def before(self, x, call):
        return 2 * x, replace(call, level=Level(7, 0.6, 0.8))

    def ask(self, network, x, level):
        return network(2 * x, level)


class AddLevel(Correction):
    """Adds the level's t to the state, and one to what the network is shown."""

    def before(self, x, call):
        return x + call.level.t, call

    def ask(self, network, x, level):
        return network(x + 1, level)


def test_states_and_levels_are_moved_in_the_stated_order():
    # From x = 3 at t = 5: doubled and moved, then t added: 6 + 7. First 3 + 5, then doubled: 16.
    x, call = torch.tensor(3.0), Call(0, Level(5, 0.8, 0.6), CLEAN, True)
    assert InOrder([Double(), AddLevel()]).before(x, call)[0].item() == 13
    assert InOrder([AddLevel(), Double()]).before(x, call)[0].item() == 16


def test_the_last_one_asks_next_to_the_network():
    # The first is asked first and asks through the second: 2 x, then + 1. The other way round: x + 1, then doubled.
    seen = []

    def recording(x, level):
        seen.append(x.item())
        return Prediction(x, x)

    x, level = torch.tensor(3.0), Level(5, 0.8, 0.6)
    for row in ([Double(), AddLevel()], [AddLevel(), Double()], [Double(), InOrder([AddLevel(), Double()])]):
        InOrder(row).ask(recording, x, level)
    assert seen == [7, 8, 14]
