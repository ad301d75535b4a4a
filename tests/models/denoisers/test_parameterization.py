from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bench.diffusion.types import Level, batched
from bench.models.denoisers.parameterization import EpsDenoiser, VDenoiser, X0Denoiser, make_denoiser
from bench.models.networks.adm import adm_unet
from bench.models.train.recipes import DIGITS_NETWORK

LEVEL = Level(3.25, 0.6, 0.8)


class Network:
    """Repeats its input over `copies` times the channels, each copy one larger, and keeps what it was asked."""

    def __init__(self, copies):
        self.copies, self.asked = copies, []

    def __call__(self, x, t, cond):
        self.asked.append((t, cond))
        return SimpleNamespace(sample=torch.cat([x + k for k in range(self.copies)], dim=1))


@pytest.mark.parametrize("copies", [1, 2])
def test_the_output_is_split_into_eps_and_variance(copies):
    network, x = Network(copies), torch.randn(5, 3, 2, 2)
    pred = EpsDenoiser(network)(x, LEVEL)
    assert torch.equal(pred.eps, x)
    if copies == 2:
        assert torch.equal(pred.variance_fraction, x + 1)
    else:
        assert pred.variance_fraction is None
    assert pred.x0_cov is None


def test_x0_is_consistent_with_eps():
    """alpha x0 + sigma eps = x; four float32 roundings of numbers below 10."""
    x = torch.randn(5, 3, 2, 2)
    pred = EpsDenoiser(Network(1))(x, LEVEL)
    torch.testing.assert_close(LEVEL.alpha * pred.x0 + LEVEL.sigma * pred.eps, x, rtol=0, atol=3e-6)


class Oracle:
    """Says eps, v or x0 of one known state, and a variance fraction if asked."""

    def __init__(self, prediction, x0, eps, fraction=None):
        said = {"eps": eps, "v": LEVEL.alpha * eps - LEVEL.sigma * x0, "x0": x0}[prediction]
        self.output = said if fraction is None else torch.cat([said, fraction], dim=1)

    def __call__(self, x, t, cond):
        return SimpleNamespace(sample=self.output)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("learned", [False, True])
def test_every_prediction_gives_eps_and_x0(prediction, learned):
    """Float32 at alpha = .6, sigma = .8, numbers below 10 divided by no less than .6: six roundings of 6e-7 each."""
    x0, eps, fraction = torch.randn(3, 5, 3, 2, 2).clamp(-3, 3)
    x = LEVEL.alpha * x0 + LEVEL.sigma * eps
    network = Oracle(prediction, x0, eps, fraction if learned else None)
    pred = make_denoiser(network, prediction)(x, LEVEL)
    torch.testing.assert_close(pred.eps, eps, rtol=0, atol=4e-6)
    torch.testing.assert_close(pred.x0, x0, rtol=0, atol=4e-6)
    if learned:
        assert torch.equal(pred.variance_fraction, fraction)
    else:
        assert pred.variance_fraction is None


@pytest.mark.parametrize(("prediction", "kind"), [("eps", EpsDenoiser), ("v", VDenoiser), ("x0", X0Denoiser)])
def test_denoisers_by_name(prediction, kind):
    network = Network(1)
    denoiser = make_denoiser(network, prediction)
    assert type(denoiser) is kind
    assert denoiser.network is network


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="unknown prediction 'score'; choose eps, v, x0"):
        make_denoiser(Network(1), "score")


def test_what_is_said_of_x0_and_v_is_used_as_it_is():
    """x0 of an x0 network is its very output; v at the noisiest end of a schedule needs no division by alpha."""
    x, level = torch.randn(5, 3, 2, 2), Level(999, 1e-30, 1.0)
    assert torch.equal(X0Denoiser(Network(1))(x, level).x0, x)
    pred = VDenoiser(Network(1))(x, level)
    assert torch.equal(pred.x0, 1e-30 * x - x)
    assert torch.isfinite(pred.eps).all()


def test_the_network_is_asked_at_the_training_index_of_every_image():
    network, labels = Network(1), torch.arange(5)
    EpsDenoiser(network)(torch.zeros(5, 3, 2, 2), LEVEL, labels)
    ((t, cond),) = network.asked
    assert torch.equal(t, torch.full((5,), 3.25))
    assert cond is labels


def test_a_real_network_serves():
    network = adm_unet(DIGITS_NETWORK).eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        pred = EpsDenoiser(network)(x, Level(500, 0.6, 0.8))
        output = network(x, torch.tensor([500.0, 500.0])).sample
    assert torch.equal(pred.eps, output[:, :1])
    assert torch.equal(pred.variance_fraction, output[:, 1:])


LEVELS = (Level(3.25, 0.6, 0.8), Level(0, 0.96, 0.28), Level(999, 0.28, 0.96))


def together(dtype=torch.float32):
    """One level an image."""
    rows = torch.tensor([(level.t, level.alpha, level.sigma) for level in LEVELS], dtype=dtype)
    return batched(*rows.T.reshape(3, -1, 1, 1, 1))


class Timed:
    """Depends on t, of every image its own; and keeps it."""

    def __call__(self, x, t, cond):
        self.t = t
        said = torch.tanh(x + t[:, None, None, None] / 1000)
        return SimpleNamespace(sample=torch.cat([said, 2 * said], dim=1))


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_of_one_an_image_are_the_images_one_by_one(prediction, dtype):
    """Numbers below 5, divided by .28 at the least; levels rounded to float32: a dozen roundings of 6e-8 * 20."""
    x, denoiser = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype), Timed()
    made = make_denoiser(denoiser, prediction)
    pred = made(x, together(dtype))
    assert denoiser.t.dtype == torch.float32
    assert denoiser.t.tolist() == [3.25, 0, 999]
    for k, level in enumerate(LEVELS):
        alone = made(x[k : k + 1], level)
        for name in ("eps", "x0", "variance_fraction"):
            torch.testing.assert_close(getattr(pred, name)[k : k + 1], getattr(alone, name), rtol=0, atol=1e-5)
    assert pred.x0.dtype == dtype


def test_a_real_network_is_asked_at_levels_of_one_an_image():
    """Kernels of other sizes add in another order: 1e-6 of outputs near 1, and x0 divides by .28."""
    denoiser = EpsDenoiser(adm_unet(DIGITS_NETWORK).eval())
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pred = denoiser(x, together())
        for k, level in enumerate(LEVELS):
            alone = denoiser(x[k : k + 1], level)
            torch.testing.assert_close(pred.eps[k : k + 1], alone.eps, rtol=0, atol=5e-6)
            torch.testing.assert_close(pred.x0[k : k + 1], alone.x0, rtol=0, atol=2e-5)
