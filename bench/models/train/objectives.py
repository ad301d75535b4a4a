"""Training objectives: what the network is shown, what it must say, and the loss.

Indices t count from 0. ``noise`` and ``xi`` are independent unit normals; ``gamma`` is the input-perturbation
strength and ``s = sqrt(1 + gamma**2)``; it may depend on t, see :data:`GAMMA_SCHEDULES`.

* ``ddpm``: Ho et al. 2020, eq. 14.
* ``ddpm-ip``: Ning et al. 2023, Algorithm 1: the input carries ``noise + gamma * xi``, the target is ``noise``.
* ``ddpm-y``: same input, target ``(noise + gamma * xi) / s`` (ibid., Table 7): plain DDPM on a larger schedule.
* ``ip-equivalent``: input ``alpha x0 + s sigma noise``, target ``noise / s``. Its expected gradient is that of
  ``ddpm-ip``, because given the input's noise n' = (noise + gamma xi) / s the target is n'/s plus independent noise.

:func:`rectified` then turns a pair into DREAM's, and :mod:`bench.models.train.scheduled_sampling` replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.diffusion.schedules import FLOW_T, alpha_bars, betas

Gamma = float | Tensor
Pair = tuple[Tensor, Tensor]
Network = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Process:
    """Per-index constants of the training process, float32 [T, 1, 1, 1] each, computed in float64.

    ``log_beta`` and ``log_btil`` bound the learned variance; ``log_btil`` at index 0, where the posterior variance
    is 0, repeats index 1 as the published code does. ``c1`` is the posterior mean's weight of x0.
    """

    alpha: Tensor
    sigma: Tensor
    c1: Tensor
    log_beta: Tensor
    log_btil: Tensor

    @classmethod
    def make(cls, schedule: str, T: int, device: torch.device | str = "cpu") -> Process:
        """Build the constants of a named schedule."""
        beta = torch.from_numpy(betas(schedule, T))
        bar = torch.from_numpy(alpha_bars(schedule, T))  # alpha_t^2 = 1 - sigma_t^2
        previous = torch.cat([torch.ones(1, dtype=bar.dtype), bar[:-1]])
        btil = beta * (1 - previous) / (1 - bar)  # the posterior variance (Ho et al. 2020, eq. 7)
        btil = torch.cat([btil[1:2], btil[1:]])
        c1 = beta * previous.sqrt() / (1 - bar)  # of the posterior mean (ibid.)
        columns = (bar.sqrt(), (1 - bar).sqrt(), c1, beta.log(), btil.log())
        return cls(*(column.to(device, torch.float32).reshape(-1, 1, 1, 1) for column in columns))


# The share of gamma at indices t [B] of 0..T-1. The released code of the time-shift sampler's ADM version trains with a
# gamma that depends on t; we know no paper on it. ``linear`` rises from .01 at t = 0 to 1 at T - 1, the noisiest.
# ``cosine`` falls from 1 to 0: the code takes the cosine of t where t / T is meant, which would jump from index to
# index, and has a cutoff, 0 by default, that switches the perturbation off at the noisiest indices.
GAMMA_SCHEDULES: Mapping[str, Callable[[Tensor, int], Gamma]] = {
    "constant": lambda t, T: 1.0,
    "linear": lambda t, T: 0.01 + 0.99 * t / max(T - 1, 1),
    "cosine": lambda t, T: ((t / T + 0.008) / 1.008 * (math.pi / 2)).cos().square(),
}


def gamma_at(schedule: str, gamma: float, t: Tensor, T: int) -> Gamma:
    """Return the input-perturbation strength at indices t [B] of 0..T-1: ``gamma`` itself, or float32 [B, 1, 1, 1]."""
    share = GAMMA_SCHEDULES[schedule](t.float(), T)
    return gamma * (share.reshape(-1, 1, 1, 1) if isinstance(share, Tensor) else share)


OBJECTIVES = ("ddpm", "ddpm-ip", "ddpm-y", "ip-equivalent")


def make_pair(name: str, process: Process, x0: Tensor, t: Tensor, noise: Tensor, xi: Tensor, gamma: Gamma) -> Pair:
    """Return (network input, target), both [B, C, H, W], for real images x0 in [-1, 1] at indices t [B].

    ``name`` is one of :data:`OBJECTIVES`.
    """
    signal, sigma = process.alpha[t] * x0, process.sigma[t]
    if name == "ddpm":
        return signal + sigma * noise, noise
    s = (1 + gamma.square()).sqrt() if isinstance(gamma, Tensor) else math.sqrt(1 + gamma**2)
    if name == "ip-equivalent":
        return signal + s * sigma * noise, noise / s
    total = noise + gamma * xi
    return signal + sigma * total, noise if name == "ddpm-ip" else total / s


def rectified(process: Process, eps: Tensor, y: Tensor, target: Tensor, t: Tensor, power: float) -> Pair:
    """Return DREAM's (network input, target) of a pair (Zhou et al. 2024, algorithm 3), both [B, C, H, W].

    The network's own error d = sigma_t^power (target - eps) is added to the input's noise and to the target, so that
    the input is ``alpha x0 + sigma target`` still. ``eps`` is what the network says of the pair, without a gradient:
    one more call an image. The paper's power is 1, for super-resolution; at a large one only the noisiest indices
    differ from plain DDPM. The released code agrees, and has dropout off in that call; the recipes have none.
    """
    error = process.sigma[t].pow(power) * (target - eps)
    return y + process.sigma[t] * error, target + error


def hybrid_loss(process: Process, output: Tensor, y: Tensor, target: Tensor, x0: Tensor, t: Tensor) -> Pair:
    """Return (mean squared error, variational bound in bits per dimension), each [B].

    ``output`` [B, 2C, H, W] holds eps and the variance fraction. The bound trains the variance alone: eps is
    detached (Nichol & Dhariwal 2021, section 3.1). With T = 1000 the published weighting of the two is 1 : 1.
    Under input perturbation the bound takes the perturbed input for x_t, as the published code does.
    """
    eps, raw = output.chunk(2, dim=1)
    mse = (eps - target).square().flatten(1).mean(1)  # L_simple (Ho et al. 2020, eq. 14)
    # Sigma = exp(v log beta + (1 - v) log beta-tilde) (Nichol & Dhariwal 2021, eq. 15).
    fraction = (raw + 1) / 2
    log_var = fraction * process.log_beta[t] + (1 - fraction) * process.log_btil[t]
    x0_hat = (y - process.sigma[t] * eps.detach()) / process.alpha[t]
    shift = process.c1[t] * (x0 - x0_hat)  # between the means of posterior and model: both have the same weight of x_t
    # KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) of two Gaussians; at t = 0 -log p(x0 | x_1).
    log_ratio = process.log_btil[t] - log_var
    kl = 0.5 * (log_ratio.exp() - 1 - log_ratio + shift.square() * (-log_var).exp())
    nll = -_log_bin_probability(x0, x0_hat, 0.5 * log_var)
    bound = torch.where(t.reshape(-1, 1, 1, 1) == 0, nll, kl)
    return mse, bound.flatten(1).mean(1) / math.log(2)


def edm_loss(network: Network, x0: Tensor, level_noise: Tensor, noise: Tensor, sigma_data: float = 0.5) -> Tensor:
    """Return the weighted squared error of a preconditioned network, [B] (Karras et al. 2022, eq. 8 and table 1).

    ln sigma = -1.2 + 1.2 ``level_noise`` [B]; the weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 turns the
    error of D into that of the network F against (x0 - c_skip y) / c_out, which is what is computed.
    """
    sigma = (1.2 * level_noise - 1.2).exp().reshape(-1, 1, 1, 1)  # P_std and P_mean of table 1
    total = sigma.square() + sigma_data**2
    y = x0 + sigma * noise
    output = network(y / total.sqrt(), sigma.flatten().log() / 4)  # F(c_in y; c_noise)
    # (x0 - c_skip y) / c_out with c_skip = sigma_data^2 / total and c_out = sigma sigma_data / sqrt(total).
    target = (x0 - sigma_data**2 / total * y) * total.sqrt() / (sigma * sigma_data)
    return (output - target).square().flatten(1).mean(1)


def slowed(t: Tensor, u: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return MixFlow's labels and the times of their inputs, [B] each, of uniform t and u [B] in [0, 1).

    A label t has the density 2 (1 - t), its input the time m ~ U[t, t + gamma (1 - t)], noise at 1. So all pairs are
    equally likely (Li et al. 2026, arXiv 2512.19311, where time runs the other way: t ~ Beta(2, 1) and
    m ~ U[(1 - gamma) t, t]; read in the authors' project page and code, and in notes on the paper).
    """
    label = 1 - t.sqrt()
    return label, label + gamma * (1 - label) * u


def flow_loss(network: Network, x0: Tensor, t: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
    """Return the squared error of a velocity, [B] (rectified flow, Liu et al. 2023, eq. 1).

    The input is (1 - t) x0 + t noise at t [B] in (0, 1), the target its derivative noise - x0. The network is asked
    at 1000 t, the scale of training indices, or at 1000 ``label``, where MixFlow tells it of less noise.
    """
    u, t = t.reshape(-1, 1, 1, 1), t if label is None else label
    output = network((1 - u) * x0 + u * noise, FLOW_T * t)
    return (output - (noise - x0)).square().flatten(1).mean(1)


def _log_bin_probability(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log mass a Gaussian gives to x's bin among 256 in [-1, 1], the outer bins open (Ho et al. 2020, eq. 13)."""
    # Pixels are 256 values 2/255 apart, so half a bin is 1/255.
    upper = torch.special.ndtr((x + 1 / 255 - mean) * (-log_scale).exp())
    lower = torch.special.ndtr((x - 1 / 255 - mean) * (-log_scale).exp())
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp(min=1e-12).log()


def gradient_penalty(network: Network, y: Tensor, t: Tensor, probe: Tensor) -> Tensor:
    """Estimate ||d eps / d y||_F^2 / D per image, [B], by one Hutchinson probe.

    With a unit normal or random-sign ``probe`` [B, C, H, W] the expectation of ||J^T probe||^2 is ||J||_F^2; it is
    divided by D = C*H*W so that, like the squared error, it does not grow with the image. Attention runs on the
    math backend, the only one with a second derivative on CPU.
    """
    y = y.detach().requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH):
        eps = network(y, t)[:, : y.shape[1]]
        # J^T probe, with a graph of its own: the penalty's gradient is a second derivative.
        (product,) = torch.autograd.grad((eps * probe).sum(), y, create_graph=True)
    return product.square().flatten(1).mean(1)
