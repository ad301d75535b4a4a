import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bench.diffusion.schedules import alpha_bars, betas
from bench.models.denoisers.preconditioning import Edm
from bench.models.train.objectives import (
    GAMMA_SCHEDULES,
    OBJECTIVES,
    Process,
    edm_loss,
    flow_loss,
    gamma_at,
    gradient_penalty,
    hybrid_loss,
    make_pair,
    rectified,
    slowed,
)

PROCESS = Process.make("cosine", 1000)
GAMMAS = [0.1, 0.15, 0.7]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def wide(process):
    """The same constants as float64, so that only the test's own arithmetic rounds."""
    fields = ("alpha", "sigma", "c1", "log_beta", "log_btil")
    return Process(*(getattr(process, name).double() for name in fields))


class Tiny(torch.nn.Module):
    """A small nonlinear network in float64, elementwise over pixels and conditioned on t."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(draw(7, seed=1))
        self.b = torch.nn.Parameter(draw(7, seed=2))
        self.c = torch.nn.Parameter(draw(7, seed=3))

    def forward(self, y, t):
        return torch.tanh(y[..., None] * self.a + t.reshape(-1, 1, 1, 1, 1) / 500 * self.b) @ self.c


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_constants_are_those_of_the_schedule(schedule):
    """Ho et al. 2020, eq. 7, in float64; stored as float32, so to 6e-8 (and log: 6e-8 of |log| < 20)."""
    process, beta, bar = Process.make(schedule, 1000), betas(schedule, 1000), alpha_bars(schedule, 1000)
    for t in (0, 1, 2, 500, 999):
        before = bar[t - 1] if t else 1.0
        index = max(t, 1)  # the published code repeats index 1 at index 0, where the posterior variance is 0
        btil = beta[index] * (1 - bar[index - 1]) / (1 - bar[index])
        expected = {
            "alpha": math.sqrt(bar[t]),
            "sigma": math.sqrt(1 - bar[t]),
            "c1": beta[t] * math.sqrt(before) / (1 - bar[t]),
            "log_beta": math.log(beta[t]),
            "log_btil": math.log(btil),
        }
        for name, value in expected.items():
            assert getattr(process, name)[t].item() == pytest.approx(value, rel=1e-7)


# (input, target) as the module's docstring has them, in terms of (clean signal, sigma, noise, xi, gamma).
FORMULAS = {
    "ddpm": lambda signal, sigma, e, xi, g: (signal + sigma * e, e),
    "ddpm-ip": lambda signal, sigma, e, xi, g: (signal + sigma * (e + g * xi), e),
    "ddpm-y": lambda signal, sigma, e, xi, g: (signal + sigma * (e + g * xi), (e + g * xi) / (1 + g**2) ** 0.5),
    "ip-equivalent": lambda signal, sigma, e, xi, g: (signal + (1 + g**2) ** 0.5 * sigma * e, e / (1 + g**2) ** 0.5),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("gamma", [0.0, *GAMMAS, torch.tensor([0.0, 0.1, 0.7]).double().reshape(-1, 1, 1, 1)])
def test_pairs_are_the_formulas(name, gamma):
    """Of one gamma, or of one an image. alpha and sigma are float32 (6e-8 relative) on values below 10: 1e-6."""
    t, bar = torch.tensor([0, 300, 999]), torch.from_numpy(alpha_bars("cosine", 1000))
    x0, noise, xi = (draw(3, 2, 4, 4, seed=s) for s in range(3))
    alpha, sigma = bar[t].sqrt().reshape(-1, 1, 1, 1), (1 - bar[t]).sqrt().reshape(-1, 1, 1, 1)
    expected = FORMULAS[name](alpha * x0, sigma, noise, xi, gamma)
    for got, wanted in zip(make_pair(name, PROCESS, x0, t, noise, xi, gamma), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_the_linear_gamma_is_that_of_the_released_code():
    """From .01 gamma at t = 0 to gamma at T - 1, evenly; float32, and three operations on it: 4 * 6e-8 of .1."""
    t = torch.tensor([0, 1, 500, 998, 999])
    expected = np.linspace(0.01 * 0.1, 0.1, 1000)[t]
    found = gamma_at("linear", 0.1, t, 1000)
    assert found.shape == (5, 1, 1, 1)
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=0, atol=2.4e-8)


def test_the_cosine_gamma_falls_to_nothing():
    """Float32 angles below pi / 2 err by 1e-7, so the squares of their cosines by 2e-7, times gamma."""
    t = torch.arange(1000)
    found = gamma_at("cosine", 0.1, t, 1000).flatten()
    expected = [0.1 * math.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(1000)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=5e-8)
    assert (found.diff() < 0).all()
    assert found[0] > 0.09998
    assert found[-1] < 1e-6


@pytest.mark.parametrize("schedule", GAMMA_SCHEDULES)
def test_no_gamma_leaves_its_range_at_any_length_of_the_process(schedule):
    for T in (1, 2, 1000):
        found = torch.as_tensor(gamma_at(schedule, 0.1, torch.arange(T), T))
        assert ((found >= 0) & (found <= 0.1 * (1 + 1e-6))).all()


def test_a_constant_schedule_is_input_perturbation_bit_for_bit():
    t, (x0, noise, xi) = torch.tensor([0, 400, 999]), (draw(3, 1, 4, 4, seed=s).float() for s in range(3))
    plain = make_pair("ddpm-ip", PROCESS, x0, t, noise, xi, 0.1)
    assert gamma_at("constant", 0.1, t, 1000) == 0.1
    for gamma in (gamma_at("constant", 0.1, t, 1000), 0.1 * torch.ones(3, 1, 1, 1)):
        found = make_pair("ddpm-ip", PROCESS, x0, t, noise, xi, gamma)
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_dream_by_hand():
    """One pixel at sigma = .6, alpha = .8: x0 = .5, noise = 1, so x_t = 1; the network says .5, so it errs by .5.

    Power 1: d = .6 * .5 = .3, the target is 1.3 and the input 1 + .6 * .3 = 1.18. Power 2: d = .36 * .5 = .18.
    Power 0: d = .5. Float64 roundings of a few numbers of order 1.
    """
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    process = Process(0.8 * one, 0.6 * one, one, one, one)
    t = torch.zeros(1, dtype=torch.int64)
    y, target = make_pair("ddpm", process, 0.5 * one, t, one, one, 0.0)
    assert y.item() == pytest.approx(1, abs=1e-15)
    for power, (expected, wanted) in {1.0: (1.18, 1.3), 2.0: (1.108, 1.18), 0.0: (1.3, 1.5)}.items():
        found = rectified(process, 0.5 * one, y, target, t, power)
        assert [part.item() for part in found] == pytest.approx([expected, wanted], abs=1e-15)


def rectified_scene(eps, power, t):
    x0, noise = (draw(len(t), 2, 4, 4, seed=s) for s in range(2))
    pair = make_pair("ddpm", wide(PROCESS), x0, t, noise, noise, 0.0)
    return x0, noise, pair, rectified(wide(PROCESS), eps(noise), *pair, t, power)


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_dreams_input_is_made_of_its_image_and_its_target(power):
    """The target is consistent with the input, unlike input perturbation's. Float64 roundings of numbers below 10."""
    t = torch.tensor([0, 1, 500, 999])
    x0, noise, _, (y, target) = rectified_scene(torch.sin, power, t)
    process = wide(PROCESS)
    torch.testing.assert_close(y, process.alpha[t] * x0 + process.sigma[t] * target, rtol=0, atol=1e-14)
    assert (target - noise).abs().amax(dim=(1, 2, 3)).min() > 1e-7  # sigma_0 is 6e-3, its cube 3e-7


def test_dream_of_a_perfect_prediction_is_ddpm_bit_for_bit():
    *_, pair, found = rectified_scene(lambda noise: noise, 1.0, torch.tensor([0, 500, 999]))
    assert all(torch.equal(a, b) for a, b in zip(found, pair, strict=True))


def gradients(name, network, x0, t, noise, xi, gamma):
    """Squared error and its gradient by every parameter."""
    y, target = make_pair(name, wide(PROCESS), x0, t, noise, xi, gamma)
    loss = (network(y, t) - target).square().mean()
    return loss, torch.autograd.grad(loss, list(network.parameters()))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_equivalent_loss_has_input_perturbations_gradient(gamma):
    """Given the input's noise n', the target of ddpm-ip is n'/s + r with r symmetric: +r and -r average exactly.

    Both pairs share the input y, so (f - n'/s - r)^2 + (f - n'/s + r)^2 = 2 (f - n'/s)^2 + 2 r^2 for any network f, and
    the gradients agree up to rounding: xi = (s n' - noise) / gamma loses 1e-16 / gamma, times gradients of order 10.
    """
    network, s, t = Tiny(), math.hypot(1, gamma), torch.tensor([5, 400, 900])
    x0, total, r = (draw(3, 1, 4, 4, seed=k) for k in range(3))
    wanted_loss, wanted = gradients("ip-equivalent", network, x0, t, total, total, gamma)
    halves = []
    for sign in (1, -1):
        noise = total / s + sign * r
        halves.append(gradients("ddpm-ip", network, x0, t, noise, (s * total - noise) / gamma, gamma))
    (loss_a, grad_a), (loss_b, grad_b) = halves
    for a, b, expected in zip(grad_a, grad_b, wanted, strict=True):
        torch.testing.assert_close((a + b) / 2, expected, rtol=1e-11, atol=1e-12)
        assert (a - expected).abs().max() > 1e-3  # each half alone is not the equivalent gradient
    assert ((loss_a + loss_b) / 2 - wanted_loss).item() == pytest.approx(r.square().mean().item(), rel=1e-11)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_input_perturbation_adds_a_constant_to_the_loss(gamma):
    """E L_ip = E L_equivalent + gamma^2 / (1 + gamma^2).

    For a linear network both losses are quadratic in the noises, so signs (+-1, +-1), whose second moments are those of
    unit normals, give the expectations exactly.
    """
    weight, t, x0 = 0.7, torch.tensor([400]), torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)

    def expected(name):
        losses = []
        for noise, xi in itertools.product((-1.0, 1.0), repeat=2):
            y, target = make_pair(
                name, wide(PROCESS), x0, t, torch.full_like(x0, noise), torch.full_like(x0, xi), gamma
            )
            losses.append((weight * y - target).square().item())
        return math.fsum(losses) / 4

    constant = gamma**2 / (1 + gamma**2)
    assert expected("ddpm-ip") - expected("ip-equivalent") == pytest.approx(constant, rel=1e-12)


def scene(t, error=0.3):
    """Images, noised inputs and a network output that is wrong by `error`; every t once."""
    t = torch.tensor(t)
    x0, noise, wrong, raw = (draw(len(t), 2, 3, 3, seed=s) for s in range(4))
    y, target = make_pair("ddpm", wide(PROCESS), x0.clamp(-1, 1), t, noise, noise, 0.0)
    return torch.cat([noise + error * wrong, raw], dim=1), y, target, x0.clamp(-1, 1), t


def test_the_squared_error_is_of_the_eps_half():
    output, y, target, x0, t = scene([0, 7, 800])
    mse, _ = hybrid_loss(PROCESS, output, y, target, x0, t)
    torch.testing.assert_close(mse, (output[:, :2] - target).square().mean(dim=(1, 2, 3)), rtol=1e-12, atol=0)


def test_the_bound_is_the_divergence_of_the_two_posteriors():
    """KL(q(x_prev | x_t, x0) || p(x_prev | x_t)) in bits per dimension, both Gaussians built from scratch.

    The process' constants are float32: 6e-8 each in x0_hat, doubled by the square, and 6e-8 of |log| < 15: 1e-5 covers.
    """
    output, y, target, x0, t = scene([1, 10, 500, 900])
    beta, bar = torch.from_numpy(betas("cosine", 1000)), torch.from_numpy(alpha_bars("cosine", 1000))
    beta, before, bar = (column.reshape(-1, 1, 1, 1) for column in (beta[t], bar[t - 1], bar[t]))
    small = beta * (1 - before) / (1 - bar)
    fraction = (output[:, 2:] + 1) / 2
    variance = beta.pow(fraction) * small.pow(1 - fraction)
    x0_hat = (y - (1 - bar).sqrt() * output[:, :2]) / bar.sqrt()

    def mean(image):
        return beta * before.sqrt() / (1 - bar) * image + (1 - before) * (1 - beta).sqrt() / (1 - bar) * y

    divergence = kl_divergence(Normal(mean(x0), small.sqrt()), Normal(mean(x0_hat), variance.sqrt()))
    _, bound = hybrid_loss(PROCESS, output, y, target, x0, t)
    torch.testing.assert_close(bound, divergence.mean(dim=(1, 2, 3)) / math.log(2), rtol=1e-5, atol=0)


def test_the_bound_trains_the_variance_alone_and_the_error_eps_alone():
    output, y, target, x0, t = scene([0, 7, 800])
    output.requires_grad_(True)
    mse, bound = hybrid_loss(wide(PROCESS), output, y, target, x0, t)
    (by_bound,) = torch.autograd.grad(bound.sum(), output)
    (by_mse,) = torch.autograd.grad(mse.sum(), output)
    assert torch.count_nonzero(by_bound[:, :2]) == 0
    assert torch.count_nonzero(by_mse[:, 2:]) == 0
    assert (by_bound[:, 2:].flatten(1).abs().amax(1) > 0).all()
    assert (by_mse[:, :2].flatten(1).abs().amax(1) > 0).all()


BINS = torch.arange(256, dtype=torch.float64).reshape(-1, 1, 1, 1) / 127.5 - 1


def bin_probabilities(mean, raw):
    """The decoder's mass of each of the 256 grey levels, through the loss at t = 0 with eps = 0."""
    process, t = wide(PROCESS), torch.zeros(256, dtype=torch.int64)
    y = process.alpha[t] * mean
    output = torch.cat([torch.zeros_like(y), torch.full_like(y, raw)], dim=1)
    _, bound = hybrid_loss(process, output, y, torch.zeros_like(y), BINS, t)
    return (-bound * math.log(2)).exp()


@pytest.mark.parametrize("mean", [-1.3, -1.0, -0.996, 0.1, 1.3])
@pytest.mark.parametrize("raw", [-1.0, 0.0, 1.0, 9.0])
def test_the_decoder_integrates_the_gaussian_over_each_bin(mean, raw):
    """Against torch.distributions, whose erf agrees to 1e-16 absolutely; the floor is 1e-12."""
    process = wide(PROCESS)
    fraction = (raw + 1) / 2
    log_variance = (fraction * process.log_beta[0] + (1 - fraction) * process.log_btil[0]).item()
    gaussian = Normal(torch.tensor(mean, dtype=torch.float64), math.exp(0.5 * log_variance))
    edges = (torch.arange(255, dtype=torch.float64) + 0.5) / 127.5 - 1
    below = gaussian.cdf(edges)
    mass = torch.cat([below[:1], below.diff(), 1 - below[-1:]])  # the outer bins are open
    torch.testing.assert_close(bin_probabilities(mean, raw), mass, rtol=0, atol=2e-12)


def linear_network(matrix):
    """eps = matrix y, followed by variance channels that must not count."""

    def network(y, t):
        eps = (y.flatten(1) @ matrix.T).reshape(y.shape)
        return torch.cat([eps, 100 * y], dim=1)

    return network


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 1, 3)])
def test_the_penalty_is_the_jacobians_frobenius_norm(shape):
    """Averaged over every sign vector v, |J^T v|^2 is |J|_F^2 exactly: E v v^T = I. Float64 sums of 64 terms."""
    size = math.prod(shape)
    matrix = draw(size, size)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=size)), dtype=torch.float64).reshape(-1, *shape)
    penalties = gradient_penalty(linear_network(matrix), torch.zeros_like(signs), torch.zeros(len(signs)), signs)
    assert penalties.shape == (2**size,)
    assert penalties.mean().item() == pytest.approx((matrix.square().sum() / size).item(), rel=1e-12)


def test_the_penalty_is_each_images_own():
    """A diagonal Jacobian 2y of eps = y^2: J^T v = 2 y v."""
    y, probe = draw(3, 1, 2, 2), draw(3, 1, 2, 2, seed=1)
    penalties = gradient_penalty(lambda state, t: state.square(), y, torch.zeros(3), probe)
    torch.testing.assert_close(penalties, (2 * y * probe).square().mean(dim=(1, 2, 3)), rtol=1e-12, atol=0)


def test_the_penalty_leaves_its_input_alone():
    y = draw(1, 1, 2, 2)
    gradient_penalty(lambda state, t: state.pow(3), y, torch.zeros(1), torch.ones(1, 1, 2, 2))
    assert not y.requires_grad


def edm_inputs(n=64):
    g = torch.Generator().manual_seed(0)
    shape = (n, 1, 4, 4)
    return (torch.randn(*shape, generator=g).double(), torch.randn(n, generator=g).double(),
            torch.randn(*shape, generator=g).double())  # fmt: skip


def test_edm_loss_is_the_weighted_error_of_the_denoiser():
    """Karras et al. 2022, eq. 2 with lambda of table 1, written out with D = c_skip y + c_out F(c_in y, c_noise)."""
    x0, level, noise = edm_inputs()

    def network(x, c_noise):
        return torch.tanh(x + c_noise.reshape(-1, 1, 1, 1))

    found = edm_loss(network, x0, level, noise)
    for k in range(len(x0)):
        sigma = math.exp(1.2 * level[k].item() - 1.2)
        c = Edm().at(sigma)
        y = x0[k] + sigma * noise[k]
        denoised = c.skip * y + c.out * torch.tanh(c.into * y + c.noise)
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        # Both are float64; 1 / (sigma c_out) cancels where sigma is small, at most 1e2 roundings here.
        assert found[k].item() == pytest.approx((weight * (denoised - x0[k]) ** 2).mean().item(), rel=1e-10)


def test_flow_loss_of_the_exact_denoiser_of_gaussian_data():
    """x0 ~ N(0, v): the velocity given x has variance v / ((1 - t)^2 v + t^2); the network is asked at 1000 t."""
    v, n, g = 0.25, 20_000, torch.Generator().manual_seed(2)
    x0, noise = (torch.randn(n, 1, 4, 4, generator=g) for _ in range(2))
    t = torch.full((n,), 0.3)
    size = 0.7**2 * v + 0.3**2

    def exact(x, time):
        assert time.tolist() == pytest.approx([300.0] * n)
        return (0.3 - 0.7 * v) / size * x

    loss = flow_loss(exact, v**0.5 * x0, t, noise)
    # The mean of 16 n squares has a relative standard error of sqrt(2 / (16 n)) = .0025; five of them.
    assert loss.mean().item() == pytest.approx(v / size, rel=0.0125)


def test_mixflows_pairs_are_equally_likely():
    """With gamma 1 the pairs (t, m), t <= m <= 1, are uniform on a triangle: P(t < a, m < b) by its area."""
    generator = torch.Generator().manual_seed(0)
    t, m = slowed(*torch.rand(2, 200_000, generator=generator, dtype=torch.float64), 1.0)
    assert ((t <= m) & (m <= 1)).all()
    for a, b in ((0.3, 0.5), (0.6, 0.7), (0.2, 0.9)):
        area = 2 * (a * b - a**2 / 2)  # over the triangle's, 1/2
        assert ((t < a) & (m < b)).double().mean().item() == pytest.approx(area, abs=0.006)  # five standard errors
    label, time = slowed(t, m, 0.0)
    assert torch.equal(label, time)


def test_the_optimum_of_ciop_is_weighted_between_ddpms_and_that_of_input_perturbation():
    """x0 ~ N(0, v): f_i(x) = sigma x / S_i with S_0 = a^2 v + s^2, S_1 = S_0 + d^2, weighted by p_i N(x; 0, S_i).

    The optimum is the one function whose residual is orthogonal to every function of the input. 400,000 draws; five
    standard errors. DDPM's own optimum, input perturbation's, and an average that ignores the input are not orthogonal.
    """
    v, alpha, sigma, delta, p, n = 0.25, 0.6, 0.8, 0.9, 0.3, 400_000
    generator = torch.Generator().manual_seed(0)
    x0, eps, added, extra = torch.randn(4, n, generator=generator, dtype=torch.float64)
    on = torch.rand(n, generator=generator) < p
    x = alpha * v**0.5 * x0 + sigma * eps + on * delta * added
    target = eps + on * delta * extra  # independent of the input
    sizes = [alpha**2 * v + sigma**2, alpha**2 * v + sigma**2 + delta**2]
    density = [
        share * torch.exp(-(x**2) / (2 * size)) / size**0.5 for share, size in zip((1 - p, p), sizes, strict=True)
    ]
    optima = [sigma * x / size for size in sizes]
    weighted = (density[0] * optima[0] + density[1] * optima[1]) / (density[0] + density[1])

    def orthogonal(f):
        products = [(target - f) * g for g in (x, x**3, torch.tanh(3 * x), x * (x.abs() > 2))]
        return all(abs(product.mean()) < 5 * product.std() / n**0.5 for product in products)

    assert orthogonal(weighted)
    assert not any(orthogonal(f) for f in (*optima, (1 - p) * optima[0] + p * optima[1]))
