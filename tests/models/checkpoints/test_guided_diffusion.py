import argparse
import json
import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import refusals
import torch
from cases import at_first

from bench.diffusion.schedules import levels
from bench.models.checkpoints.guided_diffusion import (
    PRESETS,
    describe_entry,
    load_classifier,
    load_guided,
    presets_that_fit,
)
from bench.models.checkpoints.state_dicts import read_state
from bench.models.interface import Description
from bench.models.networks.adm import adm_unet, without_weights
from bench.models.networks.adm_keys import published_shapes
from bench.models.networks.classifier import classifier_network
from bench.runtime.errors import CheckpointError

SMALL = {"image_size": 8, "in_channels": 1, "model_channels": 32, "num_res_blocks": 1, "channel_mult": (1,)}
CLASSIFIER = {**SMALL, "out_channels": 3, "num_head_channels": 32, "pool": "attention"}


def shapes(build, config):
    network = without_weights(lambda: build(config))
    return published_shapes(network.state_dict(), network.config["guided_diffusion"])


def released(path, build, config, **changed):
    """Write a file of the released names and shapes; every tensor repeats one number, so the file is small."""
    state = {
        name: torch.full((), 0.01, dtype=torch.float16).expand(shape) for name, shape in shapes(build, config).items()
    }
    torch.save({**state, **changed}, path)
    assert path.stat().st_size < 1e6
    return path


refusal = partial(refusals.refusal_of_file, CheckpointError)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


@pytest.mark.parametrize(
    ("given", "asked", "fitting"),
    [("celeba64", "cifar10", "it fits preset lsun-tower64 or celeba64"),
     ("ffhq128", "imagenet128", "it fits preset ffhq128")],
)  # fmt: skip
def test_a_file_of_another_preset_is_refused_with_the_one_that_fits(path, given, asked, fitting):
    """Nothing of the networks' size is allocated: the largest has 543 million weights."""
    released(path, adm_unet, PRESETS[given].network)
    message = refusal(load_guided, path, PRESETS[asked].description())
    assert message.startswith(f"{path} is of another architecture: the checkpoint ")
    assert message.endswith(fitting)


def test_the_message_says_which_keys_differ(path):
    released(path, adm_unet, PRESETS["imagenet64"].network)
    message = refusal(load_guided, path, PRESETS["celeba64"].description())
    assert "the checkpoint has 'label_emb.weight' which it should not; it fits" in message
    released(path, adm_unet, PRESETS["celeba64"].network)
    message = refusal(load_guided, path, PRESETS["imagenet64"].description())
    assert "the checkpoint lacks 'label_emb.weight'; it fits" in message
    released(path, adm_unet, {**PRESETS["cifar10"].network, "learn_sigma": False})
    message = refusal(load_guided, path, PRESETS["cifar10"].description())
    assert "'out.2.weight' is (3, 128, 3, 3) and not (6, 128, 3, 3), 'out.2.bias' is (3) and not (6); " in message
    assert message.endswith("no preset fits it; describe its network (docs/checkpoints.md)")


def test_classifiers_and_networks_are_not_mistaken_for_each_other(path):
    preset = PRESETS["imagenet128"]
    released(path, classifier_network, preset.classifier)
    assert refusal(load_guided, path, preset.description()).endswith("it fits preset imagenet128's classifier")
    assert refusal(load_classifier, path, PRESETS["imagenet64"].classifier).endswith("imagenet128's classifier")
    released(path, adm_unet, preset.network)
    assert refusal(load_classifier, path, preset.classifier).endswith("it fits preset imagenet128")


@pytest.mark.slow
def test_a_file_of_the_released_size_loads(path):
    released(path, adm_unet, PRESETS["cifar10"].network)
    network = load_guided(path, PRESETS["cifar10"].description())
    assert sum(parameter.numel() for parameter in network.parameters()) == 57094662
    assert all((parameter == torch.tensor(0.01).half()).all() for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn])
def test_floating_weights_of_any_width_load_as_float32(path, dtype):
    """A number of few bits is the same in every width."""
    state = {name: torch.full(shape, 0.375).to(dtype) for name, shape in shapes(classifier_network, CLASSIFIER).items()}
    torch.save(state, path)
    network = load_classifier(path, CLASSIFIER)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert all((parameter == 0.375).all() for parameter in network.parameters())
    assert network(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape == (2, 3)


ODD = {
    "int64": lambda: torch.zeros(3, dtype=torch.int64),
    "bool": lambda: torch.zeros(3, dtype=torch.bool),
    "complex64": lambda: torch.zeros(3, dtype=torch.complex64),
    "qint8": lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "without data": lambda: torch.zeros(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, about quantised and sparse tensors
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("act", [load_guided, load_classifier])
def test_weights_that_are_not_ordinary_floats_are_refused(path, kind, act):
    released(path, adm_unet, SMALL, **{"out.0.bias": ODD[kind]()})
    config = Description(SMALL) if act is load_guided else CLASSIFIER
    assert f"'out.0.bias' is {kind}, not ordinary floating-point weights" in refusal(act, path, config)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused(path, value):
    """A float64 weight of 1e300 is no float32."""
    bias = torch.full((32,), value, dtype=torch.float64)
    released(path, adm_unet, SMALL, **{"out.0.bias": bias})
    assert "weights that are not finite" in refusal(load_guided, path, Description(SMALL))
    released(path, classifier_network, CLASSIFIER, **{"out.0.bias": bias})
    assert "weights that are not finite" in refusal(load_classifier, path, CLASSIFIER)


def test_a_network_that_cannot_be_built_is_refused_with_its_file(path):
    released(path, adm_unet, SMALL)
    assert "'channel_mult' must be" in refusal(load_guided, path, Description({**SMALL, "channel_mult": "1"}))
    assert "'pool' must be" in refusal(load_classifier, path, {**CLASSIFIER, "pool": "max"})


def test_a_network_far_too_large_is_refused_before_anything_is_allocated(path):
    """A quarter of a million channels would take terabytes."""
    released(path, adm_unet, SMALL)
    assert "is of another architecture" in refusal(load_guided, path, Description({**SMALL, "model_channels": 2**18}))


@pytest.mark.parametrize("zipped", [True, False])
def test_published_pickles_load(tmp_path, adm_16px, published_weights, zipped):
    """A guided-diffusion file, of either torch format, gives the published network (tolerance: test_adm.py)."""
    path = tmp_path / "model.pt"
    torch.save(published_weights(adm_16px["shapes"]), path, _use_new_zipfile_serialization=zipped)
    loaded = load_guided(path, Description(adm_16px["config"]))
    output = loaded(torch.tensor(adm_16px["x"]), torch.tensor(adm_16px["t"])).sample.numpy()
    assert np.abs(output - adm_16px["output"]).max() < 1e-5 * np.abs(adm_16px["output"]).max()


GOOD, RAW = ({"a.weight": torch.full((2, 1), float(k)), "b.bias": torch.full((3,), float(k))} for k in (1, 0))
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}


def prefixed(prefix, state=GOOD):
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPINGS = {
    "distributed": (prefixed("module."), "names without module.*"),
    "compiled": (prefixed("module._orig_mod."), "names without module._orig_mod.*"),
    "lightning": ({"state_dict": prefixed("model."), "epoch": 3}, "'state_dict' of state_dict, epoch, names without"),
    "average": ({"model": RAW, "ema": GOOD, "step": 5}, "'ema' of model, ema, step"),
    "ema-pytorch": (
        prefixed("ema_model.") | prefixed("online_model.", RAW) | {"initted": torch.tensor(True)},
        "the moving average ema_model.*",
    ),
    "latent-diffusion": (
        {
            "state_dict": prefixed("model.diffusion_model.", RAW)
            | {f"model_ema.diffusion_model{name.replace('.', '')}": tensor for name, tensor in GOOD.items()}
            | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
            | {"betas": torch.ones(4)}
        },
        "the moving average model_ema.*, names without model.diffusion_model.*",
    ),
    "latent-diffusion without averages": (
        {"state_dict": prefixed("model.diffusion_model.") | {"first_stage_model.a.weight": torch.ones(2)}},
        "2 of 3 tensors, model.diffusion_model.*",
    ),
    "ddim": ([prefixed("module.", RAW), OPTIMIZER, 5, 7, GOOD], "the last of five entries"),
    "options": ({"model": GOOD, "args": argparse.Namespace(lr=1e-4)}, "'model' of model, args"),
    "wrapped twice": (
        {"state_dict": {"model": RAW, "ema": {"decay": 0.9, "shadow": GOOD}}, "opt": OPTIMIZER},
        "'state_dict' of state_dict, opt, 'ema' of model, ema, 'shadow' of decay, shadow",
    ),
    "average without names": (
        {"model": GOOD, "ema": {"decay": 0.9, "shadow_params": list(RAW.values())}, "scaler": {"scale": torch.ones(1)}},
        "raw weights, since 'ema' has no names of tensors",
    ),
    "counts": ({"model": GOOD, "step": np.int64(5)}, "'model' of model, step"),
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_the_network_is_found_in_what_programs_save_around_it(path, capsys, name):
    content, said = WRAPPINGS[name]
    torch.save(content, path)
    state = read_state(path)
    assert state.keys() == GOOD.keys()
    assert all(torch.equal(state[key], GOOD[key]) for key in GOOD)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: model.pt: takes ")
    assert said in line


CONTENTS = {
    "list": ([1, 2], "does not hold a state dict"),
    "empty": ({}, "does not hold a state dict"),
    "number": ({"weight": 1.0}, "its entry 'weight' is float"),
    "integer-names": ({1: torch.zeros(3)}, "does not hold a state dict"),
    "numpy": ({"weight": np.zeros(3)}, "its entry 'weight' is numpy.ndarray"),
    "optimizer": (OPTIMIZER, "is an optimizer's state, not a network's weights; give the file of the weights"),
    "two": ({"model": GOOD, "model_ema2": RAW}, "holds several networks, 'model' and 'model_ema2'"),
    "object": ({"model": GOOD, "epoch": Fraction(1, 2)}, "it holds 'fractions.Fraction'; save it with"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_pickles_of_something_else_are_refused(path, name):
    content, message = CONTENTS[name]
    torch.save(content, path)
    assert message in refusal(load_guided, path, Description(SMALL))


def test_files_of_one_training_name_each_other(tmp_path, capsys):
    for name in ("model000500.pt", "ema_0.9999_000500.pt"):
        torch.save(GOOD, tmp_path / name)
    read_state(tmp_path / "ema_0.9999_000500.pt")
    assert capsys.readouterr().err == ""
    read_state(tmp_path / "model000500.pt")
    assert "their moving average is ema_0.9999_000500.pt" in capsys.readouterr().err
    torch.save(OPTIMIZER, tmp_path / "opt000500.pt")
    assert "give ema_0.9999_000500.pt" in refusal(read_state, tmp_path / "opt000500.pt")


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


IDDPM = {"num_channels": 128, "num_res_blocks": 3, "num_heads": 4, "rescale_timesteps": True, "resblock_updown": False}
COMMANDS |= {
    "iddpm-cifar10": {"image_size": 32, "dropout": 0.3, "attention": (16, 8)} | IDDPM,
    "iddpm-imagenet64": {"image_size": 64, "attention": (16, 8)} | IDDPM,
    "iddpm-lsun256": {
        "image_size": 256, "num_channels": 128, "num_res_blocks": 2, "num_heads": 1, "attention": (16,),
        "use_scale_shift_norm": False, "resblock_updown": False,
    },
}  # fmt: skip
MULTIPLIERS |= {256: (1, 1, 2, 2, 4, 4)}


def constructed(flags):
    """Return the constructor arguments that create_model makes of a command's flags."""
    rest = {key: value for key, value in flags.items() if key not in ("num_channels", "attention")}
    size = flags["image_size"]
    arguments = UPDOWN | rest | {
        "in_channels": 3, "model_channels": flags["num_channels"], "channel_mult": MULTIPLIERS[size],
        "attention_resolutions": tuple(size // side for side in flags["attention"]),
    }  # fmt: skip
    return {key: value for key, value in arguments.items() if value is not False}


@pytest.mark.parametrize("name", COMMANDS)
def test_presets_are_the_published_commands(name):
    assert set(PRESETS) == set(COMMANDS)
    assert PRESETS[name].network == constructed(COMMANDS[name])


@pytest.mark.parametrize("name", PRESETS)
def test_descriptions_can_be_walked_and_written(name):
    preset = PRESETS[name]
    about = preset.description()
    assert about.schedule == ("linear" if name in ("imagenet128", "iddpm-lsun256") else "cosine")
    assert (about.T, about.time_factor) == ((4000, 0.25) if about.network.get("rescale_timesteps") else (1000, 1))
    assert (about.channels, about.learns_variance, about.is_edm) == (3, True, False)
    assert about.classes == (1000 if name in ("imagenet64", "imagenet128") else None)
    assert len(levels(about.schedule, about.T, 20)) == 21
    assert json.loads(json.dumps(about.network))["image_size"] == preset.network["image_size"]


# Million parameters. OpenAI's are Dhariwal & Nichol 2021, appendix; the others are not published and are this code's.
SIZES = {
    "imagenet64": 296, "imagenet128": 422, "cifar10": 57, "lsun-tower64": 295, "ffhq128": 543,
    "iddpm-cifar10": 53, "iddpm-imagenet64": 121, "iddpm-lsun256": 114,
}  # fmt: skip


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
    for key in ("image_size", "channel_mult", "attention_resolutions"):
        assert preset.classifier[key] == preset.network[key]
    assert presets_that_fit(shapes(classifier_network, preset.classifier)) == [f"{name}'s classifier"]
    assert [name for name, preset in PRESETS.items() if preset.classifier] == ["imagenet64", "imagenet128"]


TWINS = {"cifar10": "imagenet32", "lsun-tower64": "celeba64"}


@pytest.mark.parametrize("name", at_first(["cifar10", "lsun-tower64", "ffhq128", "imagenet64", "imagenet128"], 2))
def test_shapes_tell_presets_apart_as_far_as_they_can(name):
    fitting = [name, TWINS[name]] if name in TWINS else [name]
    assert presets_that_fit(shapes(adm_unet, PRESETS[name].network)) == fitting


BESIDE = [
    ({"num_classes": 10}, []),
    ({"use_new_attention_order": False}, ["cifar10", "imagenet32"]),  # which shapes do not tell, nor heads or dropout
    ({"num_head_channels": 64}, ["cifar10", "imagenet32"]),
    ({"dropout": 0.0}, ["cifar10", "imagenet32"]),
    ({"num_res_blocks": 2}, []),
    ({"attention_resolutions": (4,)}, []),
]


@pytest.mark.parametrize(("change", "fitting"), at_first(BESIDE, 2))
def test_networks_beside_a_preset_fit_none(change, fitting):
    assert presets_that_fit(shapes(adm_unet, {**PRESETS["cifar10"].network, **change})) == fitting
    assert presets_that_fit({}) == []


ENTRIES = [
    ({"preset": "cifar10", "prediction": "x0"}, ("cosine", 1000, 1.0, "x0")),
    ({"network": SMALL, "schedule": "linear", "T": 4000, "rescale_timesteps": True}, ("linear", 4000, 0.25, "eps")),
    ({"network": SMALL, "rescale_timesteps": False}, ("cosine", 1000, 1.0, "eps")),
    ({}, ("linear", 1000, 1.0, "eps")),
]


@pytest.mark.parametrize(("entry", "expected"), ENTRIES)
def test_an_entry_describes_a_file(entry, expected):
    about = describe_entry(entry, "imagenet128")
    assert (about.schedule, about.T, about.time_factor, about.prediction) == expected


BAD_ENTRIES = [
    ({}, "it does not describe itself; give its entry 'preset' or 'network'"),
    ({"preset": "cifar"}, "unknown preset 'cifar'; choose cifar10"),
    ({"preset": "cifar10", "T": 4000}, "preset 'cifar10' brings its own 'T'"),
    ({"network": SMALL, "prediction": "score"}, "unknown prediction 'score'"),
    ({"network": SMALL, "schedule": "x"}, "unknown noise schedule"),
    ({"network": {"width": 3}}, "unknown U-Net argument 'width'"),
]


@pytest.mark.parametrize(("entry", "message"), BAD_ENTRIES)
def test_entries_that_describe_nothing_are_refused(entry, message):
    with pytest.raises(CheckpointError, match=message):
        describe_entry(entry)
