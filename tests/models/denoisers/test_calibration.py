from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import at_first
from sklearn.datasets import load_sample_images

import bench
from bench.diffusion.types import Prediction
from bench.models.checkpoints.formats import denoiser_of, describe, open_network
from bench.models.denoisers.calibration import LEVELS, Slope, slope_at, slope_levels, slopes, worst
from bench.models.denoisers.oracles import GaussianOracle
from bench.models.denoisers.preconditioning import make_preconditioning

WEIGHTS = Path(bench.__file__).parent / "models" / "weights"
VARIANCES = torch.linspace(0.1, 1, 12, dtype=torch.float64)
ORACLE = GaussianOracle(torch.full((3, 2, 2), 0.3, dtype=torch.float64), torch.diag(VARIANCES))
PATH = slope_levels("cosine", 1000)


def images(count, seed=0):
    return ORACLE.sample(count, torch.Generator().manual_seed(seed)).float()


def scaled(factor):
    """An exact denoiser whose eps is wrong by a factor."""
    return lambda x, level, cond=None: Prediction(factor * ORACLE(x, level).eps, x)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "edm", "flow(3)"])
def test_an_exact_denoiser_has_the_slope_one_within_its_errors(schedule):
    """Eight levels: none is beyond four of its standard errors, and their mean square is that of unit normals."""
    results = slopes(ORACLE, images(128), slope_levels(schedule, 1000))
    pulls = np.array([(slope.value - 1) / slope.error for slope in results])
    assert len(results) == LEVELS
    assert np.abs(pulls).max() < 4
    assert np.mean(pulls**2) < 4  # one noise serves all levels, so that these are not independent
    assert worst(results) is None


def test_the_loss_is_the_denoising_error():
    """E|eps_hat - eps|^2 of a Gaussian: the mean of alpha^2 v / (alpha^2 v + sigma^2); 10 % of 128 * 12 numbers."""
    for level in PATH:
        signal = level.alpha**2 * VARIANCES
        expected = float((signal / (signal + level.sigma**2)).mean())
        assert slope_at(ORACLE, images(128), level).loss == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("factor", "off"), [(0.5, True), (2.0, True), (0.9, False), (1.1, False), (float("nan"), True)]
)
def test_a_factor_shows_as_its_inverse(factor, off):
    results = slopes(scaled(factor), images(128), PATH)
    assert (worst(results) is not None) == off
    if factor == factor:
        assert all(slope.value == pytest.approx(1 / factor, rel=0.2) for slope in results)


def test_few_images_are_added_to_where_they_decide_nothing():
    """A slope off by less than its errors is tried again with twice the images, up to 128, and no more are shown."""
    sizes = []

    def noisy(x, level, cond=None):
        sizes.append(len(x))
        eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))
        return Prediction(eps, x)

    slopes(noisy, images(200), PATH[:1], calls=1)
    assert sizes[0] == 16
    assert all(later == 2 * earlier for earlier, later in pairwise(sizes))
    assert sizes[-1] <= 128
    sizes.clear()
    slopes(noisy, images(10), PATH[:1])
    assert sizes == [10]


def test_a_slope_is_off_beyond_both_bounds():
    slope = Slope(PATH[0], 1.3, 0.05, 0.1, 16)
    assert slope.is_off
    assert not replace(slope, value=1.19).is_off
    assert not replace(slope, error=0.1).is_off
    assert replace(slope, error=0.1).is_vague
    assert worst([slope, replace(slope, value=0.5)]).value == 0.5


def test_levels_of_two_schedules_are_comparable():
    for first, second in zip(slope_levels("linear", 1000), PATH, strict=True):
        assert first.sigma == pytest.approx(second.sigma, abs=0.02)
    assert min(level.sigma for level in PATH) > 0.09
    assert [level.alpha for level in slope_levels("edm", 1000)] == [1.0] * LEVELS
    ve = make_preconditioning("ve", {"sigma_min": 0.5, "sigma_max": 5.0})
    assert {level.sigma for level in slope_levels("edm", 1000, ve)} >= {0.5, 5.0}


@pytest.mark.parametrize("name", at_first(["ddpm-y", "adm", "adm-ip"], 1))
def test_networks_early_in_training_are_not_warned_of(name):
    """An embedded 32x32 one has seen a hundred thousand images; photographs here, not those it was trained on."""
    photos = np.stack([photo[:416:4, :640:4] for photo in load_sample_images().images])  # [2, 104, 160, 3]
    crops = torch.from_numpy(photos).unfold(1, 32, 24).unfold(2, 32, 64).reshape(-1, 3, 32, 32)  # [16, 3, 32, 32]
    path = WEIGHTS / "cifar10" / f"{name}.safetensors"
    description = describe(path)
    denoiser = denoiser_of(open_network(path, description), description, torch.device("cpu"))
    results = slopes(denoiser, crops[::2].float() / 127.5 - 1, slope_levels("cosine", 1000)[::2])
    assert worst(results) is None, [slope.value for slope in results]
