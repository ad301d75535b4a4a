"""What both of EDM's networks owe: names, shapes and outputs of ``tests/golden/edm_networks.npz``."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from edm_files import GOLDEN, random_tensors

from bench.models.networks.dhariwal import DhariwalUNet, dhariwal_state
from bench.models.networks.song import SongUNet

with np.load(GOLDEN / "edm_networks.npz") as file:
    OUTPUTS = {name: torch.from_numpy(file[name]) for name in file.files if name != "variants"}
    VARIANTS = json.loads(file["variants"].tobytes())
# Relative to the largest output. Both sides are float32, which keeps 6e-8 of each of about fifty layers' values; in
# random directions that is sqrt(50) * 6e-8 = 4e-7 of the output's size, and sums over a few hundred terms add as much:
# 1.4e-6 is the worst seen. The subtlest mistake known, a norm epsilon of 1e-5 for 1e-6 or the reverse, shows as 1.5e-5
# or more.
TOLERANCE = 5e-6
NOISE = torch.tensor([-1.5, 0.25, 1.1])
CONDITIONAL = pytest.mark.parametrize("name", ["ddpmpp-conditional", "conditional"])


X = torch.from_numpy(np.random.RandomState(0).standard_normal((3, 1, 8, 8)).astype(np.float32))


@cache
def loaded(name):
    """Return a network with the golden weights."""
    architecture, config = VARIANTS[name]["architecture"], VARIANTS[name]["config"]
    tensors = random_tensors(architecture, config)
    assert {key: list(tensor.shape) for key, tensor in tensors.items()} == VARIANTS[name]["shapes"]
    network = (SongUNet if architecture == "SongUNet" else DhariwalUNet)(config).eval()
    network.load_state_dict(tensors if architecture == "SongUNet" else dhariwal_state(network, tensors))
    return network


def error(got, expected):
    """Return the largest difference over the largest output."""
    assert (got.shape, got.dtype) == (expected.shape, torch.float32)
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_the_network_is_the_described_function(name):
    labels = torch.tensor([2, 0, 1]) if VARIANTS[name]["config"]["label_dim"] else None
    assert error(loaded(name)(X, NOISE, labels).sample, OUTPUTS[name]) < TOLERANCE


@CONDITIONAL
@torch.no_grad()
def test_no_label_is_an_all_zero_label(name):
    expected = OUTPUTS[f"{name}_unlabelled"]
    assert error(loaded(name)(X, NOISE, None).sample, expected) < TOLERANCE
    assert error(loaded(name)(X, NOISE, torch.tensor([0, 1, 2])).sample, expected) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["ddpmpp", "one-head"])
@torch.no_grad()
def test_an_unconditional_network_ignores_labels(name):
    network = loaded(name)
    assert torch.equal(network(X, NOISE, torch.tensor([0, 1, 2])).sample, network(X, NOISE).sample)
