"""Denoisers of the training images and of a mixture equal brute force and the oracles, their learned variance too."""

import math

import numpy as np
import pytest
import torch

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, walk
from bench.diffusion.schedules import alpha_bars, levels
from bench.diffusion.solvers import Ancestral
from bench.diffusion.types import Level
from bench.measure.instruments.exact_denoisers import ClassMixture, FiniteSet
from bench.measure.instruments.gaussian import learned_fraction
from bench.models.denoisers.oracles import MixtureOracle

SHAPE = (1, 2, 2)
LEVELS = [Level(0, 0.999, 0.04), Level(400, 0.8, 0.6), Level(998, 0.05, 0.99)]
BARS = alpha_bars("cosine", 1000)


def images(count, seed=0):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def states(level, x0):
    return level.alpha * x0 + level.sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.t)
def test_the_finite_set_equals_a_brute_force(level):
    data = images(5)
    x = states(level, data)
    found = FiniteSet(data).trained_on(BARS)(x, level)
    for k, state in enumerate(x.double()):
        logits = torch.stack([-(state - level.alpha * y).square().sum() / (2 * level.sigma**2) for y in data.double()])
        weights = (logits - logits.max()).exp()
        weights = weights / weights.sum()
        mean = sum(w * y for w, y in zip(weights, data.double(), strict=True))
        variance = sum(w * (y - mean).square() for w, y in zip(weights, data.double(), strict=True))
        np.testing.assert_allclose(found.x0[k], mean, atol=1e-6)  # predictions are float32
        np.testing.assert_allclose(found.eps[k], (state - level.alpha * mean) / level.sigma, atol=1e-4)
        v = learned_fraction(BARS, int(level.t), variance.numpy()).clip(0, 1)
        np.testing.assert_allclose((found.variance_fraction[k] + 1) / 2, v, atol=1e-5)


@pytest.mark.parametrize("count", [60, 9])  # three images a class span fewer directions than there are pixels
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.t)
def test_the_mixture_equals_the_oracle(level, count):
    data, labels = images(count), torch.arange(count) % 3
    data = data + 0.3 * labels.reshape(-1, 1, 1, 1)
    parts = [data[labels == k].double() for k in range(3)]
    covs = torch.stack([part.flatten(1).T.cov() for part in parts])
    oracle = MixtureOracle(torch.full((3,), 1 / 3), torch.stack([part.mean(0) for part in parts]), covs)
    x = states(level, data[:7])
    found, wanted = ClassMixture(data, labels).trained_on(BARS)(x, level), oracle(x, level)
    np.testing.assert_allclose(found.x0, wanted.x0, atol=1e-6)
    np.testing.assert_allclose(found.eps, wanted.eps, atol=1e-4)
    variance = wanted.x0_cov.diagonal(dim1=1, dim2=2).reshape(x.shape).numpy()
    v = learned_fraction(BARS, int(level.t), variance).clip(0, 1)
    np.testing.assert_allclose((found.variance_fraction + 1) / 2, v, atol=1e-5)


def test_single_precision_is_close(monkeypatch):
    data, labels = images(60), torch.arange(60) % 3
    wide = [law(*args) for law, args in ((FiniteSet, (data,)), (ClassMixture, (data, labels)))]
    monkeypatch.setattr("bench.measure.instruments.exact_denoisers._DOUBLE", 1)
    narrow = [law(*args) for law, args in ((FiniteSet, (data,)), (ClassMixture, (data, labels)))]
    for one, other in zip(wide, narrow, strict=True):
        x = states(LEVELS[1], data[:9])
        np.testing.assert_allclose(one(x, LEVELS[1]).x0, other(x, LEVELS[1]).x0, atol=1e-5)


def test_without_a_training_process_no_variance_is_learned():
    assert FiniteSet(images(4))(images(2), LEVELS[1]).variance_fraction is None


def test_samples_are_of_the_law():
    data, labels = images(40), torch.arange(40) % 4
    drawn = FiniteSet(data).sample(40, 0)
    assert sorted(drawn.flatten(1)[:, 0].tolist()) == sorted(data.flatten(1)[:, 0].tolist())  # each image once
    assert len(FiniteSet(data).sample(50, 0)) == 50
    mixture = ClassMixture(data, labels).sample(4000, 0).flatten(1)
    # The mixture has the mean of the data, and their variance but for the divisors of the classes (10 / 9).
    error = 5 * data.flatten(1).std(0) / math.sqrt(4000)
    assert ((mixture.mean(0) - data.flatten(1).mean(0)).abs() < error).all()
    np.testing.assert_allclose(mixture.var(0), data.flatten(1).var(0), rtol=0.2)


def test_walks_of_all_steps_end_in_the_law():
    """At the full length, 200 steps, the end variance is the data's: 400 walks, five standard errors of some 7 %."""
    data, bars = images(6), alpha_bars("cosine", 200)
    draws = Draws(Noise(0), torch.arange(400))
    path = levels("cosine", 200, 200)
    law = FiniteSet(data).trained_on(bars)
    *_, last = walk(law, path, prior(path[0], draws, SHAPE), Ancestral("learned"), draws, clip=False)
    ends = last.x_next.flatten(1)
    distance = torch.cdist(ends, data.flatten(1)).amin(1)
    assert distance.quantile(0.9) < 0.05  # nearly every walk ends at an image
    assert ends.var(0).mean() / data.flatten(1).var(0, correction=0).mean() == pytest.approx(1, abs=0.3)
