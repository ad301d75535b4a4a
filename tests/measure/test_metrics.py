import dataclasses

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from bench.measure.extrapolation import frechet_infinity
from bench.measure.features import Extractor, open_extractor
from bench.measure.frechet import feature_moments, frechet_distance
from bench.measure.metrics import FeatureSet, neighbour_ratio, score

METRICS = {name: f"{name}_x" for name in ("frechet", "spatial", "kid", "precision", "recall")}
SMALL = {"frechet_x_inf": "needs 20 images"}  # four a feature
EXTRACTOR = Extractor("toy", torch.nn.Identity(), METRICS, "0")


def feature_set(count, seed, pooled=5, spatial=7, centre=0.0, spread=1.0):
    rng = np.random.default_rng(seed)
    parts = (rng.normal(centre, spread, size=(count, size)).astype(np.float32) for size in (pooled, spatial))
    return FeatureSet(*parts)


def scores(samples, reference):
    return {found.metric: found for found in score(samples, reference, EXTRACTOR, "toy (3)")}


def test_rows_say_metric_number_and_reference():
    found = scores(feature_set(40, 0), feature_set(50, 1))
    assert list(found) == ["frechet_x", "frechet_x_inf", "spatial_x", "kid_x", "precision_x", "recall_x"]
    assert all((row.n, row.reference, row.reason) == (40, "toy (3)", "") for row in found.values())
    assert all(row.value is not None for row in found.values())


def test_frechet_rows_are_the_distances_of_their_layers():
    a, b = feature_set(40, 0), feature_set(50, 1)
    found = scores(a, b)
    for metric, layer in (("frechet_x", "pooled"), ("spatial_x", "spatial")):
        first, second = feature_moments(getattr(a, layer)), feature_moments(getattr(b, layer))
        assert found[metric].value == frechet_distance(*first, *second)


def test_the_extrapolated_row_is_of_the_pooled_features_and_repeats():
    a, b = feature_set(40, 0), feature_set(50, 1)
    wanted = frechet_infinity(a.pooled, *feature_moments(b.pooled))
    assert [scores(a, b)["frechet_x_inf"].value for _ in range(2)] == [wanted, wanted]


@pytest.mark.parametrize(("n", "m"), [(40, 60), (60, 40), (1100, 1050)])
def test_kid_is_torch_fidelitys_with_the_largest_subset_allowed(n, m):
    a, b = feature_set(n, 0), feature_set(m, 1)
    first, second = torch.from_numpy(a.pooled), torch.from_numpy(b.pooled)
    theirs = kid_features_to_metric(first, second, kid_subset_size=min(1000, n, m), verbose=False)
    assert scores(a, b)["kid_x"].value == theirs[KEY_METRIC_KID_MEAN]


@pytest.mark.parametrize(
    ("n", "m", "empty"),
    [
        (5, 50, {"frechet_x": "needs 6 images, not 5", "spatial_x": "needs 8 images, not 5"} | SMALL),
        (19, 50, {"frechet_x_inf": "extrapolation of 5 features needs 20 images, not 19"}),
        (50, 6, {"spatial_x": "needs 8 images, not 6"}),
        (50, 5, {"frechet_x": "6", "frechet_x_inf": "needs 6 images, not 5", "spatial_x": "8"}),
        (3, 50, {"frechet_x": "6", "spatial_x": "8", "precision_x": "needs 4", "recall_x": "needs 4"} | SMALL),
        (1, 50, {"frechet_x": "6", "spatial_x": "8", "kid_x": "2 images", "precision_x": "4", "recall_x": "4"} | SMALL),
    ],
)
def test_too_few_images_leave_a_metric_empty_with_a_reason(n, m, empty):
    found = scores(feature_set(n, 0), feature_set(m, 1))
    assert {name for name, row in found.items() if row.value is None} == set(empty)
    for name, reason in empty.items():
        assert reason in found[name].reason
    assert all(not row.reason for row in found.values() if row.value is not None)


def test_precision_and_recall_point_the_right_way():
    # Samples inside a narrow part of the reference: all of them lie on its manifold, but they cover little of it.
    reference, inside = feature_set(400, 0), feature_set(400, 1, spread=0.2)
    narrow = scores(inside, reference)
    assert narrow["precision_x"].value > 0.9
    assert narrow["recall_x"].value < 0.3
    wide = scores(reference, inside)
    assert wide["precision_x"].value < 0.3
    assert wide["recall_x"].value > 0.9


def test_identical_sets_score_perfectly():
    a = feature_set(60, 0)
    found = scores(a, dataclasses.replace(a))
    assert found["precision_x"].value == found["recall_x"].value == 1
    assert found["frechet_x"].value == pytest.approx(0, abs=1e-10)


def test_the_digits_names():
    assert dict(open_extractor("digits").metrics) == {
        "frechet": "fd_digits",
        "spatial": "sfd_digits",
        "kid": "kid_digits",
        "precision": "precision_digits",
        "recall": "recall_digits",
    }


def images(count, seed):
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_copies_of_training_images_are_found_out():
    train, heldout = images(300, 0), images(300, 1)
    copied = neighbour_ratio(train[:50], train, heldout)
    assert copied.metric == "nn_ratio"
    assert copied.value == pytest.approx(0, abs=1e-3)  # float32 cdist of identical rows
    noisy = (train[:50].int() + 20).clamp(max=255).to(torch.uint8)
    assert neighbour_ratio(noisy, train, heldout).value < 0.5


def test_fresh_images_have_no_nearer_part():
    # Nearest distances of 64-d uniform noise spread by about 5 % over images; 400 of them: 1 +- 5 * .05 * sqrt(2/400).
    value = neighbour_ratio(images(400, 2), images(300, 0), images(300, 1)).value
    assert value == pytest.approx(1, abs=0.02)


def test_parts_of_unequal_size_offer_equally_many_neighbours():
    # Without thinning, ten times as many training images would offer nearer neighbours: a ratio below 1.
    value = neighbour_ratio(images(400, 2), images(3000, 0), images(300, 1)).value
    assert value == pytest.approx(1, abs=0.02)
    train, samples = images(3000, 0).flatten(1).float(), images(400, 2).flatten(1).float()
    every, tenth = torch.cdist(samples, train).amin(1).mean(), torch.cdist(samples, train[::10]).amin(1).mean()
    assert every / tenth < 0.96


@pytest.mark.parametrize("count", [1, 20, 100])  # above 25 rows cdist takes another, less exact way
def test_copies_of_heldout_images_leave_the_ratio_empty(count):
    train, heldout = images(100, 0), images(100, 1)
    found = neighbour_ratio(heldout[:count], train, heldout)
    assert found.value is None
    assert found.reason == "every sample is a held-out image"
    assert found.n == count
    other = torch.cat([heldout[:count], images(1, 2)])
    assert neighbour_ratio(other, train, heldout).value > 1


def test_without_a_heldout_part_the_ratio_is_empty():
    found = neighbour_ratio(images(5, 0), images(5, 1), images(0, 2))
    assert found.value is None
    assert "no held-out part" in found.reason
