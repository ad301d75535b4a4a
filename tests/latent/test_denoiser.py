"""A small U-Net of Stable Diffusion XL's kind: as a denoiser, in a training step, and from a folder."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.diffusion.types import Level, batched
from bench.latent.denoiser import ConditionalDenoiser, Conditioning, load_latent
from bench.latent.loss import latent_loss
from bench.models.train.objectives import Process
from bench.runtime.errors import CheckpointError

SCHEDULE = "scaled_linear(0.00085,0.012)"
LEVEL = Level(500, 0.6, 0.8)
WEIGHTS = "diffusion_pytorch_model.safetensors"


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


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_each_sample_is_given_its_own_embeddings(unet, prediction):
    with torch.no_grad():
        output = unet(X, 500, encoder_hidden_states=EMBEDDINGS[COND]).sample
        pred = ConditionalDenoiser(unet, prediction, EMBEDDINGS)(X, LEVEL, COND)
    said = {"eps": pred.eps, "v": LEVEL.alpha * pred.eps - LEVEL.sigma * pred.x0, "x0": pred.x0}[prediction]
    # Exact where said directly; v from two float32 roundings of numbers below 10 each.
    torch.testing.assert_close(said, output, rtol=0, atol=4e-6 if prediction == "v" else 0)
    torch.testing.assert_close(LEVEL.alpha * pred.x0 + LEVEL.sigma * pred.eps, X, rtol=0, atol=4e-6)
    assert pred.variance_fraction is None


def test_added_conditions_are_chosen_alike(unet_xl):
    pred = ConditionalDenoiser(unet_xl, "eps", EMBEDDINGS, ADDED)(X, LEVEL, COND)
    added = {"text_embeds": ADDED["text_embeds"][COND], "time_ids": ADDED["time_ids"].expand(4, 6)}
    output = unet_xl(X, 500, encoder_hidden_states=EMBEDDINGS[COND], added_cond_kwargs=added).sample
    assert torch.equal(pred.eps, output)
    other = ConditionalDenoiser(unet_xl, "eps", EMBEDDINGS, ADDED)(X, LEVEL, COND.flip(0)).eps
    assert not torch.allclose(pred.eps, other)


def test_guidance_is_the_published_combination(unet):
    empty = Conditioning(torch.zeros(1, 5, 12))
    plain, without = (ConditionalDenoiser(unet, "v", e) for e in (EMBEDDINGS, empty.embeddings))
    guided = ConditionalDenoiser(unet, "v", EMBEDDINGS, unconditional=empty, guidance_scale=7.5)
    c, u, got = plain(X, LEVEL, COND), without(X, LEVEL), guided(X, LEVEL, COND)
    # v is affine in x with the same part of x in both, so that eps and x0 combine alike; 7.5 times a few roundings.
    torch.testing.assert_close(got.eps, u.eps + 7.5 * (c.eps - u.eps), rtol=0, atol=3e-5)
    torch.testing.assert_close(got.x0, u.x0 + 7.5 * (c.x0 - u.x0), rtol=0, atol=3e-5)
    off = ConditionalDenoiser(unet, "v", EMBEDDINGS, unconditional=empty)(X, LEVEL, COND)
    assert torch.equal(off.eps, c.eps)


def test_levels_of_one_an_image_are_the_samples_one_by_one(unet):
    """Kernels of other sizes add in another order: 1e-6 of outputs near 1, and x0 divides by .28."""
    denoiser = ConditionalDenoiser(unet, "eps", EMBEDDINGS)
    levels_ = (LEVEL, Level(0, 0.96, 0.28), Level(999, 0.28, 0.96), Level(250, 0.8, 0.6))
    rows = torch.tensor([(level.t, level.alpha, level.sigma) for level in levels_])
    pred = denoiser(X, batched(*rows.T.reshape(3, -1, 1, 1, 1)), COND)
    for k, level in enumerate(levels_):
        alone = denoiser(X[k : k + 1], level, COND[k : k + 1])
        torch.testing.assert_close(pred.eps[k : k + 1], alone.eps, rtol=0, atol=5e-6)
        torch.testing.assert_close(pred.x0[k : k + 1], alone.x0, rtol=0, atol=2e-5)


def test_what_a_denoiser_refuses(unet):
    with pytest.raises(ValueError, match="unknown prediction 'score'"):
        ConditionalDenoiser(unet, "score", EMBEDDINGS)
    with pytest.raises(ValueError, match="guidance needs"):
        ConditionalDenoiser(unet, "eps", EMBEDDINGS, guidance_scale=2.0)
    with pytest.raises(ValueError, match="3 embeddings for 4 samples"):
        ConditionalDenoiser(unet, "eps", EMBEDDINGS)(X, LEVEL)
    with pytest.raises(ValueError, match="embeddings of 12 numbers, not 11"):
        ConditionalDenoiser(unet, "eps", EMBEDDINGS[..., 1:])
    with pytest.raises(ValueError, match="takes nothing beside"):
        ConditionalDenoiser(unet, "eps", EMBEDDINGS, ADDED)
    with pytest.raises(ValueError, match=r"\[1 or M, L, D\], not \(5, 12\)"):
        ConditionalDenoiser(unet, "eps", EMBEDDINGS[0])


@pytest.mark.parametrize("added", [None, {"time_ids": ADDED["time_ids"]}])
def test_what_sdxl_adds_may_not_be_forgotten(unet_xl, added):
    with pytest.raises(ValueError, match="takes text_embeds and time_ids beside"):
        ConditionalDenoiser(unet_xl, "eps", EMBEDDINGS, added)


def test_rows_must_go_together():
    with pytest.raises(ValueError, match=r"have \[2, 3\] rows"):
        Conditioning(EMBEDDINGS, {"text_embeds": torch.zeros(2, 10)})


def test_a_network_in_half_precision_is_fed_and_read_in_its_own():
    """bfloat16 has 8 bits; errors of a few layers stay below a tenth of outputs near 1."""
    reference = ConditionalDenoiser(small(), "eps", EMBEDDINGS)
    half = ConditionalDenoiser(small().to(torch.bfloat16), "eps", EMBEDDINGS)
    with torch.no_grad():
        expected, got = (denoiser(X, LEVEL, COND).eps for denoiser in (reference, half))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0, atol=0.1 * float(expected.abs().max()))


def test_sizes_in_pixels_survive_half_precision():
    """1023 is no bfloat16 number (1024 is), and half precision ends at 65504."""
    ids = Conditioning(EMBEDDINGS, {"time_ids": torch.full((1, 6), 1023.0)}).to("cpu", torch.bfloat16).added
    assert ids["time_ids"].tolist() == [[1023.0] * 6]


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


@pytest.fixture
def folder(tmp_path, unet):
    """A pipeline's folder with an autoencoder named but not needed."""
    unet.save_pretrained(tmp_path / "unet")
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"
    )
    scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"]}')
    return tmp_path


def test_a_folder_is_loaded(folder, unet):
    model = load_latent(folder)
    assert (model.schedule, model.T, model.prediction) == (SCHEDULE, 1000, "v")
    assert torch.equal(model.unet(X, T, EMBEDDINGS[COND]).sample, unet(X, T, EMBEDDINGS[COND]).sample)
    assert load_latent(folder, torch.float16).unet.dtype == torch.float16


def test_what_is_no_conditional_model_is_refused(folder):
    config = folder / "unet" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"_class_name": "UNet2DModel"}))
    with pytest.raises(CheckpointError, match="no UNet2DConditionModel"):
        load_latent(folder)
    config.write_text(json.dumps(content | {"cross_attention_dim": 16}))
    with pytest.raises(CheckpointError, match="does not fit its config"):
        load_latent(folder)
    config.write_text(json.dumps(content | {"transformer_layers_per_block": 10**9}))
    with pytest.raises(CheckpointError, match="beyond any network"):
        load_latent(folder)


def test_an_inpainting_network_is_refused(folder):
    small(in_channels=9).save_pretrained(folder / "unet")
    with pytest.raises(CheckpointError, match="inpainting"):
        load_latent(folder)


def test_weights_that_are_not_finite_are_refused(folder):
    path = folder / "unet" / WEIGHTS
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match="not finite"):
        load_latent(folder)
