import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.posterior import Posterior
from bench.diffusion.samplers import Draws
from bench.diffusion.schedules import alpha_bars
from bench.diffusion.solvers import Ancestral
from bench.diffusion.types import Level
from bench.models.denoisers.parameterization import as_prediction
from bench.models.train.scheduled_sampling import Rollout, replaced_share

T = 1000
BARS = alpha_bars("cosine", T)


def level(t):
    return Level(t, math.sqrt(BARS[t]), math.sqrt(1 - BARS[t]))


def draws(count, seed=0):
    return Draws(Noise(seed), torch.arange(count))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_share_rises_linearly_from_nothing():
    shares = [replaced_share(0.5, k, 101) for k in range(101)]
    assert shares == pytest.approx([0.005 * k for k in range(101)], abs=1e-15)
    assert replaced_share(0.5, 0, 1) == 0


def wavy(x, t):
    """A smooth stand-in: eps and the variance fraction as functions of state and index."""
    return torch.cat([torch.sin(3 * x + t.reshape(-1, 1, 1, 1)), torch.cos(x)], dim=1)


@pytest.mark.parametrize("stride", [1, 5, 50])
def test_a_rollout_is_a_piece_of_the_suites_walk(stride):
    """Three steps of the ancestral sampler with learned variance and clipping, each image at an index of its own.

    x0_hat is clipped, so float32 errors of states below 5 do not grow by 1 / alpha: 1e-7 * 5, some operations, 3 steps.
    """
    x0, noise, t = normal(4, 2, 3, 3).clamp(-1, 1), normal(4, 2, 3, 3, seed=1), torch.tensor([0, 30, 400, 800])
    y, target = Rollout.make("cosine", T, 3, stride).pair(wavy, x0, t, noise, draws(4))
    solver = Ancestral("learned")
    for k in range(4):
        path = [level(int(t[k]) + step * stride) for step in (3, 2, 1, 0)]
        x = path[0].alpha * x0[k : k + 1] + path[0].sigma * noise[k : k + 1]
        for step, (here, below) in enumerate(pairwise(path), start=1):
            pred = as_prediction("eps", wavy(x, torch.tensor([here.t])), x, here)
            z = draws(4).normal(Purpose.TRAIN_ROLLOUT, step, (2, 3, 3))[k : k + 1]
            x = solver.update(x, replace(pred, x0=pred.x0.clamp(-1, 1)), here, below, z)
        torch.testing.assert_close(y[k : k + 1], x, rtol=0, atol=1e-5)
    alpha, sigma = (
        torch.tensor([getattr(level(i), name) for i in t]).reshape(-1, 1, 1, 1) for name in ("alpha", "sigma")
    )
    # The state is that of its image and its target; sigma_0 = .0064 divides and multiplies an error of 1e-7.
    torch.testing.assert_close(alpha * x0 + sigma * target, y, rtol=0, atol=1e-6)


def test_nothing_starts_above_the_noisiest_index():
    """At T - 1 there is no step to make, and at T - 3 with a stride of 2 one; other answers are unused."""
    calls = []

    def network(x, t):
        calls.append(t.tolist())
        said = wavy(x, t)
        said[0] = math.nan  # at T - 1 all the way
        return said

    x0, noise, t = normal(2, 1, 2, 2).clamp(-1, 1), normal(2, 1, 2, 2, seed=1), torch.tensor([T - 1, T - 3])
    y, target = Rollout.make("cosine", T, 3, 2).pair(network, x0, t, noise, draws(2))
    assert calls == [[T - 1, T - 1]] * 3
    # alpha is 5e-5 and sigma 1 to float32: the state is the noise, the division exact.
    torch.testing.assert_close(y[0], level(T - 1).alpha * x0[0] + noise[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(target[0], noise[0], rtol=0, atol=1e-6)
    assert y[1].isfinite().all()
    once = draws(2).normal(Purpose.TRAIN_ROLLOUT, 3, (1, 2, 2))  # the first two steps led nowhere
    x = level(T - 1).alpha * x0[1:] + level(T - 1).sigma * noise[1:]
    pred = as_prediction("eps", wavy(x, torch.tensor([T - 1])), x, level(T - 1))
    clipped = replace(pred, x0=pred.x0.clamp(-1, 1))
    expected = Ancestral("learned").update(x, clipped, level(T - 1), level(T - 3), once[1:])
    torch.testing.assert_close(y[1:], expected, rtol=0, atol=1e-5)


def test_no_gradient_flows_through_the_steps():
    weight = torch.ones(1, requires_grad=True)
    x0, t = normal(2, 1, 2, 2), torch.tensor([3, 500])
    pair = Rollout.make("cosine", T, 2, 1).pair(lambda x, t: weight * wavy(x, t), x0, t, x0, draws(2))
    assert not any(part.requires_grad for part in pair)


def exact_network(mean, variance, stride):
    """The exact denoiser of x0 ~ N(mean, variance), with the fraction that gives a step its exact variance.

    x_next given x has the variance small + c1^2 Var(x0 | x), whose logarithm is f log large + (1 - f) log small.
    """

    def network(x, t):
        here, below = level(int(t[0])), level(int(t[0]) - stride)
        q, total = Posterior.between(here, below), here.alpha**2 * variance + here.sigma**2
        eps = here.sigma / total * (x - here.alpha * mean)
        wanted = math.log(q.small + q.c1**2 * variance * here.sigma**2 / total)
        fraction = (wanted - math.log(q.small)) / (math.log(q.large) - math.log(q.small))
        return torch.cat([eps, torch.full_like(x, 2 * fraction - 1)], dim=1)

    return network


@pytest.mark.parametrize(("t", "stride"), [(0, 1), (200, 5), (500, 50), (800, 20)])
def test_an_exact_network_makes_states_of_the_right_distribution(t, stride):
    """x0 ~ N(.1, .04): each step draws from p(x_next | x) exactly, so x_hat has the marginal of q(x_t).

    x0_hat stays within .1 +- .9 but for 7e-6 of the draws (4.5 sd), so clipping does not show. Standard errors over n
    pixels: sd / sqrt(n) of the mean, var sqrt(2 / n) of the variance, sd sd' sqrt(2 / n) at most of a covariance;
    five of each. What is left of the covariance with x0 is as the module's docstring has it: all but half a per cent
    in the first case, .27 in the third.
    """
    mean, variance, n = 0.1, 0.04, 4096 * 64
    x0 = mean + math.sqrt(variance) * normal(4096, 1, 8, 8)
    network = exact_network(mean, variance, stride)
    rollout = Rollout.make("cosine", T, 4, stride)
    y, _ = rollout.pair(network, x0, torch.full((4096,), t), normal(4096, 1, 8, 8, seed=1), draws(4096))
    here, start = level(t), level(t + 4 * stride)
    total = here.alpha**2 * variance + here.sigma**2
    total_start = start.alpha**2 * variance + start.sigma**2
    y, x0 = y.double(), x0.double()
    assert y.mean().item() == pytest.approx(here.alpha * mean, abs=5 * math.sqrt(total / n))
    assert y.var().item() == pytest.approx(total, abs=5 * total * math.sqrt(2 / n))
    kept = 1 - (1 - start.alpha**2 / here.alpha**2) / total_start
    covariance = ((x0 - mean) * (y - here.alpha * mean)).mean().item()
    spread = 5 * math.sqrt(2 * total * variance / n)
    assert covariance == pytest.approx(here.alpha * variance * kept, abs=spread)


def test_draws_belong_to_the_images_numbers():
    x0, noise, t = normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1), torch.tensor([10, 300, 700])
    rollout = Rollout.make("cosine", T, 2, 3)
    whole = rollout.pair(wavy, x0, t, noise, Draws(Noise(0), torch.tensor([5, 6, 7])))
    alone = rollout.pair(wavy, x0[1:2], t[1:2], noise[1:2], Draws(Noise(0), torch.tensor([6])))
    assert all(torch.equal(a[1:2], b) for a, b in zip(whole, alone, strict=True))
    other = rollout.pair(wavy, x0, t, noise, Draws(Noise(0), torch.tensor([5, 8, 7])))
    assert not torch.equal(other[0][1], whole[0][1])
    assert torch.equal(other[0][0], whole[0][0])
