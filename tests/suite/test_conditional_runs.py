"""Runs of class-conditional models: labels belong to the sample, real images bring their own."""

import json

import numpy as np
import pytest
import torch

from bench.data import load
from bench.diffusion.noise import Noise, Purpose
from bench.suite import run as whole_run

SAMPLES = 24


@pytest.fixture(scope="module")
def weights(save_tiny):
    """A tiny network of ten classes whose embedding is random, so that labels matter."""

    def edit(unet):
        torch.nn.init.normal_(unet.class_embedding.weight)

    return save_tiny(name="conditional", num_classes=10, edit=edit)


@pytest.fixture
def run(weights, command, tmp_path):
    """Return a function that runs the conditional model under some names and returns the results folder."""

    def call(*flags, names=("mine",), folder="out"):
        out = tmp_path / folder
        models = ",".join(f"{name}={weights}" for name in names)
        outcome = command(
            "--models", models, "--steps", "3", "--samples", SAMPLES, "--features", "none", "--quiet",
            "--out", out, *flags,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        return out

    return call


def labels_of(out, name="mine", seed=0):
    with np.load(out / "cells" / f"{name}-ddpm-3-seed{seed}" / "samples.npz") as file:
        return file["arr_1"]


def images_of(out, name="mine"):
    with np.load(out / "cells" / f"{name}-ddpm-3-seed0" / "samples.npz") as file:
        return file["arr_0"]


def test_labels_come_from_each_samples_own_stream(run):
    out = run("--no-probes", "--seeds", "0,1")
    wanted = Noise(0).integers(torch.arange(SAMPLES), Purpose.LABEL, 0, 10).numpy()
    assert (labels_of(out) == wanted).all()
    assert labels_of(out).dtype == np.int64
    assert (labels_of(out) != labels_of(out, seed=1)).any()
    # 24 labels of ten leave one class out with probability .9^24 = 8 % each; five or more left out is below 1e-3.
    assert len(set(wanted.tolist())) > 5


def test_models_and_batches_share_labels_and_images(run):
    out = run("--no-probes", names=("mine", "same"))
    assert (labels_of(out) == labels_of(out, "same")).all()
    assert (images_of(out) == images_of(out, "same")).all()
    small = run("--no-probes", "--batch-size", "5", folder="small")
    assert (labels_of(small) == labels_of(out)).all()
    # Kernels of another batch size differ by about 1e-6: a pixel in a thousand may move by one grey level.
    apart = np.abs(images_of(small).astype(int) - images_of(out).astype(int))
    assert apart.max() <= 1
    assert (apart > 0).mean() <= 1e-3


class Spy:
    """Stand in for the denoiser and keep the labels that it is given, in order."""

    def __init__(self):
        self.real, self.seen = whole_run.denoiser_of, []

    def __call__(self, network, description, device):
        denoiser = self.real(network, description, device)

        def call(x, level, cond=None):
            self.seen.append(cond)
            return denoiser(x, level, cond)

        return call


def test_real_images_bring_their_own_labels(run, monkeypatch):
    spy = Spy()
    monkeypatch.setattr(whole_run, "denoiser_of", spy)
    out = run("--measure", "steps")
    drawn = labels_of(out).tolist()
    forced = [cond.tolist() for cond in spy.seen if cond[: len(drawn)].tolist() != drawn]
    data = load("digits")
    half = len(forced[0]) // 2
    assert forced[0][:half] == data.part_labels("train")[:half].tolist()
    assert forced[0][half:] == data.part_labels("heldout")[: len(forced[0]) - half].tolist()
    assert all(cond is not None for cond in spy.seen)


def test_measuring_changes_no_image(run):
    plain, measured = run("--no-probes"), run(folder="measured")
    assert (images_of(plain) == images_of(measured)).all()


def test_chains_and_response_are_refused(weights, command, tmp_path):
    for measure in ("chains", "response"):
        outcome = command(
            "--models", f"mine={weights}", "--steps", "2", "--measure", measure, "--out", tmp_path / "out"
        )
        assert outcome.code == 2
        assert f"--measure {measure} needs models" in outcome.err


def test_an_unconditional_model_keeps_no_labels(command, tmp_path, tiny_weights):
    args = ("--models", f"mine={tiny_weights}", "--steps", "2", "--samples", "3", "--no-probes", "--quiet")
    assert command(*args, "--features", "none", "--out", tmp_path / "out").code == 0
    cell = tmp_path / "out" / "cells" / "mine-ddpm-2-seed0"
    with np.load(cell / "samples.npz") as file:
        assert "arr_1" not in file.files
    assert "classifier" not in json.loads((cell / "metrics.json").read_text())["cell"]


def test_a_classifier_guides_only_models_with_labels(command, tmp_path, tiny_weights):
    file = tmp_path / "classifier.pt"
    torch.save({}, file)
    args = ("--models", f"mine={tiny_weights}", "--steps", "2", "--out", tmp_path / "out")
    outcome = command(*args, "--classifier", file)
    assert outcome.code == 2
    assert "guides models of the presets imagenet64, imagenet128, which 'mine' is not" in outcome.err
    outcome = command(*args, "--classifier-scale", "2")
    assert outcome.code == 2
    assert "--classifier-scale has no effect without --classifier" in outcome.err
