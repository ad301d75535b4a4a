"""A tiny random network, a small dataset and the command line, all under a temporary folder."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import outcome_of

from bench.data import Dataset, load, stratified_split
from bench.diffusion.types import Prediction
from bench.measure.features.extractors import open_extractor
from bench.measure.quality.statistics import summarise
from bench.measure.quality.statistics_files import write_statistics
from bench.models.checkpoints.native import save_network
from bench.models.interface import Description
from bench.models.networks.adm import adm_unet
from bench.suite import run as whole_run
from bench.suite.cells.reference import Reference
from bench.suite.cells.walks import WalkContext
from bench.suite.cli import run
from bench.suite.plan import Cell
from bench.suite.registry.model import Model
from bench.suite.registry.registry import load_registry
from bench.suite.settings import IN_CELLS, SamplerConfig

NETWORK = {
    "image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 2, "num_res_blocks": 1,
    "channel_mult": (1,),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")  # not the session: other folders' tests run in the same process
def small_laws():
    """Walk few exact samples, and leave out the Gaussian of 32x32 colour images, whose covariance takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.suite.cells.reference.LARGEST", 768)
        patch.setattr("bench.suite.experiments.exact._MANY", 64)
        patch.setattr("bench.suite.experiments.exact._FEW", 64)
        yield


@pytest.fixture(autouse=True)
def unasked(request, monkeypatch):
    """Ask no network for its slopes: those of tests are random, and no description fits them."""
    if not request.module.__name__.endswith("test_calibration"):
        monkeypatch.setattr("bench.suite.execution.launch.plan_slopes", lambda cells: [])


@pytest.fixture(scope="session")
def save_tiny(tmp_path_factory):
    """Return a function that writes a random network with a chosen description and returns its path."""

    def save(name="tiny", edit=None, description=None, **changes):
        torch.manual_seed(0)
        network = NETWORK | changes
        unet = adm_unet(network)
        if edit:
            edit(unet)
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_network(path, unet, Description(network, **description or {}))
        return path

    return save


@pytest.fixture(scope="session")
def tiny_weights(save_tiny):
    return save_tiny()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Write 40 random grey 8x8 images in guided-diffusion's npz format."""
    path = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    rng = np.random.default_rng(0)
    np.savez(path, arr_0=rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
    return path


@pytest.fixture(scope="session")
def half_statistics(tmp_path_factory):
    """The digits' statistics as a file that another tool might have written, of every second image."""
    path = tmp_path_factory.mktemp("statistics") / "half.npz"
    write_statistics(summarise(open_extractor("digits"), load("digits").part("train")[::2], "half"), path)
    return path


@pytest.fixture
def toml(tmp_path, tiny_weights, pictures):
    """A configuration file that adds the tiny network and the small dataset."""
    path = tmp_path / "bench.toml"
    path.write_text(f'[models.tiny]\nweights = "{tiny_weights}"\n[datasets.pictures]\npath = "{pictures}"\n')
    return path


@pytest.fixture
def from_toml(tmp_path):
    """Return a function that reads a configuration text."""

    def read(text, dataset="digits"):
        path = tmp_path / "models.toml"
        path.write_text(text)
        return load_registry((path,), dataset)

    return read


@pytest.fixture
def command(capsys):
    """Return a function that runs the suite's command line and returns (exit code, stdout, stderr)."""
    return partial(outcome_of, capsys, lambda args: run(args)[0])


@pytest.fixture
def run_tiny(command, tmp_path):
    """Return a function that samples six images of some weights without scores: its outcome and the results folder."""

    def call(weights, *flags, name="mine"):
        out = tmp_path / "out"
        args = ("--models", f"{name}={weights}", "--samples", "6", "--features", "none", "--quiet", "--out", out)
        return command(*args, *flags), out

    return call


class Interrupting:
    """Stand in for the denoiser class: the network works for some calls, then the user presses Ctrl-C.

    ``made`` counts the calls, ``rows`` their rows, padding included; ``labels`` are those it was given, in order.
    """

    def __init__(self, calls):
        self.left, self.made, self.rows, self.labels = calls, 0, 0, []
        self.real = whole_run.denoiser_of

    def __call__(self, network, description, device):
        denoiser = self.real(network, description, device)

        def call(x, level, cond=None):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.made, self.rows = self.made + 1, self.rows + len(x)
            self.labels.append(cond)
            return denoiser(x, level, cond)

        return call


@pytest.fixture
def interrupting(monkeypatch):
    """Return a context in which a run gets so many network calls, any number if negative, and its stand-in."""

    @contextmanager
    def within(calls):
        with monkeypatch.context() as patch:
            patch.setattr(whole_run, "denoiser_of", Interrupting(calls))
            yield whole_run.denoiser_of

    return within


class Shrink:
    """A cheap denoiser with a learned variance: x0_hat = c x, every row counted."""

    def __init__(self, fail_at=None):
        self.calls, self.rows, self.fail_at = 0, 0, fail_at

    def __call__(self, x, level, cond=None):
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.rows += len(x)
        x0 = level.alpha * x
        return Prediction((x - level.alpha * x0) / level.sigma, x0, torch.full_like(x, 0.3))


@pytest.fixture
def shrink():
    return Shrink


@pytest.fixture(scope="session")
def small_data():
    """60 random grey 4x4 images of three classes, every third of a class held out."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 4, 4), generator=g, dtype=torch.uint8)
    labels = torch.arange(60) % 3
    return Dataset("small", images, labels, stratified_split(labels, 3))


@pytest.fixture(scope="session")
def make_cell(small_data):
    """Return a function that makes a cell of the small dataset, with changes."""
    model = Model("toy", Path("toy.safetensors"), Description({**NETWORK, "image_size": 4}))
    parts = (len(small_data.part("train")), len(small_data.part("heldout")))
    cell = Cell(model, SamplerConfig(), 4, 0, 12, IN_CELLS, small_data.content_hash(), parts, "0" * 64)

    def make(**changes):
        config = {name: changes.pop(name) for name in list(changes) if hasattr(cell.config, name)}
        return replace(cell, config=replace(cell.config, **config), **changes)

    return make


@pytest.fixture(scope="session")
def make_context(small_data):
    """Return a function that makes the context of a given denoiser."""

    def make(denoiser, data=small_data, extractor=None, batch=100, counted=None):
        progress = counted.append if counted is not None else lambda calls: None
        reference = data if isinstance(data, Reference) else Reference(data, extractor)
        return WalkContext(lambda model: denoiser, reference, torch.device("cpu"), batch, progress)

    return make
