"""Conditional networks of the library, tiny and random, asked as class-conditional ones are."""

import json

import diffusers
import numpy as np
import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file, save_file

from bench.latent.networks import describe_conditional, hash_conditional, load_conditional
from bench.runtime.errors import CheckpointError, UserError

X, T = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 5, 99, 999])
ROWS = torch.tensor([2, 0, 1, 3])  # the last is that of no condition
TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 1, "sample_size": 8}
UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (8, 16),
    "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 12,
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (2, 4),
}  # fmt: skip
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 34}
NETWORKS = {
    "unet": (diffusers.UNet2DConditionModel, UNET),
    "xl": (diffusers.UNet2DConditionModel, UNET | XL),
    "dit": (
        diffusers.DiTTransformer2DModel,
        TRANSFORMER | {"out_channels": 8, "num_embeds_ada_norm": 3, "norm_num_groups": 4},
    ),
    "pixart": (
        diffusers.PixArtTransformer2DModel,
        TRANSFORMER | {"out_channels": 8, "cross_attention_dim": 16, "caption_channels": 12, "norm_num_groups": 4},
    ),
    "sana": (
        diffusers.SanaTransformer2DModel,
        TRANSFORMER
        | {
            "out_channels": 4, "num_cross_attention_heads": 2, "cross_attention_head_dim": 8,
            "cross_attention_dim": 16, "caption_channels": 12, "patch_size": 1,
        },
    ),
}  # fmt: skip


def normals(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


@pytest.fixture
def save(tmp_path):
    """Return a function that writes a network's folder and its embeddings, and returns both paths and the network."""

    def call(name, **settings):
        kind, config = NETWORKS[name]
        torch.manual_seed(0)
        network = kind(**config | settings).eval()
        folder = tmp_path / "model"
        network.save_pretrained(folder / ("unet" if "UNet" in kind.__name__ else "transformer"))
        diffusers.DDPMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
        arrays = {"embeddings": normals(3, 5, 12), "negative_embeddings": np.zeros((1, 5, 12), np.float32)}
        if name == "xl":
            arrays |= {"text_embeds": normals(3, 10), "negative_text_embeds": np.zeros((1, 10), np.float32)}
            arrays |= {"time_ids": np.array([[64, 64, 0, 0, 64, 64]], np.float32)}
        np.savez(tmp_path / "embeddings.npz", **arrays)
        return folder, None if name == "dit" else tmp_path / "embeddings.npz", network

    return call


def directly(name, network, arrays):
    """Ask the library's network with conditions chosen by hand."""
    if name == "dit":
        return network(X, T, class_labels=ROWS).sample
    rows = {
        key: torch.from_numpy(np.concatenate([arrays[key], arrays[f"negative_{key}"]]))[ROWS]
        for key in ("embeddings", "text_embeds")
        if key in arrays
    }
    state = "sample" if name in ("unet", "xl") else "hidden_states"
    how = {state: X, "timestep": T, "encoder_hidden_states": rows["embeddings"]}
    if name == "xl":
        ids = torch.from_numpy(arrays["time_ids"]).expand(4, 6)
        how["added_cond_kwargs"] = {"text_embeds": rows["text_embeds"], "time_ids": ids}
    return network(**how).sample


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_asked_as_the_library_asks_it(save, name):
    """The last label is that of no condition; what is computed on construction, as positions are, is there too."""
    folder, embeddings, network = save(name)
    description, null = describe_conditional(folder, embeddings)
    assert (description.classes, null, description.prediction, description.channels) == (4, 3, "v", 4)
    assert description.learns_variance == (name in ("dit", "pixart"))
    loaded = load_conditional(folder, description)
    with torch.no_grad():
        expected = directly(name, network, {} if embeddings is None else np.load(embeddings))
        assert torch.equal(loaded(X, T, ROWS).sample, expected)


def test_files_from_before_dit_had_a_class_of_its_own(save):
    folder, _, network = save("dit")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "Transformer2DModel"}))
    description, _ = describe_conditional(folder, None)
    with torch.no_grad():
        expected = network(X, T, class_labels=ROWS).sample
        assert torch.equal(load_conditional(folder, description)(X, T, ROWS).sample, expected)


def test_the_hash_is_of_weights_settings_and_embeddings(save):
    folder, embeddings, _ = save("unet")
    hashes = {hash_conditional(folder, describe_conditional(folder, embeddings)[0])}
    np.savez(embeddings, embeddings=normals(3, 5, 12) + 1)
    hashes.add(hash_conditional(folder, describe_conditional(folder, embeddings)[0]))
    diffusers.DDPMScheduler().save_pretrained(folder / "scheduler")
    hashes.add(hash_conditional(folder, describe_conditional(folder, embeddings)[0]))
    assert len(hashes) == 3


UNASKABLE = [
    ("unet", {"_class_name": "FluxTransformer2DModel"}, True, "'FluxTransformer2DModel', which is called in another"),
    ("unet", {"_class_name": "Transformer2DModel"}, True, "'Transformer2DModel', which is called in another way"),
    ("unet", {"in_channels": 9}, True, r"inpainting"),
    ("unet", {"cross_attention_dim": 16}, True, "takes embeddings of 16 numbers, those of .* have 12"),
    ("unet", {"addition_embed_type": "text_time"}, True, "takes text_embeds and time_ids beside"),
    ("unet", {}, False, "is conditioned on embeddings; give its entry 'embeddings'"),
    ("dit", {}, True, "is conditioned on class labels; leave 'embeddings' out"),
    ("sana", {"timestep_scale": 0.001}, True, "sets timestep_scale 0.001; only 1 can be used"),
    ("pixart", {"use_additional_conditions": True}, True, "takes a resolution beside its embeddings"),
]


@pytest.mark.parametrize(("name", "changes", "embeddings", "message"), UNASKABLE)
def test_a_network_that_cannot_be_asked_is_one_line(save, tmp_path, name, changes, embeddings, message):
    folder, _, _ = save(name)
    path = next(folder.glob("*r/config.json" if name != "unet" else "unet/config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    given = tmp_path / "embeddings.npz" if embeddings else None
    assert refusal(CheckpointError, describe_conditional, folder, given, match=message)


def test_weights_that_cannot_be_loaded_are_refused(save):
    folder, embeddings, _ = save("unet")
    path, config = (folder / "unet" / name for name in ("diffusion_pytorch_model.safetensors", "config.json"))
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match="not finite"):
        load_conditional(folder, describe_conditional(folder, embeddings)[0])
    config.write_text(json.dumps(json.loads(config.read_text()) | {"transformer_layers_per_block": 10**9}))
    with pytest.raises(CheckpointError, match="beyond any network"):
        load_conditional(folder, describe_conditional(folder, embeddings)[0])


BAD_EMBEDDINGS = [
    ({"other": normals(3, 5, 12)}, "no array 'embeddings'"),
    ({"embeddings": normals(3, 12)}, r"'embeddings' is \[3, 12\], not \[M, L, D\]"),
    ({"embeddings": normals(3, 5, 12), "negative_embeddings": normals(3, 5, 12)}, "must be one row like those of"),
    ({"embeddings": normals(3, 5, 12), "negative_embeddings": normals(1, 4, 12)}, "must be one row like those of"),
    ({"embeddings": normals(3, 5, 12), "text_embeds": normals(2, 10)}, r"have \[2, 3\] rows"),
    ({"embeddings": normals(3, 5, 12) * np.nan}, "not finite"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD_EMBEDDINGS)
def test_embeddings_that_cannot_be_used_are_one_line(save, arrays, message):
    folder, path, _ = save("unet")
    np.savez(path, **arrays)
    assert refusal(UserError, describe_conditional, folder, path, match=message)
