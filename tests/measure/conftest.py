"""Gaussian data small enough for exact algebra: 4x4 images with a full covariance and a non-zero mean."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as theirs

from bench.diffusion.schedules import alpha_bars
from bench.diffusion.types import Prediction
from bench.measure.instruments.gaussian import LinearGaussian, learned_fraction
from bench.models.denoisers.oracles import GaussianOracle

SHAPE = (1, 4, 4)


@dataclass(frozen=True)
class LearnedOracle:
    """A GaussianOracle that also predicts the variance fraction which the variational bound prefers."""

    oracle: GaussianOracle
    alpha_bars: np.ndarray

    def __call__(self, x, level, cond=None):
        pred = self.oracle(x, level)
        v = learned_fraction(self.alpha_bars, int(level.t), np.diag(pred.x0_cov.numpy()))
        fraction = torch.from_numpy(2 * v - 1).to(x.dtype).reshape(SHAPE).expand(x.shape)
        return Prediction(pred.eps, pred.x0, fraction, pred.x0_cov)


@dataclass(frozen=True)
class Gaussian:
    """x0 ~ N(mean, cov) as the recursion (numpy) and as a denoiser (torch)."""

    mean: np.ndarray
    cov: np.ndarray

    def linear(self, schedule="cosine", T=1000):
        return LinearGaussian(self.mean, self.cov, alpha_bars(schedule, T))

    def in_pixels(self, state):
        """Return a state of the recursion with mean, cov and cross in the basis of the pixels."""
        basis = self.linear().vectors
        inner = np.diag(state.inner) if state.inner.ndim == 1 else state.inner
        cov = basis @ inner @ basis.T + np.diag(np.zeros(len(basis)) if state.noise is None else state.noise)
        return SimpleNamespace(
            level=state.level, mean=basis @ state.mean, cov=cov, cross=(basis * state.cross) @ basis.T
        )

    def oracle(self):
        return GaussianOracle(torch.from_numpy(self.mean).reshape(SHAPE), torch.from_numpy(self.cov))

    def denoiser(self, schedule="cosine", T=1000):
        return LearnedOracle(self.oracle(), alpha_bars(schedule, T))

    def images(self, count, seed=0):
        """Draw float64 images [count, 1, 4, 4]."""
        return self.oracle().sample(count, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def gaussian():
    rng = np.random.default_rng(3)
    size = int(np.prod(SHAPE))
    vectors = np.linalg.qr(rng.normal(size=(size, size)))[0]
    # Variances from .004 to .6: digits have both constant and varying pixels.
    values = np.geomspace(0.004, 0.6, size)
    return Gaussian(rng.uniform(-0.5, 0.5, size), (vectors * values) @ vectors.T)


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory):
    """Save an Inception with random weights: 96 MB, in a temporary folder only."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = theirs.FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(network.state_dict(), path)
    return path
