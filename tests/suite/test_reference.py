from dataclasses import replace

import numpy as np
import pytest

from bench.data import load
from bench.measure.features import open_extractor
from bench.suite.reference import Reference


def test_statistics_are_the_training_parts(small_data):
    reference = Reference(small_data, None)
    pixels = small_data.part("train").double() / 127.5 - 1
    np.testing.assert_allclose(reference.statistics.mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(reference.statistics.variance, pixels.var(0), atol=1e-6)
    assert reference.name == "small-train (42)"


def test_without_a_heldout_part_the_name_says_all(small_data):
    whole = replace(small_data, heldout=small_data.heldout & False)
    assert Reference(whole, None).name == "small-all (60)"


def test_the_gaussian_has_the_datas_mean_and_covariance(small_data):
    oracle = Reference(small_data, None).gaussian("cosine", 1000)
    pixels = (small_data.part("train").double() / 127.5 - 1).flatten(1).numpy()
    np.testing.assert_allclose(oracle.mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(oracle.cov, np.cov(pixels, rowvar=False), atol=1e-6)
    assert len(oracle.learned) == 1000


def test_large_images_have_no_gaussian(small_data):
    wide = replace(small_data, images=small_data.images.repeat(1, 3, 5, 5))
    assert Reference(wide, None).gaussian("cosine", 1000) is None


def test_the_key_names_extractor_and_weights(small_data):
    assert Reference(small_data, None).key() == "none"
    extractor = open_extractor("digits")
    assert Reference(small_data, extractor).key() == f"digits-{extractor.weights_hash[:16]}"


def test_features_are_those_of_the_training_part():
    data, extractor = load("digits"), open_extractor("digits")
    features = Reference(data, extractor).features()
    pooled, spatial = extractor.extract(data.part("train"))
    np.testing.assert_array_equal(features.pooled, pooled)
    np.testing.assert_array_equal(features.spatial, spatial)
    assert len(pooled) == pytest.approx(0.8 * len(data.images), abs=10)
