from __future__ import annotations

import json
import math

import pytest

from bench.diffusion.schedules import levels
from bench.models.checkpoints.guided_diffusion import PRESETS, presets_that_fit
from bench.models.networks.adm import adm_unet, without_weights
from bench.models.networks.adm_keys import published_shapes
from bench.models.networks.classifier import classifier_network

# The flags of the published sampling commands, in their own words (attention at image sizes). Channel multipliers are
# script_util.py's for the size.
UPDOWN = {"resblock_updown": True, "use_scale_shift_norm": True, "learn_sigma": True}
NEW = {"use_new_attention_order": True, "num_res_blocks": 3}
COMMANDS = {
    "cifar10": {
        "image_size": 32, "num_channels": 128, "num_head_channels": 32, "attention": (16, 8), "dropout": 0.3,
    } | NEW,
    "lsun-tower64": {
        "image_size": 64, "num_channels": 192, "num_head_channels": 64, "attention": (32, 16, 8), "dropout": 0.1,
    } | NEW,
    "ffhq128": {
        "image_size": 128, "num_channels": 256, "num_head_channels": 64, "attention": (32, 16, 8), "dropout": 0.1,
    } | NEW,
    "imagenet64": {
        "image_size": 64, "num_channels": 192, "num_head_channels": 64, "attention": (32, 16, 8), "dropout": 0.1,
        "num_classes": 1000,
    } | NEW,
    "imagenet128": {
        "image_size": 128, "num_channels": 256, "num_heads": 4, "attention": (32, 16, 8), "num_res_blocks": 2,
        "num_classes": 1000,
    },
}  # fmt: skip
COMMANDS |= {"imagenet32": COMMANDS["cifar10"], "celeba64": COMMANDS["lsun-tower64"]}
MULTIPLIERS = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4)}


def constructed(flags):
    """Return the constructor arguments that create_model makes of a command's flags."""
    rest = {key: value for key, value in flags.items() if key not in ("num_channels", "attention")}
    size = flags["image_size"]
    return rest | UPDOWN | {
        "in_channels": 3, "model_channels": flags["num_channels"], "channel_mult": MULTIPLIERS[size],
        "attention_resolutions": tuple(size // side for side in flags["attention"]),
    }  # fmt: skip


def shapes(build, config):
    network = without_weights(lambda: build(config))
    return published_shapes(network.state_dict(), network.config["guided_diffusion"])


def test_every_released_checkpoint_has_a_preset():
    assert set(PRESETS) == set(COMMANDS)
    assert all(preset.name == name for name, preset in PRESETS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_presets_are_the_published_commands(name):
    assert PRESETS[name].network == constructed(COMMANDS[name])


@pytest.mark.parametrize("name", PRESETS)
def test_descriptions_can_be_walked_and_written(name):
    preset = PRESETS[name]
    found = preset.description()
    assert (found.schedule, found.T) == ("linear" if name == "imagenet128" else "cosine", 1000)
    assert (found.channels, found.learns_variance, found.is_edm) == (3, True, False)
    assert found.classes == (1000 if name in ("imagenet64", "imagenet128") else None)
    assert len(levels(found.schedule, found.T, 20)) == 21
    assert json.loads(json.dumps(found.network))["image_size"] == preset.network["image_size"]


# Million parameters. OpenAI's are Dhariwal & Nichol 2021, appendix; the others are not published and are this code's.
SIZES = {"imagenet64": 296, "imagenet128": 422, "cifar10": 57, "lsun-tower64": 295, "ffhq128": 543}


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_the_published_size(name):
    total = sum(math.prod(shape) for shape in shapes(adm_unet, PRESETS[name].network).values())
    assert round(total / 1e6) == SIZES[name]


@pytest.mark.parametrize(("name", "size", "scale"), [("imagenet64", 65, 1.0), ("imagenet128", 43, 0.5)])
def test_classifiers_have_the_published_size_and_scale(name, size, scale):
    preset = PRESETS[name]
    total = sum(math.prod(shape) for shape in shapes(classifier_network, preset.classifier).values())
    assert round(total / 1e6) == size
    assert preset.guidance_scale == scale
    assert {key: preset.classifier[key] for key in ("image_size", "channel_mult", "attention_resolutions")} == {
        key: preset.network[key] for key in ("image_size", "channel_mult", "attention_resolutions")
    }


def test_only_imagenet_comes_with_a_classifier():
    assert [name for name, preset in PRESETS.items() if preset.classifier] == ["imagenet64", "imagenet128"]


@pytest.mark.parametrize(
    ("name", "fitting"),
    [
        ("cifar10", ["cifar10", "imagenet32"]),
        ("lsun-tower64", ["lsun-tower64", "celeba64"]),
        ("ffhq128", ["ffhq128"]),
        ("imagenet64", ["imagenet64"]),
        ("imagenet128", ["imagenet128"]),
    ],
)
def test_shapes_tell_presets_apart_as_far_as_they_can(name, fitting):
    assert presets_that_fit(shapes(adm_unet, PRESETS[name].network)) == fitting


@pytest.mark.parametrize("name", ["imagenet64", "imagenet128"])
def test_classifiers_are_told_from_networks(name):
    assert presets_that_fit(shapes(classifier_network, PRESETS[name].classifier)) == [f"{name}'s classifier"]


@pytest.mark.parametrize("change", [{"num_classes": 10}, {"num_res_blocks": 2}, {"attention_resolutions": (4,)}])
def test_networks_beside_a_preset_fit_none(change):
    assert presets_that_fit(shapes(adm_unet, {**PRESETS["cifar10"].network, **change})) == []


@pytest.mark.parametrize("change", [{"use_new_attention_order": False}, {"num_head_channels": 64}, {"dropout": 0.0}])
def test_shapes_do_not_tell_attention_order_heads_or_dropout(change):
    other = shapes(adm_unet, {**PRESETS["cifar10"].network, **change})
    assert presets_that_fit(other) == ["cifar10", "imagenet32"]
