import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from refusals import refusal

from bench.models.networks.adm import adm_unet, load_guided_diffusion
from bench.runtime.errors import CheckpointError

SMALL = {"image_size": 8, "model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 1), "in_channels": 1}
VARIANTS = [
    "legacy-order",
    "conv-resample",
    "conv-scale-shift",
    "updown-no-scale-shift",
    "class-conditional",
    "four-heads",
    "four-heads-legacy-conv",
    "attention-full-resolution",
    "attention-middle-only",
    "narrow-start",
    "cifar10",
]


@torch.no_grad()
def run(config, weights, x, t, labels=None):
    """Load published weights and return the output as an array."""
    network = adm_unet(config).eval()
    load_guided_diffusion(network, weights)
    return network(torch.as_tensor(x), torch.as_tensor(t), labels).sample.numpy()


def relative_error(got, reference):
    assert got.shape == reference.shape
    return np.abs(got - reference).max() / np.abs(reference).max()


# Tolerance of all golden networks, relative to the largest output: both sides are float32, which keeps 6e-8 of each of
# about a hundred layers' values; in random directions that is sqrt(100) * 6e-8 = 6e-7 of the output's size, and 1.2e-6
# is the worst seen. The subtlest mistake known, a norm epsilon of 1e-6, shows as 3e-5 or more.
TOLERANCE = 1e-5


def test_the_adm_network_equals_the_published_one(adm_16px, published_weights):
    weights = published_weights(adm_16px["shapes"])
    got = run(adm_16px["config"], weights, adm_16px["x"], adm_16px["t"])
    assert relative_error(got, adm_16px["output"]) < TOLERANCE


def test_every_golden_variant_is_run(variants):
    assert set(VARIANTS) == set(variants)


@pytest.mark.parametrize("name", VARIANTS)
def test_other_published_shapes_equal_the_published_ones(variants, published_weights, name):
    variant = variants[name]
    config, size = variant["config"], variant["config"]["image_size"]
    x = np.random.RandomState(0).standard_normal((3, 3, size, size)).astype(np.float32)
    labels = torch.tensor([0, 4, 9]) if config.get("num_classes") else None
    got = run(config, published_weights(variant["shapes"]), x, [0.0, 3.25, 999.0], labels)
    assert relative_error(got, variant["output"]) < TOLERANCE


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_learn_sigma_doubles_the_output_channels(learn_sigma):
    network = adm_unet({**SMALL, "learn_sigma": learn_sigma})
    assert network(torch.zeros(2, 1, 8, 8), torch.zeros(2)).sample.shape == (2, 2 if learn_sigma else 1, 8, 8)


def test_a_missing_time_has_an_embedding_of_its_own(adm_16px, published_weights):
    """Its features take the sinusoid's place: with those of t = 3 it says what the network says at t = 3."""
    config = {**adm_16px["config"], "null_time": True}
    network, x = adm_unet(config), torch.from_numpy(adm_16px["x"])
    null = {"time_embed.null": network.time_proj.sinusoid(torch.tensor([3.0]))[0]}
    load_guided_diffusion(network, published_weights(adm_16px["shapes"]) | null)
    t = torch.full((len(x),), -1.0)
    assert torch.equal(network(x, t).sample, network(x, torch.full_like(t, 3.0)).sample)
    plain = run(adm_16px["config"], published_weights(adm_16px["shapes"]), adm_16px["x"], adm_16px["t"])
    assert torch.equal(network(x, torch.from_numpy(adm_16px["t"])).sample, torch.from_numpy(plain))


@torch.no_grad()
@pytest.mark.parametrize("resblock_updown", [False, True])
def test_what_follows_an_upsampling_finds_the_same_order_in_memory_at_any_batch_size(resblock_updown):
    """Else the batch chooses its kernel: attention leaves channels last, and diffusers copies from 64 images on."""
    network = adm_unet({**SMALL, "attention_resolutions": (1, 2), "resblock_updown": resblock_updown}).eval()
    orders = []
    for module in network.modules():
        if isinstance(module, Upsample2D):
            module.register_forward_hook(lambda module, inputs, output: orders.append(output.is_contiguous()))
    for batch in (2, 64):
        network(torch.zeros(batch, 1, 8, 8), torch.zeros(batch))
    assert set(orders) == {True}


def test_settings_of_memory_and_storage_leave_the_function(adm_16px, published_weights):
    weights = published_weights(adm_16px["shapes"])
    config = {**adm_16px["config"], "use_checkpoint": True, "use_fp16": True, "num_heads_upsample": 7}
    plain = run(adm_16px["config"], weights, adm_16px["x"], adm_16px["t"])
    assert np.array_equal(run(config, weights, adm_16px["x"], adm_16px["t"]), plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chanel_mult": (1, 2)}, "unknown U-Net argument 'chanel_mult'"),
        ({"conv_resample": False}, "convolutional or residual resampling"),
        ({"dims": 3}, "only two-dimensional"),
        ({"model_channels": 48}, "width 48 is not a multiple of 32"),
        ({"channel_mult": (1, 1.25)}, "width 40 is not a multiple of 32"),
        ({"model_channels": None}, "'model_channels' must be a positive integer"),
        ({"num_head_channels": 64}, "width 32 cannot be split"),
        ({"num_heads": 5}, "width 32 cannot be split"),
        ({"num_heads": 4, "num_heads_upsample": 2}, "'num_heads_upsample' must be -1"),
        ({"channel_mult": "1,2"}, "'channel_mult' must be a list of positive numbers"),
        ({"channel_mult": []}, "'channel_mult' must be a list of positive numbers"),
        ({"channel_mult": [0, 1]}, "'channel_mult' must be a list of positive numbers"),
        ({"channel_mult": [True, 1]}, "'channel_mult' must be a list of positive numbers"),
        ({"channel_mult": [0.001, 1]}, "width 0 is not a multiple of 32"),
        ({"attention_resolutions": "16,8"}, "'attention_resolutions' must be a list of downsampling factors"),
        ({"num_heads": -1}, "'num_heads' must be a positive integer unless"),
        ({"dropout": "a"}, "'dropout' must be a number of at least 0 and below 1, not 'a'"),
        ({"dropout": float("nan")}, "'dropout' must be a number"),
        ({"out_channels": "2"}, "'out_channels' must be a positive integer or left out, not '2'"),
        ({"image_size": [8, 8]}, "'image_size' must be a positive integer or left out"),
        ({"model_channels": True}, "'model_channels' must be a positive integer"),
        ({"use_scale_shift_norm": "false"}, "'use_scale_shift_norm' must be true or false, not 'false'"),
        ({"dropout": "long\n" * 100}, "'dropout' must be a number"),
    ],
)
def test_networks_that_cannot_be_expressed_are_refused(change, message):
    assert refusal(CheckpointError, adm_unet, {**SMALL, **change}, match=message)


@pytest.mark.parametrize("change", [{"channel_mult": [0.5, 1]}, {"attention_resolutions": {2, 1}}, {"num_classes": 3}])
def test_published_kinds_of_arguments_are_taken(change):
    config = {**SMALL, "model_channels": 64, "attention_resolutions": [2], "num_head_channels": 32, "num_heads": -1}
    network, labels = adm_unet({**config, **change}), torch.tensor([1]) if "num_classes" in change else None
    assert network(torch.zeros(1, 1, 8, 8), torch.zeros(1), labels).sample.shape == (1, 1, 8, 8)


def test_heads_are_only_asked_of_widths_with_attention():
    """The published network, too, puts 64 channels a head on a 64-wide level above a 32-wide one without attention."""
    network = adm_unet({**SMALL, "channel_mult": (1, 2), "attention_resolutions": (2,), "num_head_channels": 64})
    assert network(torch.zeros(1, 1, 8, 8), torch.zeros(1)).sample.shape == (1, 1, 8, 8)


ATTENTION = "middle_block.1.qkv.weight"
# What is done to a good state dict, and the words of the refusal.
DAMAGES = {
    "missing": (lambda state: state.pop("out.2.bias"), "lacks 'out.2.bias'"),
    "missing attention": (lambda state: state.pop(ATTENTION), f"lacks '{ATTENTION}'"),
    "missing skip": (lambda state: pop_skip(state), "lacks 'input_blocks.3.0.skip_connection.weight', 'input_blocks"),
    "another shape": (lambda state: state.update({"out.2.bias": torch.zeros(5)}), "'out.2.bias' is (5) and not (6)"),
    "attention shape": (lambda state: state.update({ATTENTION: torch.zeros(7, 64, 1)}), "is (7, 64, 1) and not (192"),
    "attention scalar": (lambda state: state.update({ATTENTION: torch.zeros(())}), "is () and not (192, 64, 1)"),
    "projection shape": (
        lambda state: state.update({"middle_block.1.proj_out.bias": torch.zeros(3)}),
        "'middle_block.1.proj_out.bias' is (3) and not (64)",
    ),
}


def pop_skip(state):
    for suffix in ("weight", "bias"):
        del state[f"input_blocks.3.0.skip_connection.{suffix}"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_refused_and_leave_the_network(adm_16px, published_weights, damage):
    act, message = DAMAGES[damage]
    state = published_weights(adm_16px["shapes"])
    act(state)
    network = adm_unet(adm_16px["config"])
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    assert message in refusal(CheckpointError, load_guided_diffusion, network, state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_missing_and_unwanted_labels_are_refused_in_words():
    """Whether a label is in range is seen where labels are drawn; looking here would wait for the device."""
    x, t = torch.zeros(2, 1, 8, 8), torch.zeros(2)
    with pytest.raises(ValueError, match="class_labels should be provided"):
        adm_unet({**SMALL, "num_classes": 3})(x, t)
    with pytest.raises(ValueError, match="class conditioning"):
        adm_unet(SMALL)(x, t, torch.tensor([0, 1]))


@pytest.mark.slow  # a process that imports everything anew
def test_networks_without_weights_leave_the_libraries_whole():
    """A module imported where tensors are on meta would keep tables without numbers; a fresh process imports anew."""
    script = """
import sys, torch
from bench.models.networks.adm import adm_unet, without_weights
network = without_weights(lambda: adm_unet({"model_channels": 32, "num_res_blocks": 1}))
assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
tables = [value for module in list(sys.modules.values()) for value in list(vars(module).values())]
assert not [table for table in tables if type(table) is torch.Tensor and table.device.type == "meta"]
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0
