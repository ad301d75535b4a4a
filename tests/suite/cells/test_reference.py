import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.data import Dataset, load, to_unit
from bench.diffusion.schedules import alpha_bars
from bench.measure.__main__ import main as measure
from bench.measure.features.extractors import open_extractor
from bench.measure.instruments import moments as pixel_moments
from bench.measure.quality.frechet import feature_moments, frechet_distance
from bench.measure.quality.references import ImageSet, Yardstick, open_statistics
from bench.measure.quality.statistics import FeatureMoments, ReferenceStatistics, summarise
from bench.measure.quality.statistics_files import write_statistics
from bench.suite.cells import reference as suite_reference
from bench.suite.cells.reference import Reference


def test_statistics_are_the_training_parts(small_data):
    reference = Reference(small_data, None)
    pixels = small_data.part("train").double() / 127.5 - 1
    np.testing.assert_allclose(reference.statistics.mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(reference.statistics.variance, pixels.var(0), atol=1e-6)
    assert reference.name == "small-train (42)"
    whole = replace(small_data, heldout=small_data.heldout & False)
    assert Reference(whole, None).name == "small-all (60)"


def test_the_spectrum_is_the_training_parts(small_data):
    spectrum = Reference(small_data, None).spectrum
    pixels = to_unit(small_data.part("train")).double()
    assert spectrum.shape == (4,)  # radii 0 to 3 on a 4x4 grid
    # White noise of 42 images x 15 frequencies: power 1 to about 1 / sqrt(42 * 15 / 2) = .06; five of them.
    assert spectrum[1:].mean() == pytest.approx(pixels.var().item(), rel=0.3)


@pytest.mark.parametrize(("shape", "held"), [((1, 4, 4), True), ((1, 5, 4), False)])
def test_the_gaussian_is_that_of_the_training_images(shape, held, monkeypatch):
    monkeypatch.setattr(suite_reference, "LARGEST", 16)
    images = torch.randint(0, 256, (5, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    heldout = torch.arange(5) == 4
    reference = Reference(Dataset("small", images, torch.zeros(5, dtype=torch.int64), heldout), None)
    law = reference.gaussian("cosine", 1000)
    assert (law is not None) == held
    if held:
        pixels = (images[:4].double() / 127.5 - 1).flatten(1)
        np.testing.assert_allclose(law.squares @ law.values, pixels.var(0), atol=1e-6)  # float32 pixels
        assert law.learned.tolist() == alpha_bars("cosine", 1000).tolist()
        assert reference.gaussian("edm", 1000).learned is None
        assert reference.gaussian("edm", 1000).vectors is law.vectors  # decomposed once


def test_the_key_names_extractor_weights_and_the_set_of_scores(small_data, monkeypatch):
    monkeypatch.setattr(suite_reference, "SCORES_VERSION", 7)
    assert Reference(small_data, None).key() == "none-scores7"
    extractor = open_extractor("digits")
    assert Reference(small_data, extractor).key() == f"digits-{extractor.weights_hash[:16]}-scores7"


def test_imported_statistics_are_part_of_the_key(small_data):
    first, again = (Reference(small_data, open_extractor("digits"), imported()).key() for _ in range(2))
    assert first == again != Reference(small_data, open_extractor("digits")).key()
    statistics = imported().statistics
    shifted = Yardstick(replace(statistics, moments=replace(statistics.moments, mean=np.ones(64))), None)
    assert Reference(small_data, open_extractor("digits"), shifted).key() != first
    pictured = replace(imported(), pictures=ImageSet.all_of(small_data))
    assert Reference(small_data, open_extractor("digits"), pictured).key() != first


def test_the_key_needs_no_features(small_data, monkeypatch):
    pictured = replace(imported(), pictures=ImageSet.all_of(small_data))
    monkeypatch.setattr(suite_reference, "with_features", None)
    extractor = replace(open_extractor("digits"), network=None)
    assert "statistics" in Reference(small_data, extractor, pictured).key()


def test_features_are_those_of_the_training_part():
    data, extractor = load("digits"), open_extractor("digits")
    features = Reference(data, extractor).features()
    pooled, spatial = extractor.extract(data.part("train"))
    np.testing.assert_array_equal(features.pooled, pooled)
    for moments, rows in ((features.moments, pooled), (features.spatial, spatial)):
        np.testing.assert_array_equal(moments.mean, feature_moments(rows)[0])
        np.testing.assert_array_equal(moments.cov, feature_moments(rows)[1])
    assert features.n == len(pooled) == pytest.approx(0.8 * len(data.images), abs=10)
    assert features.name == features.pooled_name == "digits-train (1442)"


def imported(pooled=0):
    rows = np.random.default_rng(0).normal(size=(pooled, 64)).astype(np.float32)
    moments = FeatureMoments(np.zeros(64), np.eye(64), None)
    return Yardstick(ReferenceStatistics("file.npz", "", moments, None, rows, "theirs"), None)


def test_imported_statistics_stand_in_for_the_training_parts():
    data, extractor = load("digits"), open_extractor("digits")
    reference = Reference(data, extractor, imported())
    features = reference.features()
    assert reference.name == features.name == "file.npz"
    np.testing.assert_array_equal(features.moments.cov, np.eye(64))
    # Images to compare one by one are the data's own still.
    np.testing.assert_array_equal(features.pooled, extractor.extract(data.part("train"))[0])
    assert features.pooled_name == "digits-train (1442)"
    kept = Reference(data, extractor, imported(pooled=20)).features()
    assert (len(kept.pooled), kept.pooled_name) == (20, "theirs")


@pytest.mark.parametrize("pooled", [0, 20])
def test_exact_samples_are_no_draws_of_imported_statistics(pooled):
    mean, spread, *_ = Reference(load("digits"), open_extractor("digits"), imported(pooled)).exact_scores(300)
    assert (mean.metric, mean.value, mean.n, mean.reference) == ("fd_digits_exact", None, 300, "file.npz")
    assert (spread.metric, spread.value, spread.reason) == ("fd_digits_exact_sd", None, mean.reason)
    assert mean.reason.startswith("the statistics are imported")


def test_images_of_a_file_of_statistics_are_what_is_compared_one_by_one(tmp_path):
    extractor, images = open_extractor("digits"), load("digits").part("heldout")
    write_statistics(summarise(extractor, images, "held out"), tmp_path / "file.npz", images)
    features = Reference(load("digits"), extractor, open_statistics(tmp_path / "file.npz", extractor)).features()
    np.testing.assert_array_equal(features.pooled, extractor.extract(images)[0])
    assert (features.pooled_name, features.name) == ("images of file.npz (355)", "file.npz (355)")


@pytest.mark.parametrize(("count", "is_comparable"), [(2, False), (100, True)])
def test_a_run_scores_as_the_measure_command_does(command, tmp_path, tiny_weights, capsys, count, is_comparable):
    extractor, images = open_extractor("digits"), load("digits").part("heldout")
    reference, out = tmp_path / "file.npz", tmp_path / "out"
    write_statistics(summarise(extractor, images, "held out"), reference, images[:count])
    asked = ("--models", f"mine={tiny_weights}", "--steps", "2", "--samples", "70", "--no-probes", "--quiet")
    assert command(*asked, "--reference", reference, "--out", out).code == 0
    cell = out / "cells" / "mine-ddpm-2-seed0"
    ours = {score["metric"]: score for score in json.loads((cell / "metrics.json").read_text())["scores"]}
    alone = tmp_path / "scores.json"
    features = ("--features", "digits", "--batch-size", "256", "--device", "cpu", "--quiet")
    assert measure([str(cell / "samples.npz"), "--reference", str(reference), "--out", str(alone), *features]) == 0
    theirs = {score["metric"]: score for score in json.loads(alone.read_text())["scores"]}
    assert theirs.items() <= ours.items()
    for name in ("kid_digits", "precision_digits", "recall_digits"):
        assert ours[name]["reference"] == f"images of file.npz ({count})"
        assert (ours[name]["value"] is not None) == is_comparable
        assert ours[name]["reason"] == ("" if is_comparable else "needs 100 reference images, not 2")
    assert (cell / "kernel.npy").exists() == is_comparable
    # The moments of the features, kept in single precision, give the distance.
    with np.load(cell / "influence.npz") as kept:
        upper = np.zeros((64, 64))
        upper[np.triu_indices(64)] = kept["covariance"]
        cov = upper + np.triu(upper, 1).T
        distance = frechet_distance(kept["mean"], cov, *feature_moments(extractor.extract(images)[0]))
    assert distance == pytest.approx(ours["fd_digits"]["value"], rel=1e-4)


def test_pixels_measured_in_blocks_are_those_measured_at_once(small_data, monkeypatch):
    whole = Reference(small_data, None)
    monkeypatch.setattr(pixel_moments, "_BLOCK", 41)  # of 42: a block of a single image too
    parts = Reference(small_data, None)
    # Float64 means of values of order 1.
    for name in ("spectrum", "haar"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)
    np.testing.assert_allclose(parts.statistics.mean, whole.statistics.mean, atol=1e-14)
    np.testing.assert_allclose(parts.statistics.variance, whole.statistics.variance, rtol=1e-12)
    np.testing.assert_array_equal(parts.centre, parts.statistics.mean)


def test_exact_samples_are_independent_draws_of_the_data():
    data, extractor = load("digits"), open_extractor("digits")
    reference = Reference(data, extractor)
    mean, spread, low, high = reference.exact_scores(300)
    assert low.value < mean.value - spread.value < mean.value + spread.value < high.value
    assert (mean.metric, mean.n, mean.reference) == ("fd_digits_exact", 300, "digits-train (1442)")
    assert spread.metric == "fd_digits_exact_sd"
    assert reference.exact_scores(300) == [mean, spread, low, high]
    # Their own law, from other draws: ten of each, so that the means differ by less than five times sqrt(2 / 10) sd.
    pooled, rng = reference.features().pooled, np.random.default_rng(1)
    whole = feature_moments(pooled)
    draws = [frechet_distance(*feature_moments(rng.choice(pooled, 300)), *whole) for _ in range(10)]
    assert abs(np.mean(draws) - mean.value) < 5 * np.sqrt(2 / 10) * spread.value
    # Distances of exact samples fall with their number, as 1 / N.
    assert reference.exact_scores(1200)[0].value < mean.value / 2
    few, none, *_ = reference.exact_scores(10)
    assert (few.value, none.value) == (None, None)
    assert "needs 65 images, not 10" in few.reason


def test_exact_samples_of_a_large_reference_are_drawn_from_what_is_kept_without_bias():
    """400 of 1442 features are kept. A draw of 100 of them without replacement is one of all, given the kept ones.

    Of twenty draws of 100 from all, without replacement, the mean is known to a standard error of sd / sqrt(20), that
    of the ten to sd / sqrt(10); the kept ones' own distance from all, about c / 400 of a sampling bias of c / 100, is
    common to the ten: a fourth of the mean bounds it from above.
    """
    data, extractor = load("digits"), open_extractor("digits")
    reference = Reference(data, extractor)
    whole = reference.features()
    reference._features = replace(whole, pooled=whole.pooled[::4][:360])
    mean, spread, *_ = reference.exact_scores(90)
    rng, moments = np.random.default_rng(2), feature_moments(whole.pooled)
    draws = [
        frechet_distance(*feature_moments(rng.choice(whole.pooled, 90, replace=False)), *moments) for _ in range(20)
    ]
    assert mean.value == pytest.approx(np.mean(draws), rel=0.25)
    assert spread.value > 0
    mean, spread, *_ = reference.exact_scores(91)
    assert (mean.value, spread.value) == (None, None)
    assert mean.reason == "91 draws need the features of all 1442 training images, of which 360 are kept"
