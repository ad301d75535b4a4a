"""Folders as the library itself writes them, its own scheduler steps, and folders that nobody should believe."""

import json
import shutil
from functools import partial

import diffusers
import huggingface_hub
import numpy as np
import pytest
import refusals
import torch
from cases import at_first
from safetensors.torch import load_file, save_file

from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, walk
from bench.diffusion.schedules import flow_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, Euler
from bench.models.checkpoints.diffusers_model import describe_diffusers, hash_diffusers, load_diffusers
from bench.models.checkpoints.formats import describe
from bench.models.checkpoints.hub import resolve_hub
from bench.models.denoisers.parameterization import NetworkDenoiser
from bench.runtime.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"
X, T = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8), torch.tensor([0, 999])


def unet(**changes):
    torch.manual_seed(0)
    settings = {
        "sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4,
        "attention_head_dim": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return diffusers.UNet2DModel(**settings | changes).eval()


@pytest.fixture(scope="module")
def network():
    return unet()


@pytest.fixture
def flat(tmp_path, network):
    """A model in one folder, with an index too, like google/ddpm-cifar10-32."""
    network.save_pretrained(tmp_path / "flat")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "flat")
    (tmp_path / "flat" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    return tmp_path / "flat"


def edit(path, **changes):
    """Change a JSON file; None removes a key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


refusal = partial(refusals.refusal, CheckpointError)


def opened(path):
    return load_diffusers(path, describe_diffusers(path))


def same_function(one, other):
    with torch.no_grad():
        return torch.equal(one(X, T).sample, other(X, T).sample)


def test_a_flat_folder_is_the_librarys_network(flat, network):
    description = describe_diffusers(flat)
    before = torch.get_rng_state()
    loaded = load_diffusers(flat, description)
    assert torch.equal(torch.get_rng_state(), before)  # loading draws nothing
    assert same_function(loaded, network)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert (description.schedule, description.T, description.prediction) == ("linear", 1000, "eps")
    assert (description.format, description.channels, description.classes) == ("diffusers", 3, None)
    assert description.network["image_size"] == 8
    assert not description.learns_variance
    json.dumps(dict(description.network))  # it becomes part of records
    assert str(flat.parent) not in json.dumps(dict(description.network))


def test_a_pipelines_folder_is_the_same(tmp_path, flat, network):
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    assert same_function(opened(tmp_path / "pipeline"), network)
    assert describe_diffusers(tmp_path / "pipeline") == describe_diffusers(flat)


def test_half_precision_weights_alone_are_read_as_float32_with_a_note(flat, network, capsys):
    tensors = {name: tensor.half() for name, tensor in load_file(flat / WEIGHTS).items()}
    (flat / WEIGHTS).unlink()
    save_file(tensors, flat / "diffusion_pytorch_model.fp16.safetensors")
    loaded = opened(flat)
    assert "in half precision alone" in capsys.readouterr().err
    assert loaded.dtype == torch.float32
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name].half().float())


def test_attention_of_old_files_is_found(flat, network):
    """Their names, as the library itself still reads them."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(flat / WEIGHTS)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in tensors.items()}
    assert sum(".query." in key for key in tensors) > 0
    save_file(tensors, flat / WEIGHTS)
    assert same_function(opened(flat), network)
    assert same_function(opened(flat), diffusers.UNet2DModel.from_pretrained(flat).eval())


def test_classes_and_learned_variance_are_described(tmp_path):
    model = unet(num_class_embeds=10, out_channels=6)
    model.save_pretrained(tmp_path)
    diffusers.DDPMScheduler(variance_type="learned_range").save_pretrained(tmp_path)
    description = describe_diffusers(tmp_path)
    assert description.classes == 10
    assert description.learns_variance
    labels = torch.tensor([3, 9])
    with torch.no_grad():
        assert torch.equal(load_diffusers(tmp_path, description)(X, T, labels).sample, model(X, T, labels).sample)


class Given:
    """Stored noise in place of the stream."""

    def __init__(self, noise):
        self.noise = noise

    def normal(self, purpose, step, shape):
        return self.noise[step]


STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}
MODES = {
    "fixed_small": Ancestral("fixed-small"),
    "fixed_large": Ancestral("fixed-large"),
    "learned_range": Ancestral("learned"),
    "ddim": DDIM(),
}


@pytest.mark.parametrize("prediction", at_first(["epsilon", "v_prediction", "sample"], 1))
@pytest.mark.parametrize("mode", MODES)
def test_a_walk_repeats_the_librarys_steps(tmp_path, monkeypatch, prediction, mode):
    """Ten steps from the same start with the same noise, each fed by its own last.

    The library's alpha_bar is float32. At t = 0 it is .9999, off by 3e-8 at least, so that sigma = .01 is off by 1.5e-6
    and x_next by that times eps, up to 5 here; earlier steps are gentler. Below 2e-5 in all (1e-5 measured).
    """
    learned = mode == "learned_range"
    unet(out_channels=6 if learned else 3).save_pretrained(tmp_path)
    settings = {"prediction_type": prediction}
    if mode == "ddim":
        scheduler = diffusers.DDIMScheduler(**settings)
    else:
        scheduler = diffusers.DDPMScheduler(variance_type=mode, **settings)
    scheduler.save_pretrained(tmp_path)
    scheduler.set_timesteps(10)
    description = describe_diffusers(tmp_path)
    network = load_diffusers(tmp_path, description)
    path = levels(description.schedule, description.T, "ddim10")
    assert [level.t for level in path[:-1]] == scheduler.timesteps.tolist()
    generator = torch.Generator().manual_seed(1)
    x, noise = (torch.randn(shape, generator=generator) for shape in ((4, 3, 8, 8), (10, 4, 3, 8, 8)))
    options = {"use_clipped_model_output": True} if mode == "ddim" else {}
    theirs = x
    for step in walk(NetworkDenoiser(network, description.prediction), path, x, MODES[mode], Given(noise), clip=True):
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, i=step.i, **__: noise[i])
        t = int(step.level.t)
        with torch.no_grad():
            theirs = scheduler.step(network(theirs, t).sample, t, theirs, **options).prev_sample
        torch.testing.assert_close(step.x_next, theirs, rtol=0, atol=2e-5)
    assert theirs.std() > 0.1  # it went somewhere


@pytest.mark.parametrize(
    ("settings", "schedule", "tolerance"),
    [
        ({}, "linear", 1e-6),
        ({"num_train_timesteps": 500}, "linear(0.0001,0.02)", 1e-6),
        (STABLE_DIFFUSION, "scaled_linear(0.00085,0.012)", 2e-6),
        ({"beta_schedule": "squaredcos_cap_v2"}, "cosine", 1e-4),
    ],
)  # fmt: skip
def test_schedules_are_the_librarys(flat, settings, schedule, tolerance):
    """Theirs is a float32 product of up to 1000 factors, each rounded by 3e-8 at most near 1: 1e-6 in quadrature.

    The last cosine factors are far from 1, the very last .001 as 1 - .999 with .999 off by 3e-8: 3e-5.
    """
    scheduler = diffusers.DDPMScheduler(**settings)
    scheduler.save_pretrained(flat)
    description = describe_diffusers(flat)
    assert description.schedule == schedule
    bars = [level.alpha**2 for level in reversed(levels(schedule, description.T, description.T)[:-1])]
    torch.testing.assert_close(torch.tensor(bars), scheduler.alphas_cumprod, rtol=tolerance, atol=0)


def test_settings_that_were_left_out_are_the_librarys(flat):
    (flat / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    description = describe_diffusers(flat)
    assert (description.schedule, description.T, description.prediction) == ("linear", 1000, "eps")
    edit(flat / "scheduler_config.json", predict_epsilon=False)  # what old files said instead of a prediction type
    assert describe_diffusers(flat).prediction == "x0"


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_repeats_the_librarys_steps(tmp_path, shift):
    """Even steps before the shift, as Flux's pipeline gives them; its sigmas are float32 (6e-8 of 1), states up to 10.

    Ten Euler steps of a network whose slopes are about 1: below 1e-5.
    """
    unet().save_pretrained(tmp_path)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.save_pretrained(tmp_path)
    description = describe_diffusers(tmp_path)
    schedule = "flow" if shift == 1 else "flow(3.0)"
    assert (description.schedule, description.T, description.prediction) == (schedule, 1000, "flow")
    network = load_diffusers(tmp_path, description)
    path = flow_levels(description.schedule, 10)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 10, 10))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    denoiser = NetworkDenoiser(network, description.prediction, description.time_factor)
    theirs = x
    for step in walk(denoiser, path, x, Euler(straight=True), Given(torch.zeros(10, 2, 3, 8, 8)), clip=False):
        t = scheduler.timesteps[9 - step.i]
        assert float(t) == pytest.approx(step.level.t, rel=1e-6)
        with torch.no_grad():
            theirs = scheduler.step(network(theirs, t).sample, t, theirs).prev_sample
        torch.testing.assert_close(step.x_next.float(), theirs, rtol=0, atol=1e-5)


def test_the_hash_is_of_weights_and_both_configurations(flat):
    tensors = {name: tensor + 1 for name, tensor in load_file(flat / WEIGHTS).items()}
    hashes = [hash_diffusers(flat, describe_diffusers(flat))]
    for change in (
        lambda: None,
        lambda: edit(flat / "scheduler_config.json", beta_end=0.01),
        lambda: edit(flat / "config.json", norm_eps=1e-6),
        lambda: save_file(tensors, flat / WEIGHTS),
    ):
        change()
        hashes.append(hash_diffusers(flat, describe_diffusers(flat)))
    assert (hashes[0] == hashes[1], len(set(hashes))) == (True, 4)


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


UNUSABLE_SCHEDULERS = [
    (FLOW | {"use_dynamic_shifting": True}, "'use_dynamic_shifting'"),
    (FLOW | {"invert_sigmas": True}, "'invert_sigmas'"),
    (FLOW | {"shift": "x"}, "the shift of flow"),
    (FLOW | {"num_train_timesteps": 0}, "num_train"),
    ({"prediction_type": "flow"}, "unknown prediction_type 'flow'"),
    ({"beta_schedule": "exp"}, "unknown beta_schedule 'exp'"),
    ({"trained_betas": [0.1]}, "1 entries, and T is 1000"),
    ({"trained_betas": ["a"] * 1000}, "trained_betas: could not convert"),
    ({"rescale_betas_zero_snr": True}, "ends without signal"),
    ({"num_train_timesteps": 10**12}, "num_train_timesteps"),
    ({"beta_start": "low"}, "must be numbers"),
    ({"beta_end": 1.5}, "above 0 and below 1"),
    ({"beta_start": float("nan")}, "must be numbers"),
    ({"_class_name": "ScoreSdeVeScheduler", "beta_schedule": None}, "variance-preserving"),
    ({"variance_type": "learned_range"}, "needs twice the channels"),
]


@pytest.mark.parametrize(("settings", "message"), UNUSABLE_SCHEDULERS)
def test_schedulers_that_cannot_be_used(flat, settings, message):
    edit(flat / "scheduler_config.json", **settings)
    assert message in refusal(describe_diffusers, flat)


UNUSABLE_NETWORKS = [
    ({"_class_name": "UNet2DConditionModel"}, "docs/latent.md"),
    ({"_class_name": "DiTTransformer2DModel"}, "is a DiTTransformer2DModel, but"),
    ({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"}, "is a DiTTransformer2DModel, but"),
    ({"_class_name": "SD3Transformer2DModel"}, "is of a 'SD3Transformer2DModel'; known are UNet2DModel of pixels"),
    ({"_class_name": "AutoencoderKL"}, "denoises nothing"),
    ({"out_channels": 5}, "out_channels must be"),
    ({"in_channels": "three"}, "whole numbers"),
    ({"out_channels": 6}, "'fixed_small' does not go with"),
    ({"class_embed_type": "timestep"}, "class_embed_type"),
    ({"block_out_channels": [8, 32]}, "does not fit its config.json"),
    ({"block_out_channels": [8]}, "describes no network"),
    ({"block_out_channels": [10**12, 10**12]}, "describes no network|does not fit"),
    ({"layers_per_block": 10**9}, "beyond any network"),
    ({"down_block_types": ["DownBlock2D"] * 1000}, "beyond any network"),
    ({"layers_per_block": 2}, "does not fit its config.json"),
    ({"of_another_century": 7}, "upgrade"),
]


@pytest.mark.parametrize(("settings", "message"), UNUSABLE_NETWORKS)
def test_networks_that_cannot_be_used(flat, settings, message):
    edit(flat / "config.json", **settings)
    assert any(part in refusal(opened, flat) for part in message.split("|"))


@pytest.mark.parametrize("part", ["vae", "vqvae", "text_encoder", "config.json", "scheduler_config.json", WEIGHTS])
def test_latent_pipelines_are_pointed_elsewhere_and_a_missing_part_is_named(flat, part):
    if "." in part:
        (flat / part).unlink()
        assert f"lacks {part}" in refusal(opened, flat)
    else:
        edit(flat / "model_index.json", **{part: ["diffusers", "Whatever"]})
        message = refusal(describe_diffusers, flat)
        assert repr(part) in message
        assert "docs/latent.md" in message


def test_what_is_no_folder_is_refused(flat):
    (flat / "file").touch()
    for path in (flat / "none", flat / "file"):
        assert "no such folder" in refusal(describe_diffusers, path)


class Hub:
    """A stand-in for the hub: what its cache holds, and what it can be asked for (None: it cannot be reached)."""

    def __init__(self, monkeypatch, cached=None, online=None):
        self.cached, self.online, self.asked = cached, online, []
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", self.files)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def __call__(self, name, allow_patterns, local_files_only, revision=None):
        self.asked.append((local_files_only, revision))
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
        folder = self.cached if local_files_only else self.online
        if folder is None:
            raise OSError("first line\nsecond line")
        return str(folder)

    def files(self, name, revision=None):
        if self.online is None:
            raise OSError("first line\nsecond line")
        return [file.name for file in self.online.rglob("*")]


@pytest.mark.parametrize(("revision", "asked"), [("", None), ("@v1.0", "v1.0"), ("@refs/pr/1", "refs/pr/1")])
def test_an_id_is_looked_up_in_the_cache_first(flat, monkeypatch, revision, asked):
    hub = Hub(monkeypatch, cached=flat)
    assert resolve_hub("owner/model-1.0" + revision) == flat
    assert hub.asked == [(True, asked)]


def test_what_the_cache_lacks_is_downloaded(tmp_path, flat, monkeypatch):
    hub = Hub(monkeypatch, cached=tmp_path, online=flat)
    assert resolve_hub("owner/model") == flat
    assert hub.asked == [(True, None), (False, None)]
    Hub(monkeypatch, online=tmp_path / "empty")
    assert "it has no such files" in refusal(resolve_hub, "owner/model")


def test_offline_says_which_files_are_missing_and_where_to_put_them(flat, monkeypatch):
    Hub(monkeypatch)
    message = refusal(resolve_hub, "owner/model")
    assert all(name in message for name in ("config.json", WEIGHTS, "scheduler_config.json"))
    assert "https://huggingface.co/owner/model" in message
    (flat / WEIGHTS).unlink()
    hub = Hub(monkeypatch, cached=flat)
    message = refusal(resolve_hub, "owner/model")
    assert f"lacks {WEIGHTS} (the hub cannot be reached" in message
    assert f"put them into {flat}" in message
    hub.asked.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "(the hub was not asked: HF_HUB_OFFLINE is set)" in refusal(resolve_hub, "owner/model")
    assert hub.asked == [(True, None)]


UNUSABLE = {
    "shards": (f"{WEIGHTS}.index.json", "holds weights in several files"),
    "pickle": ("diffusion_pytorch_model.bin", "holds its weights as a pickle"),
    "accelerate": ("model.safetensors", "is accelerate's checkpoint"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_weights_that_cannot_be_read_are_refused_alike_in_a_folder_and_on_the_hub(flat, monkeypatch, kind):
    name, message = UNUSABLE[kind]
    (flat / WEIGHTS).rename(flat / name)
    Hub(monkeypatch, online=flat)
    assert message in refusal(describe_diffusers, flat)
    assert message in refusal(resolve_hub, "owner/model")
    Hub(monkeypatch, cached=flat)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert message in refusal(resolve_hub, "owner/model")
    (flat / "config.json").unlink()
    assert message in refusal(describe_diffusers, flat)


@pytest.fixture
def pipeline(flat):
    """The same in folders, with a moving average beside the network, as a training of diffusers leaves it."""
    for name in ("unet", "unet_ema"):
        (flat / name).mkdir()
        shutil.copy(flat / "config.json", flat / name)
        tensors = {key: value + (name == "unet_ema") for key, value in load_file(flat / WEIGHTS).items()}
        save_file(tensors, flat / name / WEIGHTS)
    (flat / "scheduler").mkdir()
    (flat / "scheduler_config.json").rename(flat / "scheduler" / "scheduler_config.json")
    for name in ("config.json", WEIGHTS):
        (flat / name).unlink()
    return flat


PATHS = {
    "unet_ema": ["", "model_index.json", "scheduler/scheduler_config.json", "unet_ema"],
    "unet": ["unet", f"unet/{WEIGHTS}", "unet/config.json"],
}


@pytest.mark.parametrize(("taken", "inner"), [(taken, inner) for taken, paths in PATHS.items() for inner in paths])
def test_every_path_into_a_model_means_it(pipeline, capsys, inner, taken):
    description = describe(pipeline / inner)
    assert (description.format, description.schedule) == ("diffusers", "linear")
    assert description.content["parts"].weights == pipeline / taken / WEIGHTS
    assert ("takes the moving average" in capsys.readouterr().err) == ("unet" not in inner)


NO_NETWORK = [
    ({"_class_name": "DiTPipeline", "transformer": ["diffusers", "T"]}, "'DiTPipeline' without its transformer/"),
    ({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}, "'DDPMPipeline' without its unet/"),
    ({"_class_name": "CascadePipeline", "prior": ["diffusers", "P"]}, "network is in neither unet/ nor"),
    (None, "no model: it holds neither config.json nor model_index.json"),
]


@pytest.mark.parametrize(("index", "message"), NO_NETWORK)
def test_folders_without_a_network_are_called_what_they_are(tmp_path, index, message):
    if index is not None:
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert message in refusal(describe_diffusers, tmp_path)


def test_a_folder_of_another_trainings_files_asks_for_one_of_them(tmp_path):
    (tmp_path / "ema_0.9999_500000.pt").touch()
    assert f"give the path of one, such as {tmp_path / 'ema_0.9999_500000.pt'}" in refusal(describe_diffusers, tmp_path)


def test_a_transformer_of_the_hub_is_whole_without_a_unet(pipeline, monkeypatch):
    shutil.rmtree(pipeline / "unet_ema")
    (pipeline / "unet").rename(pipeline / "transformer")
    Hub(monkeypatch, cached=pipeline)
    assert resolve_hub("owner/model") == pipeline


def test_checkpoints_of_a_training_find_the_scheduler_beside_them(pipeline):
    checkpoint = pipeline / "checkpoint-500"
    checkpoint.mkdir()
    (pipeline / "unet_ema").rename(checkpoint / "unet_ema")
    assert describe(checkpoint).content["parts"].scheduler.parent == pipeline / "scheduler"


@pytest.mark.parametrize(
    ("settings", "schedule", "last"),
    [
        ({"beta_schedule": "sigmoid"}, "sigmoid(0.0001,0.02)", 3.968e-5),
        ({"trained_betas": np.linspace(1e-4, 0.02, 1000).tolist()}, "table(", 4.0358e-5),
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, "zero_snr(linear)", 0.0),
    ],
)
def test_schedules_of_the_library_are_read_and_walked(flat, settings, schedule, last):
    """A walk may start where no signal is left: v says what x0 is."""
    edit(flat / "scheduler_config.json", **settings)
    about = describe_diffusers(flat)
    assert about.schedule.startswith(schedule)
    path = levels(about.schedule, about.T, 3)
    assert path[0].alpha ** 2 == pytest.approx(last, rel=1e-3)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    denoiser, draws = NetworkDenoiser(load_diffusers(flat, about), about.prediction), Draws(Noise(0), torch.arange(2))
    for solver in (DDIM(), Ancestral("fixed-small"), Ancestral("fixed-large")):
        *_, final = walk(denoiser, path, x, solver, draws)
        assert final.x_next.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "variance"),
    [
        ({}, "fixed-small"),
        ({"variance_type": None}, "fixed-small"),
        ({"variance_type": "fixed_large"}, "fixed-large"),
        ({"variance_type": "fixed_small_log"}, "fixed-small"),
        ({"_class_name": "DDIMScheduler", "variance_type": None}, None),
    ],
)  # fmt: skip
def test_the_variance_of_its_steps_is_read(flat, settings, variance, capsys):
    edit(flat / "scheduler_config.json", **settings)
    assert describe_diffusers(flat).variance == variance
    assert capsys.readouterr().err == ""


def test_what_is_not_used_of_its_sampling_is_one_note(flat, capsys):
    edit(flat / "scheduler_config.json", thresholding=True, clip_sample_range=2.0, timestep_spacing="trailing")
    describe_diffusers(flat)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("not used: thresholding True, clip_sample_range 2.0, timestep_spacing 'trailing'")
