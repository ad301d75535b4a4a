import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.diffusion.types import Level, batched
from bench.models.denoisers.preconditioning import PRECONDITIONINGS, EdmDenoiser, make_preconditioning

SIGMAS = (0.03, 0.5, 2.0, 40.0)


def level(sigma, alpha=1.0):
    return Level(t=0.0, alpha=alpha, sigma=sigma)


def test_edm_is_the_last_column_of_the_table():
    for sigma in SIGMAS:
        total = sigma**2 + 0.25
        wanted = (0.25 / total, 0.5 * sigma / math.sqrt(total), 1 / math.sqrt(total), math.log(sigma) / 4)
        # float64 arithmetic of a few operations on each side: a few times 1e-16
        assert make_preconditioning("edm").at(sigma) == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.1])
def test_edm_keeps_the_networks_input_and_target_at_unit_variance(sigma_data):
    """The two conditions that define c_in and c_out (Karras et al. 2022, appendix B.6)."""
    for sigma in SIGMAS:
        c = make_preconditioning("edm", {"sigma_data": sigma_data}).at(sigma)
        assert c.into**2 * (sigma_data**2 + sigma**2) == pytest.approx(1, rel=1e-14)
        target = ((1 - c.skip) ** 2 * sigma_data**2 + c.skip**2 * sigma**2) / c.out**2
        assert target == pytest.approx(1, rel=1e-12)  # (1 - c_skip) loses digits where sigma is small: 1e-16 / 4e-3


def test_vp_noise_and_time_are_inverse():
    vp = make_preconditioning("vp")
    for time in (1e-5, 0.01, 0.3, 1.0):
        # Song et al. 2021: 1 + sigma^2 is the exponential of the integral of beta(s) = .1 + 19.9 s up to t
        sigma = math.sqrt(math.exp(0.5 * 19.9 * time**2 + 0.1 * time) - 1)
        # at time 1e-5 the exponential is 1 + 1e-6, which keeps 1e-16 / 1e-6 of its excess
        assert vp.at(sigma).noise / 999 == pytest.approx(time, rel=1e-9)
    assert vp.sigma_min == pytest.approx(math.sqrt(math.expm1(1e-6 + 9.95e-10)), rel=1e-12)
    assert vp.sigma_max == pytest.approx(math.sqrt(math.expm1(10.05)), rel=1e-12)
    assert vp.at(3.0)[:3] == pytest.approx((1, -3, 1 / math.sqrt(10)), rel=1e-14)


def test_ve_is_conditioned_on_half_the_noise():
    ve = make_preconditioning("ve")
    assert (ve.at(3.0), ve.sigma_min, ve.sigma_max) == (pytest.approx((1, 3, 1, math.log(1.5)), rel=1e-14), 0.02, 100)


def test_iddpm_levels_are_those_of_the_cosine_schedule():
    """Where no beta is clipped, 1 + u^2 is 1 / alpha_bar with alpha_bar 1 at the data (Nichol & Dhariwal 2021)."""
    iddpm = make_preconditioning("iddpm")
    levels = iddpm.levels
    assert (levels.shape, levels[-1]) == ((1001,), 0)
    assert np.all(np.diff(levels) < 0)
    j = np.array([500, 900, 999])
    bar = np.sin(0.5 * math.pi * j / 1000 / 1.008) ** 2 / np.sin(0.5 * math.pi / 1.008) ** 2
    # 500 steps of the recursion, each rounding 1 + u^2 to 1e-16; u at j = 999 is .006, where 1 + u^2 holds u^2 to 3e-12
    assert levels[j] == pytest.approx(np.sqrt(1 / bar - 1), rel=1e-9)
    # the noisiest step: the ratio of alpha_bar to the next, which is 0 there, is clipped at .001
    assert levels[0] == pytest.approx(math.sqrt((levels[1] ** 2 + 1) / 0.001 - 1), rel=1e-12)
    assert (iddpm.sigma_min, iddpm.sigma_max) == (levels[999], levels[0])


def test_iddpm_rounds_to_its_levels_and_counts_them():
    iddpm = make_preconditioning("iddpm")
    for index in (0, 300, 999):
        sigma = float(iddpm.levels[index])
        assert (iddpm.rounded(sigma * (1 + 1e-6)), iddpm.at(sigma).noise) == (sigma, 999 - index)
        assert iddpm.at(sigma)[:3] == pytest.approx((1, -sigma, 1 / math.sqrt(1 + sigma**2)), rel=1e-14)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_the_ideal_network_of_gaussian_data_makes_the_ideal_denoiser(name):
    """For data N(0, s^2) D(x; sigma) = s^2 / (s^2 + sigma^2) x; solved for F, the wrapper must give it back."""
    known = make_preconditioning(name)
    s = 0.7
    for sigma in map(known.rounded, SIGMAS):
        c = known.at(sigma)
        seen = []

        def network(x, noise, labels, c=c, sigma=sigma, seen=seen):
            seen.append((noise, labels))
            ideal = s**2 / (s**2 + sigma**2) * x.double() / c.into
            return SimpleNamespace(sample=((ideal - c.skip * x.double() / c.into) / c.out).float())

        x = sigma * torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        labels = torch.tensor([1, 0])
        prediction = EdmDenoiser(network, known)(x, level(sigma), labels)
        # the network's input and output are float32, 6e-8 of a number of the size of x; c_skip x and c_out F may cancel
        ideal = s**2 / (s**2 + sigma**2) * x
        assert (prediction.x0 - ideal).abs().max() < 3e-7 * x.abs().max()
        assert torch.allclose(x, prediction.x0 + sigma * prediction.eps, rtol=1e-12, atol=1e-12)
        assert (prediction.x0.dtype, seen[0][0].dtype) == (torch.float64, torch.float32)
        assert seen[0][0].tolist() == pytest.approx([c.noise] * 2, rel=1e-7)
        assert seen[0][1] is labels


def test_a_smaller_alpha_is_the_same_model_of_the_scaled_state():
    known = make_preconditioning("edm")
    denoise = EdmDenoiser(lambda x, noise, _: SimpleNamespace(sample=x.tanh() * noise[:, None, None, None]), known)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, scaled = denoise(x, level(2.0)), denoise(0.5 * x, level(1.0, alpha=0.5))
    assert torch.allclose(plain.x0, scaled.x0, rtol=1e-12)  # a power of two scales without rounding
    assert torch.allclose(plain.eps, scaled.eps, rtol=1e-12)


def test_channels_beyond_the_images_are_left_out():
    """iDDPM's network also predicts a variance, which EDM does not use."""
    both = EdmDenoiser(
        lambda x, *_: SimpleNamespace(sample=torch.cat([x, torch.full_like(x, torch.nan)], 1)),
        make_preconditioning("iddpm"),
    )
    prediction = both(torch.ones(2, 3, 4, 4), level(1.0))
    assert prediction.x0.shape == (2, 3, 4, 4)
    assert torch.isfinite(prediction.eps).all()
    assert prediction.variance_fraction is None


IMPOSSIBLE = [
    ("karras", {}, "unknown preconditioning 'karras'"),
    ("edm", {"beta": 1}, "no constant 'beta'"),
    ("edm", {"sigma_data": "0.5"}, "sigma_data must be a finite number above 0"),
    ("edm", {"sigma_data": 0}, "sigma_data must be a finite number above 0"),
    ("edm", {"sigma_data": math.nan}, "sigma_data must be a finite number above 0"),
    ("edm", {"sigma_data": True}, "sigma_data must be a finite number above 0"),
    ("edm", {"sigma_min": -1}, "sigma_min must be a finite number of at least 0"),
    ("edm", {"sigma_min": 2, "sigma_max": 1}, "no range of noise levels"),
    ("iddpm", {"M": 10**9}, "M must be an integer from 2 to 100000"),
    ("iddpm", {"M": 2.5}, "M must be an integer"),
    ("iddpm", {"C_1": 10**400}, "C_1 must be a finite number"),
    ("vp", {"beta_d": 1e6}, "no range of noise levels"),
    ("ve", {"sigma_max": 0.01}, "no range of noise levels"),
]


@pytest.mark.parametrize(("name", "settings", "message"), IMPOSSIBLE)
def test_impossible_constants_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make_preconditioning(name, settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iddpm_counts_every_level_of_a_batch(dtype):
    """Float32 tells its levels apart: neighbours differ by more than 1e-3 of themselves, but for the first."""
    iddpm = make_preconditioning("iddpm", {"M": 100})
    sigmas = torch.tensor(iddpm.levels[:-1].copy(), dtype=dtype).reshape(-1, 1, 1, 1)
    for nearby in (1 - 1e-5, 1, 1 + 1e-5):
        assert iddpm.at(nearby * sigmas).noise.flatten().tolist() == list(range(99, -1, -1))


@pytest.mark.parametrize("name", PRECONDITIONINGS)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_batch_of_levels_is_its_images_one_by_one(name, alpha):
    """Float32 in and out of the network, whose noise of up to 1000 is known to 6e-5: 1e-6 of a state of size sigma."""
    known = make_preconditioning(name)
    denoise = EdmDenoiser(
        lambda x, noise, _: SimpleNamespace(sample=torch.tanh(x + noise[:, None, None, None] / 1000)), known
    )
    sigmas = torch.tensor([known.rounded(sigma) for sigma in SIGMAS], dtype=torch.float64).reshape(-1, 1, 1, 1)
    x = alpha * sigmas * torch.randn(4, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pred = denoise(x, batched(torch.zeros_like(sigmas), torch.full_like(sigmas, alpha), alpha * sigmas))
    for k, sigma in enumerate(sigmas.flatten().tolist()):
        alone = denoise(x[k : k + 1], level(alpha * sigma, alpha))
        torch.testing.assert_close(pred.x0[k : k + 1], alone.x0, rtol=0, atol=1e-6 * sigma)
        torch.testing.assert_close(pred.eps[k : k + 1], alone.eps, rtol=0, atol=1e-6)
    assert pred.x0.dtype == torch.float64
