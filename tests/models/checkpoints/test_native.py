import hashlib
import json
from functools import partial

import pytest
import refusals
import torch
from safetensors.torch import load_file, save_file

from bench.models.checkpoints.native import load_network, read_description, save_network
from bench.models.checkpoints.state_dicts import file_hash
from bench.models.interface import Description
from bench.models.networks.adm import adm_unet
from bench.runtime.errors import CheckpointError

SMALL = {"image_size": 8, "in_channels": 1, "model_channels": 32, "num_res_blocks": 1, "channel_mult": (1,)}
DESCRIPTION = Description(SMALL, "linear", 500, {"name": "adm", "gamma": 0.1})


@pytest.fixture
def network():
    torch.manual_seed(0)
    return adm_unet(SMALL)


@pytest.fixture
def saved(tmp_path, network):
    path = tmp_path / "weights.safetensors"
    save_network(path, network, DESCRIPTION)
    return path


refusal = partial(refusals.refusal_of_file, CheckpointError)


def test_half_precision_round_trip(saved, network):
    """What comes back is the weight rounded to half precision, exactly, as float32."""
    loaded = load_network(saved, DESCRIPTION)
    assert not loaded.training
    for (name, tensor), (same, original) in zip(loaded.state_dict().items(), network.state_dict().items(), strict=True):
        assert (name, tensor.dtype) == (same, torch.float32)
        assert torch.equal(tensor, original.half().float())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {tensor.dtype for tensor in load_file(saved).values()} == {torch.float16}


def test_saving_makes_folders_replaces_and_leaves_nothing_behind(tmp_path, network):
    path = tmp_path / "a" / "b" / "weights.safetensors"
    save_network(path, network, Description({**SMALL, "dropout": 0.5}))
    save_network(path, network, DESCRIPTION)
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]
    assert read_description(path).training == DESCRIPTION.training


def test_saving_is_deterministic(saved, tmp_path, network):
    """The hash is part of every result's key; the library alone writes the five metadata entries in random order."""
    again = tmp_path / "again.safetensors"
    for _ in range(5):
        save_network(again, network, DESCRIPTION)
        assert file_hash(again) == file_hash(saved)


def test_the_description_travels_with_the_weights(saved, network):
    description = read_description(saved)
    assert description.network == json.loads(json.dumps(SMALL))  # JSON knows no tuples
    assert (description.schedule, description.T, description.training) == ("linear", 500, {"name": "adm", "gamma": 0.1})
    assert load_network(saved, description).state_dict().keys() == network.state_dict().keys()


def test_the_hash_is_of_the_bytes(saved):
    assert file_hash(saved) == hashlib.sha256(saved.read_bytes()).hexdigest()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_other_origin_are_refused(tmp_path, metadata):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    assert "not a checkpoint of this suite" in refusal(read_description, path)
    assert "of another architecture" in refusal(load_network, path, DESCRIPTION)


DAMAGED = [
    {"T": "many"}, {"T": "-1"}, {"network": "{"}, {"schedule": None}, {"schedule": "x"},
    {"schedule": "linear", "T": "10"},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_descriptions_are_refused(tmp_path, damage):
    text = {"format": "exposure-bias-1", "network": "{}", "schedule": "cosine", "T": "1000", "training": "{}", **damage}
    path = tmp_path / "damaged.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata={key: value for key, value in text.items() if value})
    assert "damaged description" in refusal(read_description, path)


def test_a_network_that_cannot_be_built_is_refused_with_its_file(saved):
    assert "'channel_mult' must be" in refusal(load_network, saved, Description({**SMALL, "channel_mult": "1,2"}))
