import json

import numpy as np
import pytest
import torch
from edm_files import GOLDEN, golden_tensor
from refusals import refusal

from bench.models.networks.adm import load_guided_diffusion
from bench.models.networks.classifier import AttentionPool, classifier_network
from bench.runtime.errors import CheckpointError

CLASSIFIER = {
    "image_size": 16, "in_channels": 3, "out_channels": 7, "model_channels": 32, "num_res_blocks": 2,
    "channel_mult": (1, 2, 3), "attention_resolutions": (2, 4), "num_head_channels": 32, "pool": "attention",
    "resblock_updown": True, "use_scale_shift_norm": True,
}  # fmt: skip
with np.load(GOLDEN / "classifier_variants.npz") as file:
    OUTPUTS = {name: torch.from_numpy(file[name]) for name in file.files if name != "variants"}
    VARIANTS = json.loads(file["variants"].tobytes())
X = torch.from_numpy(np.random.RandomState(0).standard_normal((3, 3, 16, 16)).astype(np.float32))
T = torch.tensor([0.0, 3.25, 999.0])


def loaded(name, **change):
    """Return a classifier with the golden weights, in another form where that is asked for."""
    network = classifier_network(VARIANTS[name]["config"] | change).eval()
    weights = {key: golden_tensor(key, tuple(shape)) for key, shape in VARIANTS[name]["shapes"].items()}
    load_guided_diffusion(network, weights)  # refuses any other name or shape
    return network


# As in test_adm.py: both sides are float32, a few dozen layers of relative rounding 6e-8 in random directions.
TOLERANCE = 1e-5


def relative_error(got, expected):
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_the_classifier_equals_the_published_one(name):
    assert relative_error(loaded(name)(X, T), OUTPUTS[name]) < TOLERANCE


def test_the_input_gradient_equals_the_published_one():
    """What guidance is made of. A gradient passes the layers twice, so twice the rounding."""
    x = X.clone().requires_grad_()
    (got,) = torch.autograd.grad(loaded("released")(x, T).log_softmax(1)[:, 2].sum(), x)
    assert relative_error(got, OUTPUTS["released_gradient"]) < 2 * TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("change", [{"use_new_attention_order": True}, {"num_head_channels": 16}])
def test_orders_and_heads_matter_though_the_shapes_do_not_tell(change):
    assert relative_error(loaded("released", **change)(X, T), OUTPUTS["released"]) > 100 * TOLERANCE


def test_pooling_asks_with_the_mean_only():
    """Features all equal to their mean, no positions: every token answers alike, so the answer is v's projection."""
    pool = AttentionPool(2, 8, 4, 5)
    torch.nn.init.zeros_(pool.positional_embedding)
    features = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        value = pool.qkv_proj(features[..., None])[:, 16:]
        expected = pool.c_proj(value)[..., 0]
        got = pool(features[..., None, None].expand(3, 8, 2, 2))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # a dozen float32 roundings of numbers near 1


IMPOSSIBLE = [
    ({"pool": "spatial"}, "'pool' must be adaptive or attention, not 'spatial'"),
    ({"pool": None}, "'pool' must be adaptive or attention, not None"),
    ({"out_channels": None}, "needs 'out_channels'"),
    ({"num_classes": 7}, "takes no labels itself"),
    ({"learn_sigma": True}, "takes no labels itself"),
    ({"image_size": None}, "needs 'image_size' and 'num_head_channels'"),
    ({"num_head_channels": -1}, "needs 'image_size' and 'num_head_channels'"),
    ({"num_head_channels": 64}, "width 96 cannot be split"),
    ({"image_size": "16"}, "'image_size' must be a positive integer"),
    ({"depth": 2}, "unknown U-Net argument 'depth'"),
    ({"model_channels": None}, "'model_channels' must be a positive integer"),
    ({"channel_mult": None}, "'channel_mult' must be a list of positive numbers"),
]


@pytest.mark.parametrize(("change", "message"), IMPOSSIBLE)
def test_classifiers_that_cannot_be_built_are_refused(change, message):
    assert refusal(CheckpointError, classifier_network, {**CLASSIFIER, **change}, match=message)
