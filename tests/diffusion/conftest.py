import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.diffusion.samplers import walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM, Ancestral
from bench.diffusion.types import Prediction

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Reader of the stored reference numbers: file name without suffix to a dict of arrays."""

    def read(name):
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)

    return read


class StandIn:
    """The closed-form network behind the golden trajectories; counts its calls."""

    def __init__(self, learned):
        self.learned, self.levels = learned, []

    def __call__(self, x, level, cond=None):
        self.levels.append(level)
        eps = torch.tanh(0.9 * x + 0.2 * math.sin(level.t / 50))
        fraction = torch.cos(x + level.t / 100) if self.learned else None
        return Prediction(eps, (x - level.sigma * eps) / level.alpha, fraction)


class StoredDraws:
    """Golden noise in place of the stream; noise[0] belongs to the noisiest step."""

    def __init__(self, noise):
        self.noise = noise

    def normal(self, purpose, step, shape):
        return self.noise[len(self.noise) - 1 - step]


def _replay(reference, schedule, learned, clip, mode, correction=None):
    """Return the states after each step, [20, ...], walked from the reference's start with its noise."""
    path, made = levels(schedule, 1000, 20), StandIn(learned)
    solver = {"ddim0": DDIM(0.0), "ddim1": DDIM(1.0)}.get(mode, Ancestral("learned" if learned else "fixed-small"))
    start, draws = torch.tensor(reference["x"]), StoredDraws(torch.tensor(reference["noise"]))
    steps = walk(made, path, start, solver, draws, clip=clip, correction=correction(path) if correction else None)
    return torch.stack([step.x_next for step in steps]).numpy()


@pytest.fixture(scope="session")
def replay():
    return _replay


@pytest.fixture
def stand_in():
    return StandIn


@pytest.fixture(scope="session")
def step_errors():
    """Largest difference of each step over the largest reference value of that step, [steps]."""

    def errors(got, reference):
        assert got.shape == reference.shape
        axes = tuple(range(1, got.ndim))
        return np.abs(got - reference).max(axes) / np.abs(reference).max(axes)

    return errors
