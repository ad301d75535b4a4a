"""Files of strangers through the real commands: one line, code 2, nothing run and nothing written."""

import json
import shutil
import zipfile

import diffusers
import numpy as np
import pytest
import torch
from edm_files import write_edm_pickle
from hostile import touch
from pictures import encoded, zipped
from refusals import outcome_of

import run_bench
from analysis.__main__ import main as analyse
from bench.measure.__main__ import main as measure
from bench.models.checkpoints.native import save_network
from bench.models.interface import Description
from bench.models.networks.adm import adm_unet
from bench.models.networks.adm_keys import published_shapes
from bench.models.train.__main__ import main as train

NETWORK = {
    "image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 2, "num_res_blocks": 1,
    "channel_mult": [1],
}  # fmt: skip
COMMANDS = {"run_bench": run_bench.main, "measure": measure, "analysis": analyse, "train": train}


@pytest.fixture(autouse=True)
def unasked(monkeypatch):
    """Ask no network for its slopes: those of tests are random, and no description fits them."""
    monkeypatch.setattr("bench.suite.execution.launch.plan_slopes", lambda cells: [])


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A folder with all that a command may touch: the current folder, the caches, the input, and where results go."""
    for name in ("cwd", "cache", "in"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("EXPOSURE_BIAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def marker(room):
    return room / "ran"


@pytest.fixture
def hostile(marker):
    return touch(marker)


def tree(folder):
    """Return what lies below a folder: every path with its kind, size and time of change."""
    return {path: (s.st_mode, s.st_size, s.st_mtime_ns) for path in folder.rglob("*") if (s := path.lstat())}


@pytest.fixture
def call(capsys):
    """A function that calls a command and returns its code and what it printed."""
    return lambda command, *args: outcome_of(capsys, COMMANDS[command], *args)


@pytest.fixture
def refused(room, marker, call):
    """A function that calls a command, asserts that it refuses in one line without a trace, and returns the line."""

    def asserted(command, *args):
        before = tree(room)
        outcome = call(command, *args)
        assert outcome.refused(), outcome
        assert outcome.out == ""
        assert len(outcome.err) < 1200
        assert not marker.exists()
        assert tree(room) == before
        return outcome.err

    return asserted


@pytest.fixture
def bench_args(room):
    """The flags of a short run without instruments."""
    return ("--steps", "2", "--samples", "4", "--features", "none", "--no-probes", "--quiet", "--out", room / "out")


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """A sound file or folder of every kind, by name; tests copy what they spoil."""
    folder = tmp_path_factory.mktemp("sound")
    torch.manual_seed(0)
    unet = adm_unet(NETWORK)
    save_network(folder / "own.safetensors", unet, Description(NETWORK))
    shapes = published_shapes(unet.state_dict(), unet.config["guided_diffusion"])
    torch.save({name: torch.full(shape, 0.01) for name, shape in shapes.items()}, folder / "released.pt")
    write_edm_pickle(folder / "edm.pkl")
    diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).save_pretrained(folder / "diffusers")  # fmt: skip
    diffusers.DDPMScheduler().save_pretrained(folder / "diffusers")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / "images.npz", arr_0=pixels, arr_1=[0, 1] * 3)
    files = {f"{k % 2}/{k}.png": encoded(image) for k, image in enumerate(pixels)}
    zipped(folder / "images.zip", files, zipfile.ZIP_DEFLATED)
    np.savez(folder / "statistics.npz", mu=np.zeros(64), sigma=np.eye(64))
    return folder


@pytest.fixture
def png():
    return encoded


@pytest.fixture
def model(room, bench_args):
    """A function of weights that returns the arguments of a run with them, described as the small network."""

    def arguments(weights, *flags):
        described = "".join(f"{key} = {json.dumps(value)}\n" for key, value in NETWORK.items())
        entry = f"[models.m]\nweights = {json.dumps(str(weights))}\n"
        if str(weights).endswith(".pt"):
            entry += f"[models.m.network]\n{described}"
        (room / "m.toml").write_text(entry)
        heun = ("--sampler", "heun") if str(weights).endswith(".pkl") else ()
        return ("run_bench", "--config", room / "m.toml", "--models", "m", *heun, *bench_args, *flags)

    return arguments


@pytest.fixture
def given(room, sound):
    """A function of a name that returns a copy of a sound checkpoint."""

    def copied(name):
        target = room / "in" / name
        copy = shutil.copytree if (sound / name).is_dir() else shutil.copy
        copy(sound / name, target)
        return target

    return copied
