"""Runs of latent models, tiny and random, by the main command."""

import json

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch

from bench.diffusion.noise import Noise, Purpose

N, PROMPTS = 90, 3


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A U-Net, a DiT and an autoencoder in the library's format, latents and embeddings."""
    root = tmp_path_factory.mktemp("material")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, attention_head_dim=(2, 4), norm_num_groups=4,
    )  # fmt: skip
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        num_embeds_ada_norm=5, norm_num_groups=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8), norm_num_groups=4,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    for name, network in (("sd/unet", unet), ("dit/transformer", dit), ("vae", vae)):
        network.save_pretrained(root / name)
    for name in ("sd", "dit"):
        scheduler.save_pretrained(root / name / "scheduler")
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(N, 4, 8, 8)).astype(np.float32)
    np.savez(root / "latents.npz", latents=latents, cond=np.arange(N) % PROMPTS)
    embeddings = rng.normal(size=(PROMPTS, 5, 12)).astype(np.float32)
    np.savez(root / "embeddings.npz", embeddings=embeddings, negative_embeddings=np.zeros((1, 5, 12), np.float32))
    np.savez(root / "one-sided.npz", embeddings=embeddings)
    np.savez(root / "few.npz", embeddings=embeddings[:2], negative_embeddings=embeddings[:1])
    np.savez(root / "deep.npz", latents=latents[:, :3])
    np.savez(root / "odd.npz", latents=latents[..., :7, :7])
    return root


@pytest.fixture
def latent(material, command, tmp_path):
    """Return a function that runs models by their entries; ``{root}`` is the folder of the material."""

    def run(entries, *flags, models=None):
        sd = 'weights = "{root}/sd"\nlatents = "{root}/latents.npz"\nembeddings = "{root}/embeddings.npz"\n'
        text = "".join(f"[models.{name}]\n{entry.replace('SD', sd)}\n" for name, entry in entries.items())
        (tmp_path / "latent.toml").write_text(text.replace("{root}", str(material)))
        return command(
            "--config", tmp_path / "latent.toml", "--models", models or ",".join(entries), "--steps", "3",
            "--samples", "70", "--quiet", "--out", tmp_path / "out", *flags,
        )  # fmt: skip

    return run


def cell(tmp_path, name, sampler="ddpm"):
    folder = tmp_path / "out" / "cells" / f"{name}-{sampler}-3-seed0"
    return folder, json.loads((folder / "metrics.json").read_text())


def test_latent_models_run_with_all_instruments_and_their_own_moments(latent, tmp_path):
    """Prompts are paired over models by seed; guidance asks twice; no score is called a FID."""
    dit = 'weights = "{root}/dit"\nlatents = "{root}/latents.npz"\nguidance = 4'
    entries = {"sd": "SD", "guided": 'base = "sd"\nguidance = 3', "dit": dit}
    outcome = latent(entries, "--sampler", "ddim")
    assert outcome.code == 0, outcome.err
    samples = {}
    for name, calls in (("sd", 3), ("guided", 6), ("dit", 6)):
        folder, facts = cell(tmp_path, name, "ddim")
        steps = pd.read_csv(folder / "steps.csv")
        assert {"free", "forced-train", "paired"} == set(steps["arm"])
        assert {"eps_norm", "x0_rmse", "variance_ratio"} <= set(steps["quantity"])
        assert np.isfinite(steps.loc[steps["quantity"] == "x0_rmse", "value"]).all()
        scores = {score["metric"]: score for score in facts["scores"]}
        assert not any("fid" in metric for metric in scores)
        assert scores["fd_latent_moments"]["value"] > 0
        assert "no FID" in scores["fd_latent_moments"]["reference"]
        assert scores["fd_latent_moments_exact"]["value"] > 0
        assert (facts["nfe"], facts["cell"]["clip"]) == (calls, False)
        with np.load(folder / "samples.npz") as file:
            samples[name] = file["arr_0"], file["arr_1"]
    wanted = Noise(0).integers(torch.arange(70), Purpose.LABEL, 0, PROMPTS).numpy()
    assert all((labels == wanted).all() for _, labels in samples.values())
    assert (samples["sd"][0].shape, samples["sd"][0].dtype) == ((70, 8, 8, 4), np.float32)
    assert (tmp_path / "out" / "exact" / "scaled_linear(0.00085,0.012)-1000-ddim-3" / "record.csv").exists()


def test_a_walk_is_the_librarys_pipeline_in_latent_space(latent, material, tmp_path):
    """DDIM with guidance from the same start, by the library's scheduler and its own update of two predictions.

    Its float32 alpha_bar is off by 1e-7 of 1, which an alpha of .068 divides: a few 1e-5.
    """
    entries = {"sd": "SDguidance = 3"}
    flags = ("--sampler", "ddim", "--spacing", "leading", "--no-probes", "--features", "none", "--labels", "balanced")
    assert latent(entries, *flags).code == 0
    unet = diffusers.UNet2DConditionModel.from_pretrained(material / "sd/unet").eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(
        material / "sd/scheduler", clip_sample=False, set_alpha_to_one=True, steps_offset=0
    )
    scheduler.set_timesteps(3)
    with np.load(material / "embeddings.npz") as file:
        rows = torch.from_numpy(file["embeddings"])[torch.arange(4) % PROMPTS]
    alpha_bar = float(scheduler.alphas_cumprod[scheduler.timesteps[0]])
    x = (1 - alpha_bar) ** 0.5 * Noise(0).normal(torch.arange(4), Purpose.START, 0, (4, 8, 8))
    for t in scheduler.timesteps:
        with torch.no_grad():
            null, plain = (unet(x, t, encoder_hidden_states=e).sample for e in (torch.zeros(4, 5, 12), rows))
        x = scheduler.step(null + 3 * (plain - null), t, x).prev_sample
    with np.load(cell(tmp_path, "sd", "ddim")[0] / "samples.npz") as file:
        ours = torch.from_numpy(file["arr_0"][:4]).movedim(3, 1)
    torch.testing.assert_close(ours, x, rtol=0, atol=2e-4)


def test_with_an_autoencoder_samples_are_decoded_and_scored_as_images(latent, tmp_path):
    outcome = latent({"sd": 'SDvae = "{root}/vae"'}, "--features", "cifar10")
    assert outcome.code == 0, outcome.err
    folder, facts = cell(tmp_path, "sd")
    with np.load(folder / "samples.npz") as file:
        assert (file["arr_0"].shape, file["arr_0"].dtype) == ((70, 32, 32, 3), np.uint8)
    score = next(score for score in facts["scores"] if score["metric"] == "fd_cifar10")
    assert score["reference"].startswith("decoded-latents-all (90)")
    assert "vae" in facts["cell"]
    assert pd.read_csv(folder / "steps.csv")["value"].notna().any()


@pytest.mark.parametrize(
    ("entries", "flags", "message"),
    [
        ({"sd": 'weights = "{root}/sd"\nembeddings = "{root}/embeddings.npz"'}, "", "needs 'latents'"),
        ({"sd": 'latents = "{root}/latents.npz"'}, "", "needs 'weights'"),
        ({"sd": 'SDschedule = "linear"'}, "", "describes itself; drop 'schedule'"),
        ({"sd": 'SDvae = "{root}/nowhere"'}, "", "is no folder with a config.json"),
        ({"sd": 'SDvae = "{root}/vae"'}, "--features latents", "--features latents does not read what these latent"),
        ({"sd": "SD"}, "--features inception", "--features inception does not read what these latent models give"),
        ({"sd": "SD"}, "--dataset cifar10", "--dataset has no effect on latent models"),
        ({"sd": "SD"}, "--clip", "--clip has no effect on latent models"),
        ({"sd": "SD"}, "--resize 8", "--resize and --crop has no effect on latent models"),
        ({"sd": "SD"}, "--measure chains", "chains needs models of a training index and without class labels"),
        ({"sd": "SD"}, "--models sd,adm", "models of one run share their latents"),
        ({"sd": 'weights = "{root}/sd"\nlatents = "{root}/latents.npz"\nembeddings = "{root}/one-sided.npz"'},
         "--guidance 2", "has no 'negative_embeddings' to be guided from"),
        ({"sd": 'weights = "{root}/sd"\nlatents = "{root}/latents.npz"\nembeddings = "{root}/few.npz"'},
         "", "names condition 2, but model 'sd' has 2"),
        ({"sd": 'weights = "{root}/sd"\nlatents = "{root}/deep.npz"\nembeddings = "{root}/few.npz"'},
         "", "takes latents of 4 channels"),
        ({"sd": 'weights = "{root}/sd"\nlatents = "{root}/odd.npz"\nembeddings = "{root}/few.npz"'},
         "", "halves latents 2-fold"),
        ({"dit": 'weights = "{root}/dit"\nlatents = "{root}/odd.npz"'}, "", "takes latents of 8x8"),
        ({"sd": 'weights = "{root}/sd"\nlatents = "{root}/embeddings.npz"\nembeddings = "{root}/few.npz"'},
         "", "has no array 'latents'"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_one_line_and_writes_nothing(latent, tmp_path, entries, flags, message):
    outcome = latent(entries, *flags.split())
    assert outcome.refused(message)
    assert not (tmp_path / "out").exists()


def test_pixel_models_do_not_take_the_moments_of_latents(toml, command, tmp_path):
    outcome = command("--config", toml, "--models", "tiny", "--features", "latents", "--out", tmp_path / "out")
    assert outcome.refused("--features latents is for latent models")
