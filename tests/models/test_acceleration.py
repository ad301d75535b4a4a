"""Networks in lower precision and compiled: what changes, what must not, and what is refused."""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import nn
from torch._dynamo.utils import counters

from bench.models import acceleration
from bench.models.acceleration import Accelerated, CompileError, precision_refusal
from bench.models.checkpoints.adapter import Adapted
from bench.models.interface import Output
from bench.models.networks.adm import adm_unet
from bench.models.networks.classifier import classifier_network
from bench.models.networks.song import Block, SongUNet

CPU = torch.device("cpu")
TINY = {
    "image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 2, "num_res_blocks": 1,
    "channel_mult": (1,), "attention_resolutions": (1,),
}  # fmt: skip


def make_unet(seed=0, **changes):
    torch.manual_seed(seed)
    unet = adm_unet(TINY | changes).eval().requires_grad_(False)
    for parameter in unet.parameters():  # the last layers of fresh networks are zero, and would hide everything
        nn.init.normal_(parameter, std=0.05)
    return unet


@pytest.fixture(scope="module")
def unet():
    return make_unet()


@pytest.fixture
def asked():
    g = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 8, 8, generator=g), torch.full((4,), 300)


class Recording(nn.Module):
    """A network that says how it was called, and answers x."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, labels=None):
        state = torch.is_autocast_enabled("cpu"), torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
        self.calls.append(state)
        return Output(x * 1.0)


# --- precision --------------------------------------------------------------------------------------------------


def test_float32_is_the_network_itself(unet, asked):
    with torch.no_grad():
        assert torch.equal(Accelerated(unet)(*asked).sample, unet(*asked).sample)


def test_bfloat16_is_near_and_comes_back_as_float32(unet, asked):
    seen = []
    hook = unet.conv_in.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    with torch.no_grad():
        exact, fast = unet(*asked).sample, Accelerated(unet, "bf16")(*asked).sample
    hook.remove()
    assert (seen, fast.dtype) == ([torch.float32, torch.bfloat16], torch.float32)
    # bfloat16 keeps 8 bits: each of about 30 layers in a row rounds by up to 2^-9 of its size, in the mean square
    # sqrt(30) 2^-9 / sqrt(3) = 0.6 % where nothing cancels; a factor of 5 for what does.
    error = (fast - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < 0.03


@pytest.mark.parametrize(
    ("precision", "within"),
    [("fp32", (False, False, "highest")), ("tf32", (False, True, "high")), ("bf16", (True, False, "highest"))],
)
def test_a_precision_holds_for_the_call_alone(precision, within, asked, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    network = Recording()
    Accelerated(network, precision)(*asked)
    network(*asked)
    torch.set_float32_matmul_precision(before)
    assert network.calls == [within, (False, False, "highest")]


def test_tf32_ends_with_a_failing_call(asked):
    class Failing(nn.Module):
        def forward(self, x, t, labels=None):
            raise ValueError

    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with pytest.raises(ValueError, match=r"^$"):
        Accelerated(Failing(), "tf32")(*asked)
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before


def test_what_a_device_cannot_do_is_refused(monkeypatch):
    assert "has no effect on cpu" in precision_refusal("tf32", CPU)
    assert precision_refusal("fp32", CPU) is precision_refusal("bf16", CPU) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "Ampere" in precision_refusal("tf32", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert precision_refusal("tf32", torch.device("cuda")) is None


# --- compiling --------------------------------------------------------------------------------------------------


def test_only_batches_of_the_size_are_compiled(unet, asked, traced):
    network = Accelerated(unet)
    network.compile(*asked)
    x, t = asked
    assert (network.is_compiled, traced()) == (True, 1)
    with torch.no_grad():
        assert torch.equal(network(x, t).sample, unet(x, t).sample)
        assert torch.equal(network(x, t + 0.5).sample, unet(x, t + 0.5).sample)  # a remedy's broken index
        assert torch.equal(network(x[:3], t[:3]).sample, unet(x[:3], t[:3]).sample)
        assert torch.equal(network(x.transpose(2, 3), t).sample, unet(x.transpose(2, 3), t).sample)
    assert traced() == 1


@pytest.mark.ci
def test_networks_of_one_architecture_compile_once(asked, traced):
    networks = [Accelerated(make_unet(seed)) for seed in range(3)]
    for network in networks:
        network.compile(*asked)
    assert traced() == 1
    with torch.no_grad():
        outputs = [network(*asked).sample for network in networks]
        assert all(torch.equal(made, n.network(*asked).sample) for made, n in zip(outputs, networks, strict=True))
    assert not torch.equal(outputs[0], outputs[1])


class Scaled(nn.Module):
    """One code for many architectures, as a U-Net's is."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Conv2d(1, width, 1)

    def forward(self, x, t, labels=None):
        return Output(self.layer(x).mean(1, keepdim=True))


def test_more_architectures_than_torch_expects(asked, traced):
    networks = [Accelerated(Scaled(width)) for width in range(1, 13)]
    for network in networks:
        network.compile(*asked)
    assert traced() == len(networks) == 12
    with torch.no_grad():
        for network in networks:
            network(*asked)
    assert traced() == 12


def test_replayed_outputs_are_copies(asked, monkeypatch):
    buffer, how = torch.zeros(4, 1, 8, 8), {}

    def replaying(network, **given):
        how.update(given)
        return lambda x, t, labels: Output(buffer.copy_(x))

    monkeypatch.setattr(torch, "compile", replaying)
    monkeypatch.setattr(acceleration, "_replays", lambda device: True)
    network = Accelerated(Scaled(1))
    network.compile(*asked)
    assert how == {"dynamic": False, "mode": "reduce-overhead"}
    first, second = (network(asked[0] + k, asked[1]).sample for k in (1, 2))
    assert torch.equal(second, asked[0] + 2)
    assert torch.equal(first, asked[0] + 1)


def test_a_failing_compiler_leaves_the_network_as_it_was(unet, asked, monkeypatch):
    def failing(network, **how):
        def call(x, t, labels):
            raise RuntimeError("InvalidCxxCompiler: no compiler\n\nSet TORCHDYNAMO_VERBOSE=1 for the internal trace")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    network = Accelerated(unet)
    with pytest.raises(CompileError, match=r"^InvalidCxxCompiler: no compiler$"):
        network.compile(*asked)
    assert not network.is_compiled
    with torch.no_grad():
        assert torch.equal(network(*asked).sample, unet(*asked).sample)


def test_adapters(asked, traced):
    network = Accelerated(Adapted("mine.py:load", Echo(), 1))
    network.compile(*asked)
    assert torch.equal(network(*asked).sample, asked[0] * 300)
    with pytest.raises(CompileError, match=r"mine.py:load is a plain function"):
        Accelerated(Adapted("mine.py:load", lambda x, t, labels: x, 1)).compile(*asked)


class Echo(nn.Module):
    """Answers with its whole-numbered t, which an adapter's network may look up in a table."""

    def forward(self, x, t, labels=None):
        assert t.dtype == torch.int64
        return x * t[:, None, None, None]


@pytest.mark.slow  # compiles for most of a minute
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_code_says_what_the_network_says(unet, asked, precision):
    torch._dynamo.reset()
    counters.clear()
    network, eager = Accelerated(unet, precision), Accelerated(unet, precision)
    network.compile(*asked)
    with torch.no_grad():
        made, exact = network(*asked).sample, eager(*asked).sample
    # Sums in another order: some 30 layers of 2^-24 each, and of 2^-9 where products are bfloat16, a factor of 5 over.
    size, rounding = exact.square().mean().sqrt(), {"fp32": 2**-24, "bf16": 2**-9}[precision]
    assert (made - exact).square().mean().sqrt() / size < 5 * 30**0.5 * rounding
    assert counters["stats"]["unique_graphs"] == 1


# --- attention --------------------------------------------------------------------------------------------------


def latent_unet():
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 32), layers_per_block=1,
        cross_attention_dim=8, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def library_unet():
    return UNet2DModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def song_unet():
    return SongUNet({
        "img_resolution": 16, "in_channels": 3, "out_channels": 3, "model_channels": 32, "num_blocks": 1,
        "attn_resolutions": [16],
    })  # fmt: skip


def classifier():
    changes = {"num_head_channels": 32, "pool": "attention", "out_channels": 5}
    return classifier_network(TINY | changes)


def layers(network):
    attending = [m for m in network.modules() if isinstance(m, Attention) or (isinstance(m, Block) and m.attended)]
    return len(attending)


BLOCKS = [
    (make_unet, (2, 1, 8, 8), {}), (song_unet, (2, 3, 16, 16), {}), (library_unet, (2, 3, 8, 8), {}),
    (latent_unet, (2, 4, 8, 8), {"encoder_hidden_states": torch.zeros(2, 3, 8)}), (classifier, (2, 1, 8, 8), {}),
]  # fmt: skip


@pytest.mark.parametrize(("make", "x", "more"), BLOCKS)
def test_attention_is_torchs_fused_one(make, x, more, monkeypatch):
    calls, real = [], nn.functional.scaled_dot_product_attention

    def counting(*args, **settings):
        calls.append(args)
        return real(*args, **settings)

    network = make()
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counting)
    with torch.no_grad():
        network(torch.zeros(x), torch.ones(2), **more)
    assert len(calls) >= layers(network) > 0
