"""The embedded family is good enough to teach with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.data import load, quantize
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Ancestral, Draws, prior, walk
from bench.diffusion.schedules import levels
from bench.measure.features import open_extractor
from bench.measure.frechet import feature_moments, frechet_distance
from bench.models.checkpoints import load_network
from bench.models.denoisers import EpsDenoiser
from bench.suite.registry import EMBEDDED, WEIGHTS, load_registry

HALF = 898


def sample(name: str, steps: int, count: int, seed: int) -> torch.Tensor:
    model = load_registry((), "digits").model(name)
    denoiser, path = EpsDenoiser(load_network(model.weights, model.description)), levels("cosine", 1000, steps)
    images = []
    for numbers in torch.arange(count).split(128):
        draws = Draws(Noise(seed), numbers)
        *_, last = walk(denoiser, path, prior(path[0], draws, (1, 8, 8)), Ancestral("learned"), draws)
        images.append(quantize(last.x_next))
    return torch.cat(images)


@pytest.mark.slow
def test_adm_is_as_close_to_half_of_the_data_as_the_other_half_nearly():
    # The bound is the project's own: at 100 steps and N = 898, at most 1.3 times the mean distance between two halves
    # over ten splits. Both sides have the same N, so that their bias is the same.
    extractor = open_extractor("digits")
    real = extractor.extract(load("digits").images)[0]
    ours = feature_moments(extractor.extract(sample("adm", 100, HALF, seed=5))[0])
    between, to_half = [], []
    for split in range(10):
        order = np.random.RandomState(split).permutation(len(real))
        halves = [feature_moments(real[rows]) for rows in (order[:HALF], order[HALF : 2 * HALF])]
        between.append(frechet_distance(*halves[0], *halves[1]))
        to_half.append(frechet_distance(*ours, *halves[0]))
    assert np.mean(to_half) <= 1.3 * np.mean(between)


def test_the_embedded_weights_are_small_and_complete():
    files = sorted(WEIGHTS.rglob("*.safetensors"))
    assert {path.stem for path in files} == set(EMBEDDED)
    assert sum(path.stat().st_size for path in files) < 15 * 2**20
