"""The decoder of a tiny random autoencoder, against the library's own."""

import json

import diffusers
import pytest
import torch
from records import edited

from bench.latent.autoencoder import Decoder, check_decoder, hash_decoder
from bench.latent.inputs import LatentData
from bench.runtime.errors import CheckpointError

LATENTS = torch.randn(10, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.5, shift_factor=0.25,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_latents_are_unscaled_decoded_and_rounded(folder):
    """Batches change a convolution's sums in the last bits, so that a value may round to the next level."""
    vae = diffusers.AutoencoderKL.from_pretrained(folder)
    with torch.no_grad():
        expected = ((vae.decode(LATENTS / 0.5 + 0.25).sample + 1) * 127.5).clamp(0, 255).round()
    data = Decoder(folder).decoded(
        LatentData("latents", LATENTS, torch.zeros(10, dtype=torch.int64), torch.zeros(10, dtype=torch.bool))
    )
    assert (data.images.shape, data.images.dtype) == ((10, 3, 8, 8), torch.uint8)
    assert (data.images.float() - expected).abs().max() <= 1
    assert ((data.images.float() - expected).abs() > 0).float().mean() < 0.01


def test_what_is_no_autoencoder_of_these_latents_is_refused(folder, tmp_path):
    check_decoder(folder, 4)
    before = hash_decoder(folder)
    with pytest.raises(CheckpointError, match="takes latents of 4 channels, the model's have 16"):
        check_decoder(folder, 16)
    with pytest.raises(CheckpointError, match=r"is no folder with a config\.json"):
        check_decoder(tmp_path / "nowhere", 4)
    with edited(folder / "config.json") as config:
        config |= {"scaling_factor": 1.0}
    assert hash_decoder(folder) != before
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "VQModel"}))
    with pytest.raises(CheckpointError, match="only AutoencoderKL decodes"):
        Decoder(folder)
