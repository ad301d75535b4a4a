"""The response of an exact denoiser equals its closed form."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.schedules import levels
from bench.measure.instruments.moments import Moments
from bench.measure.instruments.response import response_grid, response_norms

N = 20_000
SIGMAS = 5  # standard errors allowed; 9 numbers are compared
SHAPE = (1, 4, 4)


@pytest.mark.parametrize("s", [0, 3, 500, 998, 999])
def test_the_grid_covers_the_process_and_is_close_around_s(s):
    grid = response_grid(s, 1000)
    assert grid == sorted(set(grid))
    assert len(grid) <= 16 + 1 + 14
    assert {round(999 * k / 15) for k in range(16)} <= set(grid) <= set(range(1000))
    for offset in (0, 1, 2, 4, 8, 16, 32, 64):
        assert {max(s - offset, 0), min(s + offset, 999)} <= set(grid)


@pytest.mark.parametrize(("T", "s"), [(1, 0), (4, 2), (100, 50)])
def test_the_grid_of_short_processes(T, s):
    grid = response_grid(s, T)
    assert {0, s, T - 1} <= set(grid) <= set(range(T))
    if T == 100:  # offsets of a tenth, rounded: 0, 1, 2, 3, 6
        near = {t - s for t in grid if abs(t - s) < 7}
        assert near == {-6, -4, -3, -2, -1, 0, 1, 2, 3, 6}  # 46 is one of the sixteen


def energy_law(gaussian, asked, true):
    """Mean and standard deviation over images of ||eps||^2, eps = sigma_s Cov_s^-1 (x_t - alpha_s mean)."""
    size = np.eye(len(gaussian.mean))
    back = asked.sigma * np.linalg.inv(asked.alpha**2 * gaussian.cov + asked.sigma**2 * size)
    mean = back @ ((true.alpha - asked.alpha) * gaussian.mean)
    cov = back @ (true.alpha**2 * gaussian.cov + true.sigma**2 * size) @ back.T
    return np.trace(cov) + mean @ mean, math.sqrt(2 * np.square(cov).sum() + 4 * mean @ cov @ mean)


def test_the_exact_denoiser_responds_as_its_closed_form(gaussian):
    linear, path = gaussian.linear(), levels("cosine", 1000, 1000)
    pairs = [(path[999 - s], path[999 - t]) for s in (20, 500, 900) for t in (10, 500, 950)]
    moments, calls = Moments(len(pairs), ()), []
    x0, noise = gaussian.images(N), Noise(0).normal(torch.arange(N), Purpose.RESPONSE, 0, SHAPE).double()
    response_norms(gaussian.oracle(), pairs, x0, noise, moments, N, calls.append)
    assert calls == [N] * len(pairs)
    state = moments.state()
    for row, (asked, true) in enumerate(pairs):
        expected, spread = energy_law(gaussian, asked, true)
        assert abs(state["second"][row] - expected) <= SIGMAS * spread / math.sqrt(N)
        assert linear.eps_energy(replace(linear.forward(true), level=asked)) == pytest.approx(expected)
        assert state["mean"][row] ** 2 < state["second"][row]
    # Told too little noise it finds more of it, told too much less: the curve can be inverted.
    for rows in np.split(state["mean"], 3):
        assert (np.diff(rows) > 0).all()


def test_padding_does_not_count(gaussian):
    path = levels("cosine", 1000, 5)
    pairs, x0 = [(path[0], path[1]), (path[2], path[2])], gaussian.images(6)
    noise = torch.ones(6, *SHAPE, dtype=torch.float64)
    whole, part = Moments(2, ()), Moments(2, ())
    response_norms(gaussian.oracle(), pairs, x0[:4], noise[:4], whole, 4, lambda calls: None)
    response_norms(gaussian.oracle(), pairs, x0, noise, part, 4, lambda calls: None)
    for name, value in whole.state().items():
        np.testing.assert_allclose(part.state()[name], value, rtol=1e-12)
