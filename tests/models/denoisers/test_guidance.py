import dataclasses
import math

import pytest
import torch

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM, Ancestral
from bench.diffusion.types import Level, Prediction, batched
from bench.models.denoisers.guidance import ClassifierFree, ClassifierFreeDenoiser, GuidedDenoiser
from bench.models.denoisers.oracles import GaussianOracle
from bench.models.denoisers.parameterization import NetworkDenoiser
from bench.models.networks.adm import adm_unet
from bench.models.networks.classifier import classifier_network

LEVEL = Level(437, 0.6, 0.8)
SHAPE = (1, 2, 2)


def rng():
    return torch.Generator().manual_seed(0)


def data():
    return GaussianOracle(torch.full(SHAPE, 0.25), torch.diag(torch.tensor([0.3, 0.2, 0.1, 0.4])))


class Quadratic:
    """Logits -(x - centre_y)^2 c_y / 2 - t / 1000, one class a centre; keeps the times it was asked at."""

    centres = torch.tensor([-0.5, 0.0, 1.0])
    curvatures = torch.tensor([1.0, 2.0, 0.5])

    def __init__(self):
        self.times = []

    def __call__(self, x, t):
        self.times.append(t)
        away = (x.flatten(1)[:, None] - self.centres[:, None]).square().sum(2)
        return -0.5 * self.curvatures * away - t[:, None] / 1000

    def score(self, x, labels):
        """Return grad log p(y | x) by hand: the chosen logit's gradient less the mean one's."""
        share = self(x, torch.zeros(len(x))).softmax(1)
        slopes = -self.curvatures[:, None] * (x.flatten(1)[:, None] - self.centres[:, None])  # [B, classes, D]
        chosen = slopes[torch.arange(len(x)), labels]
        return (chosen - (share[..., None] * slopes).sum(1)).reshape(x.shape)


@pytest.mark.parametrize("scale", [0.5, 1.0, -2.0])
def test_guidance_is_the_scaled_gradient_of_the_log_probability(scale):
    """float32 numbers of order 1 through a softmax of three: a few dozen roundings of 6e-8."""
    x, labels = torch.randn(5, *SHAPE, generator=rng()), torch.tensor([0, 1, 2, 2, 0])
    pred = GuidedDenoiser(data(), Quadratic(), scale)(x, LEVEL, labels)
    torch.testing.assert_close(pred.guidance, scale * Quadratic().score(x, labels), rtol=1e-5, atol=5e-6)


def test_the_prediction_itself_is_the_denoisers():
    x, labels = torch.randn(5, *SHAPE, generator=rng()), torch.zeros(5, dtype=torch.int64)
    plain, pred = data()(x, LEVEL), GuidedDenoiser(data(), Quadratic(), 2.0)(x, LEVEL, labels)
    assert all(torch.equal(getattr(pred, name), getattr(plain, name)) for name in ("eps", "x0", "x0_cov"))


def test_the_classifier_is_asked_at_the_training_index_in_float32():
    classifier, x = Quadratic(), torch.randn(5, *SHAPE, dtype=torch.float64, generator=rng())
    pred = GuidedDenoiser(data(), classifier, 1.0)(x, LEVEL, torch.zeros(5, dtype=torch.int64))
    (times,) = classifier.times
    assert (times.tolist(), pred.guidance.dtype) == ([437] * 5, torch.float64)
    assert torch.equal(pred.guidance, pred.guidance.float().double())


def test_scale_zero_is_the_plain_denoiser_and_asks_no_classifier():
    classifier, x = Quadratic(), torch.randn(5, *SHAPE, generator=rng())
    assert GuidedDenoiser(data(), classifier, 0.0)(x, LEVEL, torch.zeros(5, dtype=torch.int64)).guidance is None
    assert classifier.times == []


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_scales_that_are_no_numbers_are_refused(scale):
    with pytest.raises(ValueError, match="must be a finite number"):
        GuidedDenoiser(data(), Quadratic(), scale)


class Noisy:
    """Two classes told apart by a linear function of x0: log p(y | x_t) is a_t x_t + const where p(1 | x0) is rare.

    exp(w x0) averaged over x0 given x_t is exp(w E[x0 | x_t] + const), whose logarithm has the slope w dE[x0 | x_t]/dx.
    """

    def __init__(self, oracle, w, level_of):
        self.oracle, self.w, self.level_of = oracle, w, level_of

    def __call__(self, x, t):
        level = self.level_of[int(t[0])]
        gain = level.alpha * self.oracle.cov / (level.alpha**2 * self.oracle.cov + level.sigma**2 * torch.eye(4))
        rare = x.flatten(1) @ gain.nan_to_num().T.float() @ self.w - 30.0
        return torch.stack([torch.zeros_like(rare), rare], dim=1)


def test_guided_ddim_samples_the_reweighted_gaussian():
    """N(m, S) times exp(s w x0) is N(m + s S w, S): a guided walk is that one's.

    Without the factor p(0 | x), 1 - e-30: float32 logits near -30 keep 2e-6 and their slopes 1e-7, over ten steps 1e-5.
    """
    oracle, w, scale = data(), torch.tensor([1.0, -0.5, 0.3, 0.8]), 2.0
    target = GaussianOracle(oracle.mean + scale * (oracle.cov @ w.double()).reshape(SHAPE), oracle.cov)
    walked = levels("cosine", 1000, 10)
    classifier = Noisy(oracle, w, {int(level.t): level for level in walked})
    draws, labels = Draws(Noise(0), torch.arange(6)), torch.ones(6, dtype=torch.int64)
    x = prior(walked[0], draws, SHAPE)
    guided = GuidedDenoiser(oracle, classifier, scale)
    *_, last = walk(guided, walked, x, DDIM(), draws, clip=False, cond=labels)
    *_, exact = walk(target, walked, x, DDIM(), draws, clip=False)
    # x0_hat of the first step divides float32 x by alpha = 5e-5, so its rounding of 6e-8 grows to 1e-3 and is then
    # multiplied by the next level's alpha of .17: 2e-4.
    torch.testing.assert_close(last.x_next, exact.x_next, rtol=0, atol=1e-3)


UNET = {
    "image_size": 8, "in_channels": 1, "model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 1),
    "num_classes": 3, "learn_sigma": True,
}  # fmt: skip
CLASSIFIER = {
    "image_size": 8, "in_channels": 1, "out_channels": 3, "model_channels": 32, "num_res_blocks": 1,
    "channel_mult": (1, 1), "num_head_channels": 32, "pool": "attention", "resblock_updown": True,
}  # fmt: skip


@pytest.mark.parametrize("solver", [DDIM(), Ancestral("learned")])
def test_networks_guide_each_image_to_its_own_label(solver):
    """The walk runs without gradients, guidance makes its own, and none is left behind.

    Each image's gradient is its own: alone in its batch it walks as among others, to the kernels' rounding.
    """
    torch.manual_seed(0)
    unet, classifier = (make.eval().requires_grad_(False) for make in (adm_unet(UNET), classifier_network(CLASSIFIER)))
    walked, labels = levels("linear", 1000, 3), torch.tensor([0, 1, 2])

    def sample(rows):
        draws = Draws(Noise(0), torch.arange(3)[rows])
        denoiser = GuidedDenoiser(NetworkDenoiser(unet), classifier, 5.0)
        x = prior(walked[0], draws, (1, 8, 8))
        *_, last = walk(denoiser, walked, x, solver, draws, cond=labels[rows])
        assert last.prediction.guidance.abs().max() > 0
        assert not last.x_next.requires_grad
        return last.x_next

    together, alone = sample(slice(None)), sample(slice(1, 2))
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    assert all(parameter.grad is None for parameter in (*unet.parameters(), *classifier.parameters()))


def test_levels_of_one_an_image_are_asked_one_by_one():
    """Float32 levels and numbers of order 1 through a softmax of three: a few dozen roundings of 6e-8."""
    levels_ = (LEVEL, Level(0, 0.96, 0.28), Level(999, 0.28, 0.96))
    rows = torch.tensor([(level.t, level.alpha, level.sigma) for level in levels_])
    x, labels = torch.randn(3, *SHAPE, generator=rng()), torch.tensor([2, 0, 1])
    classifier = Quadratic()
    pred = GuidedDenoiser(data(), classifier, 1.5)(x, batched(*rows.T.reshape(3, -1, 1, 1, 1)), labels)
    assert classifier.times[0].tolist() == [437, 0, 999]
    for k, level in enumerate(levels_):
        alone = GuidedDenoiser(data(), Quadratic(), 1.5)(x[k : k + 1], level, labels[k : k + 1])
        for name in ("eps", "x0", "guidance"):
            torch.testing.assert_close(getattr(pred, name)[k : k + 1], getattr(alone, name), rtol=1e-5, atol=5e-6)


class Conditional:
    """Gaussian data of three classes that differ in their mean, and the mean of all as the null class, 3."""

    means = torch.tensor([-0.5, 0.1, 0.7, 0.1], dtype=torch.float64)
    cov = torch.diag(torch.tensor([0.3, 0.2, 0.1, 0.4]))

    def of(self, mean):
        return GaussianOracle(mean.double().expand(SHAPE), self.cov)

    def __call__(self, x, level, cond=None):
        rows = [self.of(self.means[y])(x[k : k + 1], level) for k, y in enumerate(cond)]
        return Prediction(torch.cat([row.eps for row in rows]), torch.cat([row.x0 for row in rows]))


LABELS = torch.tensor([0, 2])


def test_labels_are_required():
    for guided in (GuidedDenoiser(data(), Quadratic(), 1.0), ClassifierFreeDenoiser(data(), ClassifierFree(2.0, 3))):
        with pytest.raises(ValueError, match="needs the labels to guide to"):
            guided(torch.zeros(2, *SHAPE), LEVEL)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guided_gaussians_are_gaussians_about_another_mean(scale):
    """Classes of one covariance: null + W (plain - null) is the exact denoiser about null mean + W (mean - null mean).

    Along 8 steps in float64, whose first divides x0_hat by an alpha of 5e-5: 8 * 2e-16 / 5e-5 = 3e-11.
    """
    model, path, draws = Conditional(), levels("cosine", 1000, 8), Draws(Noise(0), torch.arange(2))
    guided = ClassifierFreeDenoiser(model, ClassifierFree(scale, 3))
    x = torch.randn(2, *SHAPE, dtype=torch.float64, generator=rng())
    *_, last = walk(guided, path, x, DDIM(), draws, clip=False, cond=LABELS)
    assert last.prediction.calls == 2
    for k, label in enumerate(LABELS):
        moved = model.of(model.means[3] + scale * (model.means[label] - model.means[3]))
        *_, alone = walk(moved, path, x[k : k + 1], DDIM(), draws, clip=False)
        torch.testing.assert_close(last.x_next[k : k + 1], alone.x_next, rtol=0, atol=1e-9)


def test_scale_one_asks_once_and_is_the_plain_model():
    x = torch.randn(2, *SHAPE, generator=rng())
    asked = ClassifierFreeDenoiser(Conditional(), ClassifierFree(1.0, 3))(x, LEVEL, LABELS)
    plain = Conditional()(x, LEVEL, LABELS)
    assert torch.equal(asked.eps, plain.eps)
    assert torch.equal(asked.x0, plain.x0)
    assert (asked.calls, asked.plain) == (1, None)


def test_guidance_keeps_the_plain_prediction_and_its_variance():
    """eps and x0 fit the state, x = alpha x0 + sigma eps, in float32."""
    x = torch.randn(2, *SHAPE, generator=rng())
    fraction = torch.rand(2, *SHAPE, generator=rng())

    def learned(state, level, cond):
        return dataclasses.replace(Conditional()(state, level, cond), variance_fraction=fraction * (1 + cond.sum()))

    pred = ClassifierFreeDenoiser(learned, ClassifierFree(4.0, 3))(x, LEVEL, LABELS)
    plain = learned(x, LEVEL, LABELS)
    assert torch.equal(pred.plain.eps, plain.eps)
    assert torch.equal(pred.variance_fraction, plain.variance_fraction)
    torch.testing.assert_close(LEVEL.alpha * pred.x0 + LEVEL.sigma * pred.eps, x, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("low", "high", "alpha", "sigma", "calls"),
    [
        (0.0, math.inf, 0.6, 0.8, 2), (0.0, math.inf, 0.0, 1.0, 2),  # where no signal is left, too
        (0.5, 2.0, 0.6, 0.8, 2), (0.5, 1.2, 0.6, 0.8, 1), (1.4, 2.0, 0.6, 0.8, 1),
        (1.0, 2.0, 1.0, 2.0, 2), (1.0, 2.0, 1.0, 1.0, 1), (0.5, 2.0, 0.0, 1.0, 1),
    ],
)  # fmt: skip
def test_the_interval_is_of_the_noise_over_the_signal(low, high, alpha, sigma, calls):
    """The upper end belongs to it, the lower does not."""
    level, guidance = Level(500, alpha, sigma), ClassifierFree(2.0, 3, low, high)
    assert guidance.calls(level) == calls
    if alpha:
        pred = ClassifierFreeDenoiser(Conditional(), guidance)(torch.zeros(2, *SHAPE), level, LABELS)
        assert (pred.calls, pred.plain is None) == (calls, calls == 1)
