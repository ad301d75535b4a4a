"""What is kept of CIFAR-10, and that it serves as the images would."""

import shutil

import numpy as np
import pytest
import torch
from pictures import class_folders
from PIL import Image
from refusals import outcome_of

from bench.data import Dataset, load
from bench.measure.__main__ import main as measure
from bench.measure.features.extractors import open_extractor
from bench.measure.instruments.moments import PixelMoments
from bench.measure.quality import embedded_statistics
from bench.measure.quality.embedded_statistics import (
    WITH_STATISTICS,
    embedded_statistics_of,
    main,
    unseen,
    write_embedded,
)
from bench.measure.quality.statistics import summarise


@pytest.fixture(scope="module")
def data():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (130, 3, 32, 32), generator=g, dtype=torch.uint8)
    return Dataset("small", images, torch.zeros(130, dtype=torch.int64), torch.arange(130) >= 120)


@pytest.fixture
def kept(data, tmp_path, monkeypatch):
    """Keep the small dataset in the place of CIFAR-10."""
    monkeypatch.setattr(embedded_statistics, "_FOLDER", tmp_path)
    monkeypatch.setattr(embedded_statistics, "_covariance", lambda data: {})  # half a minute at this size
    write_embedded(data, open_extractor("cifar10"), tmp_path / "cifar10-statistics.npz")
    return tmp_path / "cifar10-statistics.npz"


def test_what_is_kept_is_what_the_images_say(data, kept):
    extractor = open_extractor("cifar10")
    found = embedded_statistics_of(extractor, data.content_hash(), 120)
    made = summarise(extractor, data.part("train"), "any")
    for one, other in ((found.moments, made.moments), (found.spatial, made.spatial)):
        np.testing.assert_array_equal(one.mean, other.mean)
        np.testing.assert_array_equal(one.cov, other.cov)
    # Half precision has 11 bits: a relative error of 2^-11 at most.
    np.testing.assert_allclose(found.pooled, made.pooled, rtol=2**-11, atol=1e-7)
    assert (found.name, found.pooled_name, found.n) == ("small-train (120)", "small-train (120)", 120)


def test_pixels_are_kept_too(data, kept):
    pixels, made = unseen("cifar10").embedded.pixels, PixelMoments.of_training(data)
    assert pixels.n == made.n == 120
    for name in ("mean", "variance", "spectrum", "haar"):
        assert torch.equal(getattr(pixels, name), getattr(made, name))


def test_other_images_or_features_have_none(data, kept):
    extractor = open_extractor("cifar10")
    assert embedded_statistics_of(extractor, "another", 120) is None
    assert embedded_statistics_of(extractor, data.content_hash(), 119) is None
    assert embedded_statistics_of(open_extractor("digits"), data.content_hash(), 120) is None


def test_a_dataset_without_its_images(data, kept):
    without = unseen("cifar10")
    assert (without.count("train"), without.count("heldout"), without.shape) == (0, 0, (3, 32, 32))
    assert without.training_name == data.training_name == "small-train (120)"
    assert without.content_hash() != data.content_hash()
    assert without.embedded.heldout == 10


def test_the_covariance_of_small_images_is_kept(tmp_path, monkeypatch):
    """Rounded to float32: a relative error of 2^-24 an entry."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 16, 16), dtype=np.uint8)
    small = Dataset("small", torch.from_numpy(pixels), torch.zeros(60, dtype=torch.int64), torch.arange(60) >= 50)
    monkeypatch.setattr(embedded_statistics, "_FOLDER", tmp_path)
    write_embedded(small, open_extractor("cifar10-16"), tmp_path / "cifar10-16-statistics.npz")
    law = unseen("cifar10-16").embedded.gaussian
    expected = np.linalg.eigvalsh(np.cov(pixels[:50].reshape(50, -1) / 127.5 - 1, rowvar=False))
    np.testing.assert_allclose(np.sort(law.values), expected, atol=1e-5)  # entries of order 1, 768 x 6e-8 off together


def test_the_covariance_that_ships_has_the_trace_of_the_variances():
    kept = unseen("cifar10-16").embedded
    assert len(kept.gaussian.values) == 768
    assert kept.gaussian.values.min() > 0
    assert kept.gaussian.values.sum() == pytest.approx(kept.pixels.variance.sum().item(), rel=1e-6)


@pytest.mark.parametrize("name", WITH_STATISTICS)
def test_what_ships_is_cifar10_re_encoded(name):
    kept, extractor = unseen(name).embedded, open_extractor(name)
    assert (kept.name, kept.pixels.n, kept.heldout) == (f"{name}-jpeg", 50_000, 10_000)
    found = embedded_statistics_of(extractor, kept.content, 50_000)
    assert (found.n, found.pooled.shape, found.extractor) == (50_000, (10_000, 128), extractor.key)
    # The mean of CIFAR-10's pixels is known, .4914 .4822 .4465 of [0, 1]; JPEG moves it by less than a grey level.
    colours = (kept.pixels.mean.mean(dim=(1, 2)) + 1) / 2
    assert colours.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1 / 255)
    # Features that are kept are evenly spaced among all: their mean is the whole's to a few standard errors.
    errors = found.moments.cov.diagonal() ** 0.5 / 100
    assert (abs(found.pooled.mean(0) - found.moments.mean) < 5 * errors).all()


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(embedded_statistics, "_covariance", lambda data: {})  # half a minute at this size
    pixels = np.random.default_rng(0).integers(0, 256, (2, 10, 32, 32, 3), dtype=np.uint8)
    for side, images in zip(("train", "test"), pixels, strict=True):
        class_folders(tmp_path / "cifar10" / side, images)
    out = tmp_path / "out.npz"
    assert main(["--data-dir", str(tmp_path), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with np.load(out) as file:
        assert str(file["content"]) == load("cifar10", tmp_path).content_hash()
        assert (int(file["n"]), int(file["heldout"]), file["pooled"].shape) == (10, 10, (10, 128))
    shutil.rmtree(tmp_path / "cifar10" / "train")
    (tmp_path / "cifar10" / "train" / "truck").mkdir(parents=True)
    shutil.copy(next((tmp_path / "cifar10" / "test").glob("*/0.png")), tmp_path / "cifar10" / "train" / "truck")
    few = outcome_of(capsys, main, "--data-dir", tmp_path, "--out", out)
    assert few.refused("fewer than 2 training images of cifar10")
    assert outcome_of(capsys, main, "--data-dir", tmp_path / "nowhere", "--out", out).refused()


def test_samples_of_any_tool_are_scored_against_what_is_kept(data, kept, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("samples.npz", arr_0=data.images.movedim(1, 3).numpy())
    assert measure(["samples.npz", "--reference", "cifar10", "--quiet"]) == 0
    table = capsys.readouterr().out
    assert "small-train (120)" in table
    assert "precision_cifar10" in table
    np.savez("small.npz", arr_0=data.images[:, :, :8, :8].movedim(1, 3).numpy())
    assert measure(["small.npz", "--reference", "cifar10", "--features", "digits"]) == 2
    assert "keeps statistics of --features cifar10, not of digits" in capsys.readouterr().err


def test_a_file_of_that_name_is_meant_where_there_is_one(data, kept, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("a.png")
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "cifar10" / "a.png")
    np.savez("samples.npz", arr_0=data.images[:9].movedim(1, 3).numpy())
    assert measure(["samples.npz", "--reference", "cifar10", "--features", "cifar10", "--quiet"]) == 0
    assert "cifar10 (1)" in capsys.readouterr().out
