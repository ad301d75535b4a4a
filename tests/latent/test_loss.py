"""The training step of a small U-Net of Stable Diffusion XL's kind."""

import diffusers
import pytest
import torch

from bench.latent.inputs import Conditioning
from bench.latent.loss import latent_loss
from bench.models.train.objectives import Process

SCHEDULE = "scaled_linear(0.00085,0.012)"


def small(**changes):
    torch.manual_seed(0)
    settings = {
        "sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 12, "attention_head_dim": (2, 4),
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**settings | changes).eval()


@pytest.fixture(scope="module")
def unet():
    return small().requires_grad_(False)


@pytest.fixture(scope="module")
def unet_xl():
    """With SDXL's added conditions: six sizes at 4 numbers each, and 10 pooled features."""
    settings = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    return small(**settings, projection_class_embeddings_input_dim=34).requires_grad_(False)


@pytest.fixture(scope="module")
def process():
    return Process.make(SCHEDULE, 1000)


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, EMBEDDINGS = normals(4, 4, 8, 8), normals(3, 5, 12, seed=1)
ADDED = {"text_embeds": normals(3, 10, seed=2), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
COND = torch.tensor([2, 0, 1, 2])


T = torch.tensor([0, 10, 500, 999])
NOISE, XI = normals(4, 4, 8, 8, seed=3), normals(4, 4, 8, 8, seed=4)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_the_training_step_is_the_published_one(unet, process, prediction, gamma):
    """Against the library's own noising and velocity, whose float32 alpha_bar is off by 1e-7.

    At T = 999 that changes the input by less than 1e-6, and the loss, near 1, by about as much: 1e-5 allowed.
    """
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    y = scheduler.add_noise(X, NOISE + gamma * XI, T)
    target = NOISE if prediction == "eps" else scheduler.get_velocity(X, NOISE, T)
    output = unet(y, T, encoder_hidden_states=EMBEDDINGS[COND]).sample
    expected = (output - target).square().mean(dim=(1, 2, 3))
    loss = latent_loss(
        unet, X, EMBEDDINGS[COND], NOISE, T, process, prediction=prediction, input_perturbation_gamma=gamma, xi=XI
    )
    assert loss.shape == (4,)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_without_perturbation_it_is_the_plain_loss_bit_for_bit(unet, process, prediction):
    before = torch.get_rng_state()
    arguments = (unet, X, EMBEDDINGS[COND], NOISE, T, process)
    plain = latent_loss(*arguments, prediction=prediction)
    off = latent_loss(*arguments, prediction=prediction, input_perturbation_gamma=0.0, xi=XI)
    y = process.alpha[T] * X + process.sigma[T] * NOISE
    target = NOISE if prediction == "eps" else process.alpha[T] * NOISE - process.sigma[T] * X
    by_hand = (unet(y, T, encoder_hidden_states=EMBEDDINGS[COND]).sample - target).square().flatten(1).mean(1)
    assert torch.equal(plain, off)
    assert torch.equal(plain, by_hand)
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn


def test_a_perturbation_is_drawn_where_none_is_given(unet, process):
    arguments = (unet, X, EMBEDDINGS[:1], NOISE, T, process)
    torch.manual_seed(5)
    drawn = latent_loss(*arguments, input_perturbation_gamma=0.1)
    torch.manual_seed(5)
    given = latent_loss(*arguments, input_perturbation_gamma=0.1, xi=torch.randn_like(NOISE))
    assert torch.equal(drawn, given)
    assert not torch.equal(drawn, latent_loss(*arguments))


def test_training_takes_added_conditions(unet_xl, process):
    added = {"text_embeds": ADDED["text_embeds"][COND], "time_ids": ADDED["time_ids"]}
    loss = latent_loss(unet_xl, X, EMBEDDINGS[COND], NOISE, T, process, added=added)
    assert torch.isfinite(loss).all()


def test_no_training_step_for_x0(unet, process):
    with pytest.raises(ValueError, match="choose eps or v"):
        latent_loss(unet, X, EMBEDDINGS[:1], NOISE, T, process, prediction="x0")


def test_conditions_go_with_the_samples(unet, process):
    with pytest.raises(ValueError, match="3 conditions for 4 samples"):
        latent_loss(unet, X, EMBEDDINGS, NOISE, T, process)
    with pytest.raises(ValueError, match=r"\[1 or M, L, D\], not \(5, 12\)"):
        Conditioning(EMBEDDINGS[0])
    with pytest.raises(ValueError, match=r"have \[2, 3\] rows"):
        Conditioning(EMBEDDINGS, {"text_embeds": torch.zeros(2, 10)})
