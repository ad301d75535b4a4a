"""A run's images and reference from the command line: resizing, published statistics, known names."""

import argparse
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.regenerate import regenerate
from bench.suite.config.request import _default_features


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirty grey pictures of 12 x 10 pixels in three folders."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k in range(30):
        folder = root / f"class{k % 3}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 12), dtype=np.uint8)).save(folder / f"{k:03}.png")
    return root


@pytest.fixture
def run(tmp_path, photos, tiny_weights, run_tiny):
    """Return a function that runs the tiny model on the pictures and returns outcome and results folder."""
    config = tmp_path / "bench.toml"

    def call(*flags, entry=""):
        config.write_text(f'[datasets.photos]\npath = "{photos}"\n{entry}')
        given = ("--config", config, "--dataset", "photos", "--steps", "2", "--samples", "4", *flags)
        return run_tiny(tiny_weights, *given)

    return call


def configuration(out):
    return json.loads((out / "run.json").read_text())["configuration"]


def test_resizing_is_recorded(run):
    outcome, out = run("--resize", "8", "--crop", "center", "--resize-filter", "box")
    assert outcome.code == 0, outcome.err
    assert configuration(out)["preprocessing"] == "crop=center resize=8 filter=box"
    with np.load(out / "cells" / "mine-ddpm-2-seed0" / "samples.npz") as file:
        assert file["arr_0"].shape == (4, 8, 8, 3)


def test_the_config_file_may_say_it_and_flags_replace_it(run):
    entry = 'resize = 4\ncrop = "center"\nresize_filter = "lanczos"\n'
    outcome, out = run("--resize", "8", entry=entry)
    assert outcome.code == 0, outcome.err
    assert configuration(out)["preprocessing"] == "crop=center resize=8 filter=lanczos"
    assert "preprocessing crop=center resize=8 filter=lanczos" in run("--resize", "8", "--dry-run", entry=entry)[0].out


IMPOSSIBLE = [
    ((), "halves images"), (("--resize", "0"), "resize"), (("--resize", "-8"), "resize"),
    (("--resize-filter", "box"), "resize"), (("--crop", "guided"), "resize"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), IMPOSSIBLE)
def test_preprocessing_that_cannot_be(run, save_tiny, flags, words):
    deep = save_tiny(name="deep", channel_mult=(1, 1, 1))  # halves images twice; 10 rows cannot be
    outcome, out = run("--models", f"deep={deep}", *flags)
    assert outcome.refused(words)
    assert not out.exists()


def test_the_embedded_digits_are_not_resized(command, tmp_path):
    args = ("--models", "adm", "--steps", "2", "--features", "none", "--no-probes", "--out", tmp_path / "out")
    for flags in (("--resize", "16"), ("--crop", "center"), ("--resize", "8", "--resize-filter", "box")):
        assert command(*args, *flags).refused("error: the embedded digits are 8x8 as they are; leave out --")
    assert not (tmp_path / "out").exists()


def test_a_known_dataset_says_where_it_was_looked_for(command, tmp_path):
    args = ("--models", "adm", "--dataset", "cifar10", "--data-dir", tmp_path, "--out", tmp_path / "out")
    assert command(*args).refused("cifar-10-python.tar.gz")


@pytest.mark.usefixtures("unrendered")
def test_published_statistics_replace_the_datas_without_sampling(command, tmp_path, tiny_weights, half_statistics):
    args = ("--models", f"mine={tiny_weights}", "--steps", "2", "--samples", "70", "--no-probes", "--quiet")
    out, made = tmp_path / "out", []
    for flags in ((), ("--reference", half_statistics)):
        outcome = command(*args, *flags, "--out", out)
        assert outcome.code == 0, outcome.err
        cell = out / "cells" / "mine-ddpm-2-seed0"
        found = json.loads((cell / "metrics.json").read_text())
        values = {score["metric"]: (score["value"], score["reference"]) for score in found["scores"]}
        made.append((values, (cell / "samples.npz").stat().st_mtime_ns))
    (own, sampled), (given, sampled_then) = made
    assert sampled == sampled_then
    assert own["fd_digits"][0] != given["fd_digits"][0]
    assert "half" in given["fd_digits"][1]
    assert own["fd_digits"][1] == "digits-train (1442)"
    assert own["precision_digits"] == given["precision_digits"]  # the file has no images, so the data's are compared
    assert regenerate(out).problems == []
    table = pd.read_csv(out / "tables" / "metrics.csv")
    assert "half" in table[table["metric"] == "fd_digits"]["reference"].item()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an npz"])
def test_a_reference_that_cannot_be_read(command, tmp_path, tiny_weights, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    args = ("--models", f"mine={tiny_weights}", "--steps", "2", "--samples", "3", "--out", tmp_path / "out")
    assert command(*args, "--reference", path).refused("bad.npz")
    unused = command(*args, "--features", "none", "--reference", path)
    assert unused.refused("--reference has no effect with --features none")
    assert not (tmp_path / "out").exists()


FEATURES = [
    ("digits", None, "digits"), ("digits-affine", None, "digits"), ("cifar10", None, "cifar10"),
    ("cifar10", "data", "inception"), ("cifar10-16", None, "cifar10-16"), ("cifar10-16", "data", "cifar10-16"),
    ("lsun-tower64", "data", "inception"), ("mine", None, "inception"),
]  # fmt: skip


@pytest.mark.parametrize(("dataset", "data_dir", "features"), FEATURES)
def test_images_of_8_and_16_pixels_have_features_of_their_own(dataset, data_dir, features):
    args = argparse.Namespace(dataset=dataset, data_dir=data_dir, reference=None)
    assert _default_features(args, {"mine"}) == features
    assert _default_features(args, {dataset}) == "inception"


@pytest.mark.ci
def test_cifar10_at_16_pixels_runs_without_its_images(command, save_tiny, tmp_path):
    network, out = save_tiny(name="colour", image_size=16, in_channels=3, out_channels=6), tmp_path / "out"
    grid = ("--models", f"tiny={network}", "--dataset", "cifar10-16", "--steps", "2", "--samples", "130", "--quiet")
    outcome = command(*grid, "--out", out)
    assert outcome.code == 0, outcome.err
    (path,) = out.glob("cells/*/metrics.json")
    scores = {score["metric"]: score for score in json.loads(path.read_text())["scores"]}
    assert all(scores[name]["value"] is not None for name in ("fd_cifar10_16", "kid_cifar10_16", "fd_cifar10_16_exact"))
    assert scores["fd_cifar10_16"]["reference"] == "cifar10-16-jpeg-train (50000)"
    assert scores["nn_ratio"]["reason"] == "the training images are not at hand"
