"""Errors of chains on Gaussian data equal the algebra, and those of a finite set a brute force."""

import math

import numpy as np
import pytest
import torch

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, paired, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM, Ancestral, PosteriorMean
from bench.diffusion.types import Level
from bench.measure.instruments import chains
from bench.measure.instruments.chains import (
    CHAIN_COLUMNS,
    ChainRow,
    empirical_errors,
    error_summary,
    gaussian_chain_errors,
    gaussian_errors,
    image_errors,
    to_table,
)

N = 6000
T = 40
SIGMAS = 5  # standard errors allowed; 18 numbers are compared, each beyond with probability 6e-7
SOLVERS = {"mean": PosteriorMean(), "ddim": DDIM(), "ancestral": Ancestral("exact")}


@pytest.mark.parametrize("length", [4, 20, 40])
@pytest.mark.parametrize("method", SOLVERS)
def test_chains_of_the_exact_denoiser_equal_the_closed_form(gaussian, method, length):
    # Ancestral steps of exact variance are draws of q(x_next | x), so the chain is the exact sampler.
    path, draws, linear = levels("cosine", T, T)[-(length + 1) :], Draws(Noise(0), torch.arange(N)), gaussian.linear()
    x0 = gaussian.images(N).float()
    x = paired(path[0], draws, x0)
    *_, last = walk(gaussian.oracle(), path, x, SOLVERS[method], draws, clip=False)
    exact = gaussian_errors(linear, path[0]) if method == "ancestral" else gaussian_chain_errors(linear, path, method)
    found = error_summary(image_errors(last.x_next, x0).numpy())
    for (_, value, std), expected in zip(found, exact, strict=True):
        assert abs(value - expected) <= SIGMAS * std / math.sqrt(N) + 1e-5  # states are float32, over up to 40 steps


def test_the_comparison_can_tell_the_methods_apart(gaussian):
    # Relative standard errors are at most 1 / sqrt(2 N) = .9 % a pixel, less over 16 of them: 5 of them make 5 %.
    # The ways differ by 10 % half-way; over the whole process DDIM is nearly an exact sampler.
    path = levels("cosine", T, T)[-21:]
    mean, ddim = (gaussian_chain_errors(gaussian.linear(), path, method)[1] for method in ("mean", "ddim"))
    exact = gaussian_errors(gaussian.linear(), path[0])[1]
    assert mean * 1.1 < ddim
    assert ddim * 1.1 < exact


@pytest.mark.parametrize("length", [1, 7, 40])
def test_the_mean_chain_is_the_least_squares_guess(gaussian, length):
    # By the tower rule it ends in E[x0 | x_t], whose error has covariance P; the exact sampler's has 2 P.
    path = levels("cosine", T, T)[-(length + 1) :]
    mean, exact = gaussian_chain_errors(gaussian.linear(), path, "mean"), gaussian_errors(gaussian.linear(), path[0])
    np.testing.assert_allclose(np.array(exact) / np.array(mean), math.sqrt(2), rtol=1e-9)  # float64, 40 steps


def test_a_whole_mean_chain_is_grey(gaussian):
    # alpha_T^2 = 2e-9 x the eigenvalues' ratio: nothing of x_0 is left, and the guess is the mean image.
    _, rmse = gaussian_chain_errors(gaussian.linear(), levels("cosine", 1000, 1000), "mean")
    assert rmse == pytest.approx(math.sqrt(np.diag(gaussian.cov).mean()), rel=1e-6)


def brute_force(x0, noise, data, level):
    """The same by loops over images, points and pixels."""
    expected = []
    for image, unit in zip(x0.tolist(), noise.tolist(), strict=True):
        x = [level.alpha * a + level.sigma * b for a, b in zip(image, unit, strict=True)]
        weights, errors = [], []
        for point in data.tolist():
            gap = sum((a - level.alpha * b) ** 2 for a, b in zip(x, point, strict=True))
            weights.append(math.exp(-gap / (2 * level.sigma**2)))
            apart = [a - b for a, b in zip(image, point, strict=True)]
            errors.append((sum(map(abs, apart)) / len(apart), sum(a * a for a in apart) / len(apart)))
        total = sum(weights)
        expected.append([sum(w * e[k] for w, e in zip(weights, errors, strict=True)) / total for k in (0, 1)])
    return expected


@pytest.mark.parametrize("rows", [1, 2, 256])
def test_a_finite_set_equals_a_brute_force_on_three_points(monkeypatch, rows):
    monkeypatch.setattr(chains, "_ROWS", rows)
    data = torch.tensor([[-0.5, 0.2, 0.1, 0.9], [0.3, -0.1, 0.0, 0.4], [0.8, 0.8, -0.6, -0.2]], dtype=torch.float64)
    noise = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    starts = [Level(0, 0.99, 0.4), Level(0, 0.8, 0.6), Level(0, 0.1, 0.995)]
    found = empirical_errors(data.reshape(3, 1, 2, 2), noise.reshape(3, 1, 2, 2), data.reshape(3, 1, 2, 2), starts)
    assert found.shape == (3, 3, 2)
    for row, level in zip(found, starts, strict=True):
        np.testing.assert_allclose(row, brute_force(data, noise, data, level), rtol=1e-12)


def test_a_finite_set_at_both_ends(gaussian):
    images, noise = gaussian.images(50), gaussian.images(50, seed=1)
    clear, blind = empirical_errors(images, noise, images, [Level(0, 1.0, 1e-6), Level(0, 0.0, 1.0)])
    assert (clear == 0).all()  # the image itself, at distance exactly 0
    for image, expected in zip(images, blind, strict=True):  # any image, all alike
        np.testing.assert_allclose(expected, image_errors(images, image[None]).mean(0), rtol=1e-12)


def test_errors_of_images():
    x = torch.tensor([[[[0.5, -0.5]]], [[[0.0, 1.0]]]])
    assert image_errors(x, torch.zeros(2, 1, 1, 2)).tolist() == [[0.5, 0.25], [0.5, 0.5]]


def test_summary_and_its_standard_error():
    # The rmse's spread is that of the mean square over 2 rmse.
    l1, rmse = error_summary(np.array([[0.1, 0.04], [0.3, 0.16]]))
    assert l1 == ("l1", pytest.approx(0.2), pytest.approx(0.2 / math.sqrt(2)))
    assert rmse == ("rmse", pytest.approx(math.sqrt(0.1)), pytest.approx(0.12 / math.sqrt(2) / (2 * math.sqrt(0.1))))
    assert list(error_summary(np.array([[0.1, 0.04]]))) == [("l1", 0.1, None), ("rmse", 0.2, None)]
    assert list(error_summary(np.zeros((3, 2)))) == [("l1", 0.0, 0.0), ("rmse", 0.0, 0.0)]


def test_the_table_leaves_empty_what_is_not_there():
    table = to_table([ChainRow("data", "real", None, None, 0, 5, "fd_digits", None, None, "digits", "too few")])
    assert tuple(table.columns) == CHAIN_COLUMNS
    assert table[["start", "t", "value", "std"]].isna().all(axis=None)
    assert str(table["start"].dtype) == "Int64"
