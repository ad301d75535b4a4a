import math
import zlib

import numpy as np
import pytest
import torch
from torch.nn import functional

from bench.models.checkpoints.guided_diffusion import PRESETS
from bench.models.networks.adm import load_guided_diffusion
from bench.models.networks.classifier import AttentionPool, classifier_network
from bench.runtime.errors import CheckpointError

CLASSIFIER = {
    "image_size": 16, "in_channels": 3, "out_channels": 7, "model_channels": 32, "num_res_blocks": 2,
    "channel_mult": (1, 2, 3), "attention_resolutions": (2, 4), "num_head_channels": 32, "pool": "attention",
    "resblock_updown": True, "use_scale_shift_norm": True,
}  # fmt: skip
VARIANTS = {
    "released": {},
    "adaptive": {"pool": "adaptive"},
    "convolutions": {"resblock_updown": False, "use_scale_shift_norm": False},
    "new-order": {"use_new_attention_order": True},
    "fixed-heads": {"num_head_channels": -1, "num_heads": 4, "pool": "adaptive"},
    "middle-only": {"attention_resolutions": (), "channel_mult": (1, 1, 2)},
}


class Published:
    """The published classifier as one function of its weights, which it invents by name and shape as it asks for them.

    Written from the description of the network in Dhariwal & Nichol 2021 (section 3 and 4.3) and the names in its
    files: an independent account of what is called what, how large it is and what is done with it.
    """

    def __init__(self, config):
        self.config, self.state = {"num_head_channels": -1, "use_new_attention_order": False, **config}, {}

    def weight(self, name, *shape):
        if name not in self.state:
            values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
            self.state[name] = torch.from_numpy(values / np.float32(math.sqrt(math.prod(shape[1:]) or 1)))
        assert self.state[name].shape == shape
        return self.state[name]

    def norm(self, name, h):
        width = h.shape[1]
        return functional.group_norm(h, 32, self.weight(f"{name}.weight", width), self.weight(f"{name}.bias", width))

    def linear(self, name, h, out):
        return h @ self.weight(f"{name}.weight", out, h.shape[1]).T + self.weight(f"{name}.bias", out)

    def conv(self, name, h, out, kernel, stride=1):
        weight = self.weight(f"{name}.weight", out, h.shape[1], kernel, kernel)
        return functional.conv2d(h, weight, self.weight(f"{name}.bias", out), stride, kernel // 2)

    def conv1d(self, name, h, out):
        weight = self.weight(f"{name}.weight", out, h.shape[1], 1)[..., 0]
        return torch.einsum("oc,bcl->bol", weight, h) + self.weight(f"{name}.bias", out)[:, None]

    def residual(self, name, h, emb, out, halved=False):
        shortcut = h
        inner = functional.silu(self.norm(f"{name}.in_layers.0", h))
        if halved:
            inner, shortcut = functional.avg_pool2d(inner, 2), functional.avg_pool2d(h, 2)
        inner = self.conv(f"{name}.in_layers.2", inner, out, 3)
        modulates = self.config["use_scale_shift_norm"]
        time = self.linear(f"{name}.emb_layers.1", functional.silu(emb), out * (2 if modulates else 1))[..., None, None]
        if modulates:
            inner = self.norm(f"{name}.out_layers.0", inner) * (1 + time[:, :out]) + time[:, out:]
        else:
            inner = self.norm(f"{name}.out_layers.0", inner + time)
        inner = self.conv(f"{name}.out_layers.3", functional.silu(inner), out, 3)
        if h.shape[1] != out:
            shortcut = self.conv(f"{name}.skip_connection", shortcut, out, 1)
        return shortcut + inner

    def attend(self, q, k, v):
        """Attention over the last axis; q, k, v are [B, heads, channels, tokens]."""
        share = torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(q.shape[2])
        return torch.einsum("bhts,bhcs->bhct", share.softmax(-1), v)

    def attention(self, name, h):
        batch, width, *size = h.shape
        per_head = self.config["num_head_channels"]
        heads = self.config["num_heads"] if per_head == -1 else width // per_head
        fused = self.conv1d(f"{name}.qkv", self.norm(f"{name}.norm", h).flatten(2), 3 * width)
        if self.config["use_new_attention_order"]:
            q, k, v = fused.reshape(batch, 3, heads, width // heads, -1).unbind(1)
        else:
            q, k, v = fused.reshape(batch, heads, 3, width // heads, -1).unbind(2)
        answer = self.attend(q, k, v).reshape(batch, width, -1)
        return h + self.conv1d(f"{name}.proj_out", answer, width).reshape(batch, width, *size)

    def pooled(self, h):
        h = functional.silu(self.norm("out.0", h))
        classes, (batch, width, *_) = self.config["out_channels"], h.shape
        if self.config["pool"] == "adaptive":
            return self.conv("out.3", h.mean((2, 3), keepdim=True), classes, 1)[:, :, 0, 0]
        tokens = torch.cat([h.mean((2, 3))[..., None], h.flatten(2)], dim=2)
        tokens = tokens + self.weight("out.2.positional_embedding", width, tokens.shape[2])
        per_head = self.config["num_head_channels"]
        fused = self.conv1d("out.2.qkv_proj", tokens, 3 * width)
        q, k, v = fused.reshape(batch, 3, width // per_head, per_head, -1).unbind(1)
        return self.conv1d("out.2.c_proj", self.attend(q, k, v).reshape(batch, width, -1), classes)[:, :, 0]

    def __call__(self, x, t):
        config = self.config
        half = config["model_channels"] // 2
        angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = torch.cat([angles.cos(), angles.sin()], dim=1)
        emb = functional.silu(self.linear("time_embed.0", emb, 8 * half))
        emb = self.linear("time_embed.2", emb, 8 * half)
        widths = [mult * config["model_channels"] for mult in config["channel_mult"]]
        h, count = self.conv("input_blocks.0.0", x, widths[0], 3), 1
        for level, width in enumerate(widths):
            for _ in range(config["num_res_blocks"]):
                h = self.residual(f"input_blocks.{count}.0", h, emb, width)
                if 2**level in config["attention_resolutions"]:
                    h = self.attention(f"input_blocks.{count}.1", h)
                count += 1
            if level < len(widths) - 1 and config["resblock_updown"]:
                h = self.residual(f"input_blocks.{count}.0", h, emb, width, halved=True)
                count += 1
            elif level < len(widths) - 1:
                h = self.conv(f"input_blocks.{count}.0.op", h, width, 3, stride=2)
                count += 1
        h = self.residual("middle_block.0", h, emb, widths[-1])
        h = self.attention("middle_block.1", h)
        h = self.residual("middle_block.2", h, emb, widths[-1])
        return self.pooled(h)


def inputs(size, batch=3):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, size, size, generator=draw), torch.tensor([0.0, 3.25, 999.0])[:batch]


def both(config, batch=3):
    """Return our logits and the published ones, and the published weights."""
    published, (x, t) = Published(config), inputs(config["image_size"], batch)
    expected = published(x, t)
    network = classifier_network(config).eval()
    load_guided_diffusion(network, published.state)  # refuses any other name or shape
    return network(x, t), expected, published.state


# As in test_adm.py: both sides are float32, a few dozen layers of relative rounding 6e-8 in random directions.
TOLERANCE = 1e-5


def relative_error(got, expected):
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_the_classifier_equals_the_published_one(name):
    got, expected, _ = both({**CLASSIFIER, **VARIANTS[name]})
    assert relative_error(got, expected) < TOLERANCE


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet64", "imagenet128"])
def test_the_released_sizes_equal_the_published_ones(name):
    got, expected, state = both(PRESETS[name].classifier, batch=2)
    assert relative_error(got, expected) < TOLERANCE
    # Dhariwal & Nichol 2021 give their sizes as 65M and 43M parameters.
    assert round(sum(tensor.numel() for tensor in state.values()) / 1e6) == {"imagenet64": 65, "imagenet128": 43}[name]


def test_the_input_gradient_equals_the_published_one():
    """What guidance is made of. A gradient passes the layers twice, so twice the rounding."""
    published, (x, t) = Published(CLASSIFIER), inputs(16)
    ours = x.clone().requires_grad_()
    theirs = x.clone().requires_grad_()
    expected = torch.autograd.grad(published(theirs, t).log_softmax(1)[:, 2].sum(), theirs)[0]
    network = classifier_network(CLASSIFIER).eval()
    load_guided_diffusion(network, published.state)
    got = torch.autograd.grad(network(ours, t).log_softmax(1)[:, 2].sum(), ours)[0]
    assert relative_error(got, expected) < 2 * TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("change", [{"use_new_attention_order": True}, {"num_head_channels": 16}])
def test_orders_and_heads_matter_though_the_shapes_do_not_tell(change):
    published, (x, t) = Published(CLASSIFIER), inputs(16)
    expected = published(x, t)
    network = classifier_network({**CLASSIFIER, **change}).eval()
    load_guided_diffusion(network, published.state)
    assert relative_error(network(x, t), expected) > 100 * TOLERANCE


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
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
    ],
)
def test_classifiers_that_cannot_be_built_are_refused(change, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        classifier_network({**CLASSIFIER, **change})
    assert "\n" not in str(caught.value)
