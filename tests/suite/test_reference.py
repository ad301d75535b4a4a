from dataclasses import replace

import numpy as np
import pytest

from bench.data import load
from bench.diffusion.schedules import alpha_bars
from bench.measure.features import open_extractor
from bench.measure.recursion import LinearGaussian
from bench.measure.steps import gaussian_rows
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


def test_the_exact_rows_are_those_of_the_datas_gaussian(small_data, make_cell):
    cell = make_cell()
    look = cell.instruments()
    pixels = (small_data.part("train").double() / 127.5 - 1).flatten(1).numpy()
    oracle = LinearGaussian(pixels.mean(0), np.cov(pixels, rowvar=False), alpha_bars("cosine", 1000))
    variance, eta, paired = cell.config.variance, cell.config.eta, look.paired > 0
    wanted = list(gaussian_rows(oracle, cell.levels(), look.indices, variance, eta, paired))
    found = Reference(small_data, None).exact_rows(cell, look)
    assert [(row.arm, row.i, row.quantity) for row in found] == [(row.arm, row.i, row.quantity) for row in wanted]
    # float32 pixels against float64 ones: 1e-7 of values of order 1, over a few steps.
    np.testing.assert_allclose([row.value for row in found], [row.value for row in wanted], atol=1e-5)


def test_cells_that_share_levels_share_the_answer(small_data, make_cell):
    reference = Reference(small_data, None)
    first, second = make_cell(), make_cell(seed=9)
    assert reference.exact_rows(first, first.instruments()) is reference.exact_rows(second, second.instruments())


def test_large_images_have_no_exact_rows(small_data, make_cell):
    wide = replace(small_data, images=small_data.images.repeat(1, 3, 5, 5))
    assert Reference(wide, None).exact_rows(make_cell(), make_cell().instruments()) == []


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
