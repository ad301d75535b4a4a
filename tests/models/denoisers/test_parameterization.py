from types import SimpleNamespace

import pytest
import torch

from bench.diffusion.types import Level, batched
from bench.models.denoisers.parameterization import NetworkDenoiser, check_process

LEVEL = Level(3.25, 0.6, 0.8)
LEVELS = (LEVEL, Level(0, 0.96, 0.28), Level(999, 0.28, 0.96))


def network_of(output):
    return lambda x, t, cond: SimpleNamespace(sample=output)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("learned", [False, True])
def test_every_prediction_gives_eps_and_x0(prediction, learned):
    """Float32 at alpha = .6, sigma = .8, numbers below 10 divided by no less than .6: six roundings of 6e-7 each."""
    x0, eps, fraction = torch.randn(3, 5, 3, 2, 2).clamp(-3, 3)
    output = {"eps": eps, "v": LEVEL.alpha * eps - LEVEL.sigma * x0, "x0": x0}[prediction]
    network = network_of(torch.cat([output, fraction], dim=1) if learned else output)
    pred = NetworkDenoiser(network, prediction)(LEVEL.alpha * x0 + LEVEL.sigma * eps, LEVEL)
    torch.testing.assert_close(pred.eps, eps, rtol=0, atol=4e-6)
    torch.testing.assert_close(pred.x0, x0, rtol=0, atol=4e-6)
    assert torch.equal(pred.variance_fraction, fraction) if learned else pred.variance_fraction is None
    assert pred.x0_cov is None


@pytest.mark.parametrize("sigma", [1.0, 0.75, 0.001])
def test_a_velocity_gives_eps_and_x0(sigma):
    """x0 = x - t v and eps = x + (1 - t) v of v = eps - x0, without a division: also where there is no signal."""
    x0, eps = torch.randn(2, 5, 3, 2, 2).double()
    x = (1 - sigma) * x0 + sigma * eps
    asked = []

    def network(state, t, cond):
        asked.append((state.dtype, t.tolist()))
        return SimpleNamespace(sample=eps - x0)

    pred = NetworkDenoiser(network, "flow", 0.001)(x, Level(1000 * sigma, 1 - sigma, sigma))
    torch.testing.assert_close(pred.eps, eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(pred.x0, x0, rtol=0, atol=1e-12)
    assert asked == [(torch.float32, [pytest.approx(sigma)] * 5)]


UNWALKABLE = [
    (("cosine", 1000, "score"), "unknown prediction 'score'; choose eps, v, x0, flow"),
    (("cosine", 1000, "flow"), "prediction 'flow' needs the schedule flow or"),
    (("flow", 1000, "eps"), "takes the prediction flow or x0, not 'eps'"),
    (("flow(0)", 1000, "flow"), "the shift of flow"),
    (("flow3", 1000, "flow"), "is no flow"),
    (("flow", 0, "flow"), "must be at least 1"),
    (("sigmoid", 1000, "eps"), "unknown noise schedule 'sigmoid'"),
]


@pytest.mark.parametrize(("process", "message"), UNWALKABLE)
def test_processes_that_no_walk_could_follow(process, message):
    with pytest.raises(ValueError, match=message):
        check_process(*process)
    check_process("flow(3)", 1, "flow")


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="unknown prediction 'score'; choose eps, v, x0"):
        NetworkDenoiser(network_of(torch.zeros(1)), "score")


def test_x0_and_v_need_no_division_by_a_vanishing_alpha():
    """x0 of an x0 network is its very output; v at the noisiest end of a schedule is finite."""
    x, level = torch.randn(5, 3, 2, 2), Level(999, 1e-30, 1.0)
    assert torch.equal(NetworkDenoiser(network_of(x), "x0")(x, level).x0, x)
    pred = NetworkDenoiser(network_of(x), "v")(x, level)
    assert torch.equal(pred.x0, 1e-30 * x - x)
    assert torch.isfinite(pred.eps).all()


def test_the_network_is_asked_at_the_training_index_of_every_image():
    asked, labels = [], torch.arange(5)
    NetworkDenoiser(lambda x, t, cond: asked.append((t, cond)) or SimpleNamespace(sample=x))(
        torch.zeros(5, 3, 2, 2), LEVEL, labels
    )
    ((t, cond),) = asked
    assert torch.equal(t, torch.full((5,), 3.25))
    assert cond is labels


def test_rescaled_time_is_that_of_a_thousand_steps():
    """Improved diffusion asks its networks at t * 1000 / T."""
    asked = []
    network = NetworkDenoiser(lambda x, t, cond: asked.append(t) or SimpleNamespace(sample=x), "eps", 1000 / 4000)
    network(torch.zeros(2, 1, 2, 2), Level(3999, 0.6, 0.8))
    network(torch.zeros(3, 2, 4, 4), each_its_own())
    assert [t.tolist() for t in asked] == [[999.75, 999.75], [0.8125, 0, 249.75]]


def each_its_own(dtype=torch.float32):
    """A level for each of three images."""
    rows = torch.tensor([(level.t, level.alpha, level.sigma) for level in LEVELS], dtype=dtype)
    return batched(*rows.T.reshape(3, -1, 1, 1, 1))


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_level_for_each_image_is_the_images_one_by_one(prediction, dtype):
    """Numbers below 5, divided by .28 at the least; levels rounded to float32: a dozen roundings of 6e-8 * 20."""
    times = []

    def network(x, t, cond):
        times.append(t)
        output = torch.tanh(x + t[:, None, None, None] / 1000)
        return SimpleNamespace(sample=torch.cat([output, 2 * output], dim=1))

    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    denoiser = NetworkDenoiser(network, prediction)
    pred = denoiser(x, each_its_own(dtype))
    assert (times[0].dtype, times[0].tolist(), pred.x0.dtype) == (torch.float32, [3.25, 0, 999], dtype)
    for k, level in enumerate(LEVELS):
        alone = denoiser(x[k : k + 1], level)
        for name in ("eps", "x0", "variance_fraction"):
            torch.testing.assert_close(getattr(pred, name)[k : k + 1], getattr(alone, name), rtol=0, atol=1e-5)
