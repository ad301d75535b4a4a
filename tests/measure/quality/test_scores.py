import dataclasses

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from analysis.records.load import frechet_name
from bench.measure.features.extractors import Extractor, open_extractor
from bench.measure.quality import scores as scores_module
from bench.measure.quality.frechet import feature_moments, frechet_distance
from bench.measure.quality.scores import FeatureSet, collect, inception_score, neighbour_ratio, score
from bench.measure.quality.statistics import FeatureMoments, ReferenceStatistics

KINDS = ("frechet", "spatial", "kid", "precision", "recall", "inception_score")
METRICS = {name: f"{name}_x" for name in KINDS}
COMPARED = ("kid_x", "precision_x", "recall_x")
EXTRACTOR = Extractor("toy", torch.nn.Identity(), METRICS, "0")


def feature_set(count, seed, pooled=5, spatial=7, centre=0.0, spread=1.0):
    rng = np.random.default_rng(seed)
    parts = (rng.normal(centre, spread, size=(count, size)).astype(np.float32) for size in (pooled, spatial))
    return FeatureSet(*parts)


def moments(rows):
    mean, cov = feature_moments(rows) if len(rows) > 1 else (rows[0], np.zeros((rows.shape[1],) * 2))
    return FeatureMoments(mean, cov, len(rows))


def statistics(features):
    """Return what a reference of these features is."""
    pooled, spatial = moments(features.pooled), moments(features.spatial)
    return ReferenceStatistics("toy (3)", "toy-0", pooled, spatial, features.pooled, "toy (3)")


def scores(samples, reference, extractor=EXTRACTOR):
    known = reference if isinstance(reference, ReferenceStatistics) else statistics(reference)
    return {found.metric: found for found in score(samples, known, extractor, "toy (3)")}


def test_rows_say_metric_number_and_reference():
    found = scores(feature_set(60, 0), feature_set(120, 1))
    assert list(found) == ["frechet_x", "spatial_x", "kid_x", "precision_x", "recall_x"]
    assert all((row.n, row.reference, row.reason) == (60, "toy (3)", "") for row in found.values())
    assert all(row.value is not None for row in found.values())


def test_frechet_rows_are_the_distances_of_their_layers():
    a, b = feature_set(40, 0), feature_set(50, 1)
    found = scores(a, b)
    for metric, layer in (("frechet_x", "pooled"), ("spatial_x", "spatial")):
        first, second = feature_moments(getattr(a, layer)), feature_moments(getattr(b, layer))
        assert found[metric].value == frechet_distance(*first, *second)


@pytest.mark.parametrize(("n", "m"), [(60, 120), (160, 120), pytest.param(1100, 1050, marks=pytest.mark.ci)])
def test_kid_is_torch_fidelitys_with_the_largest_subset_allowed(n, m):
    a, b = feature_set(n, 0), feature_set(m, 1)
    first, second = torch.from_numpy(a.pooled), torch.from_numpy(b.pooled)
    theirs = kid_features_to_metric(first, second, kid_subset_size=min(1000, n, m), verbose=False)
    assert scores(a, b)["kid_x"].value == theirs[KEY_METRIC_KID_MEAN]


FEW = dict.fromkeys(COMPARED, "needs 50 samples, not ")


TOO_FEW = [
    (5, 150, {"frechet_x": "needs 6 images, not 5", "spatial_x": "needs 8 images, not 5"} | FEW),
    (49, 150, FEW),
    (50, 6, {"spatial_x": "needs 8 images, not 6"} | dict.fromkeys(COMPARED, "needs 100 reference images, not 6")),
    (50, 99, dict.fromkeys(COMPARED, "needs 100 reference images, not 99")),
    (50, 100, {}),
    (1, 150, {"frechet_x": "6", "spatial_x": "8"} | FEW),
]


@pytest.mark.parametrize(("n", "m", "empty"), TOO_FEW)
def test_too_few_images_leave_a_metric_empty_with_a_reason(n, m, empty):
    found = scores(feature_set(n, 0), feature_set(m, 1))
    assert {name for name, row in found.items() if row.value is None} == set(empty)
    for name, reason in empty.items():
        assert reason in found[name].reason
    assert all(not row.reason for row in found.values() if row.value is not None)


def test_kid_has_its_error_where_no_frechet_distance_can_be_given():
    wide = scores(feature_set(90, 0, pooled=100, spatial=100), feature_set(150, 1, pooled=100, spatial=100))
    assert wide["frechet_x"].value is None
    assert wide["kid_x_error"].value > 0
    assert "kid_x_error" not in scores(feature_set(90, 0), feature_set(150, 1))


def test_precision_and_recall_point_the_right_way():
    # Samples inside a narrow part of the reference: all of them lie on its manifold, but they cover little of it.
    reference, inside = feature_set(150, 0), feature_set(150, 1, spread=0.2)
    narrow = scores(inside, reference)
    assert narrow["precision_x"].value > 0.9
    assert narrow["recall_x"].value < 0.3
    wide = scores(reference, inside)
    assert wide["precision_x"].value < 0.3
    assert wide["recall_x"].value > 0.9


@pytest.mark.parametrize(("name", "suffix"), [("digits", "digits"), ("cifar10-16", "cifar10_16")])
def test_the_embedded_names(name, suffix):
    metrics, stems = open_extractor(name).metrics, ("fd", "sfd", "kid", "precision", "recall", "is")
    assert dict(metrics) == {kind: f"{stem}_{suffix}" for kind, stem in zip(KINDS, stems, strict=True)}
    assert frechet_name(metrics.values()) == f"fd_{suffix}"


def test_the_spatial_side_may_be_given_by_its_moments():
    a, b = feature_set(40, 0), feature_set(50, 1)
    only = dataclasses.replace(a, spatial=moments(a.spatial))
    assert scores(only, b) == scores(a, b)


def test_statistics_alone_leave_what_compares_images_empty():
    a, b = feature_set(40, 0), statistics(feature_set(50, 1))
    bare = dataclasses.replace(b, spatial=None, pooled=np.empty((0, 5), np.float32))
    found, whole = scores(a, bare), scores(a, b)
    empty = {"spatial_x", *COMPARED}
    assert {name for name, row in found.items() if row.value is None} == empty
    assert "mu_s" in found["spatial_x"].reason
    assert "only statistics" in found["kid_x"].reason
    assert found["frechet_x"] == whole["frechet_x"]


def test_a_reference_of_unknown_size_is_taken_at_its_word():
    b = statistics(feature_set(50, 1))
    unknown = dataclasses.replace(b, moments=dataclasses.replace(b.moments, n=None))
    assert scores(feature_set(40, 0), unknown) == scores(feature_set(40, 0), b)


def test_what_compares_images_says_with_which():
    b = dataclasses.replace(statistics(feature_set(50, 1)), pooled_name="some of them")
    noted = dataclasses.replace(EXTRACTOR, note="resized")
    names = {name: row.reference for name, row in scores(feature_set(40, 0), b, noted).items()}
    assert {names[f"{kind}_x"] for kind in ("kid", "precision", "recall")} == {"some of them; resized"}
    assert names["frechet_x"] == names["spatial_x"] == "toy (3); resized"


def test_the_inception_score_needs_classes_and_no_reference():
    head = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    extractor = dataclasses.replace(EXTRACTOR, logits=lambda pooled: pooled @ head)
    a = feature_set(40, 0)
    row = scores(a, feature_set(50, 1), extractor)["inception_score_x"]
    assert (row.reference, row.n, row.value) == ("none", 40, inception_score(a.pooled, extractor.logits))
    alone = scores(feature_set(1, 0), feature_set(50, 1), extractor)["inception_score_x"]
    assert (alone.value, alone.reason) == (None, "needs 2 images")


def test_collecting_keeps_pooled_features_and_spatial_moments():
    pictures, extractor = images(300, 0), open_extractor("digits")
    pooled, spatial = extractor.extract(pictures, batch=7)
    found = collect(extractor, pictures, "pictures", batch=7)
    np.testing.assert_array_equal(found.pooled, pooled)
    np.testing.assert_array_equal(found.spatial.mean, feature_moments(spatial)[0])
    assert found.spatial.n == 300


def images(count, seed):
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_copies_of_training_images_are_found_out():
    train, heldout = images(300, 0), images(300, 1)
    copied = neighbour_ratio(train[:50], train, heldout)
    assert (copied.metric, copied.value) == ("nn_ratio", 0)  # exactly: the distance of equal images is
    noisy = (train[:50].int() + 20).clamp(max=255).to(torch.uint8)
    assert neighbour_ratio(noisy, train, heldout).value < 0.5


def test_fresh_images_have_no_nearer_part_whatever_the_parts_sizes():
    # Nearest distances of 64-d uniform noise spread by about 5 % over images; 400 of them: 1 +- 5 * .05 * sqrt(2/400).
    # Without thinning, ten times as many training images would offer nearer neighbours: a ratio below 1.
    for count in (300, 3000):
        value = neighbour_ratio(images(400, 2), images(count, 0), images(300, 1)).value
        assert value == pytest.approx(1, abs=0.02)
    train, samples = images(3000, 0).flatten(1).float(), images(400, 2).flatten(1).float()
    every, tenth = torch.cdist(samples, train).amin(1).mean(), torch.cdist(samples, train[::10]).amin(1).mean()
    assert every / tenth < 0.96


@pytest.mark.parametrize("rows", [7, 1024])  # images at a time: in several blocks, in one
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_distances_to_the_nearest_image_are_exact(shape, rows, monkeypatch):
    monkeypatch.setattr(scores_module, "_PIXEL_ROWS", rows)
    g = torch.Generator().manual_seed(0)
    samples, train, heldout = (torch.randint(0, 256, (n, *shape), generator=g, dtype=torch.uint8) for n in (12, 20, 20))
    heldout[3] = samples[5]

    def nearest(theirs):
        apart = (samples[:, None].long() - theirs[None]).flatten(2).square().sum(2)  # whole numbers
        return apart.amin(1).double().sqrt().mean().item()

    wanted = nearest(train) / nearest(heldout)
    # A dozen float64 roots, sums and quotients, of relative error 2^-53 = 1.1e-16 each.
    assert neighbour_ratio(samples, train, heldout).value == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("count", [1, 20, 100])
def test_copies_of_heldout_images_leave_the_ratio_empty(count):
    train, heldout = images(100, 0), images(100, 1)
    found = neighbour_ratio(heldout[:count], train, heldout)
    assert found.value is None
    assert (found.reason, found.n) == ("every sample is a held-out image", count)
    other = torch.cat([heldout[:count], images(1, 2)])
    assert neighbour_ratio(other, train, heldout).value > 1


def test_without_a_heldout_part_the_ratio_is_empty():
    found = neighbour_ratio(images(5, 0), images(5, 1), images(0, 2))
    assert found.value is None
    assert "no held-out part" in found.reason


def unit_features(count, width, seed, centre=0.0, spread=1.0):
    return np.random.default_rng(seed).normal(centre, spread, (count, width)).astype(np.float32)


def same(pooled):
    return pooled


def by_definition(logits):
    """Return exp(E KL(p(y|x) || p(y))) as the paper writes it."""
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    return np.exp((p * np.log(p / p.mean(0))).sum(1).mean())


def test_the_inception_score_is_the_mean_over_splits_of_one_permutation():
    """Splits of 10, 10 and 5 count alike; some hundred float64 operations of relative error 1e-16."""
    rows, sizes = unit_features(25, 6, 0, spread=2), []

    def head(pooled):
        sizes.append(len(pooled))
        return pooled * 2

    drawn = rows[np.argsort(np.random.PCG64(0).random_raw(25))]
    wanted = np.mean([by_definition(2 * part) for part in (drawn[:10], drawn[10:20], drawn[20:])])
    assert inception_score(rows, head, split=10) == pytest.approx(wanted, rel=1e-12)
    assert sizes == [10, 10, 5]
    assert inception_score(rows, same) == pytest.approx(by_definition(rows), rel=1e-12)


def test_the_inception_score_is_torch_fidelitys_where_splits_agree():
    rows = unit_features(60, 6, 0, spread=2)
    drawn = torch.from_numpy(rows[np.argsort(np.random.PCG64(0).random_raw(60))])
    theirs = isc_features_to_metric(drawn, splits=3, shuffle=False)[KEY_METRIC_ISC_MEAN]
    assert inception_score(rows, same, split=20) == pytest.approx(theirs, rel=1e-12)


def test_samples_sorted_by_class_have_the_score_of_shuffled_ones():
    """In their order every split of 100 would hold one class, and the score would be 1."""
    rows = np.repeat(np.eye(10, dtype=np.float32) * 1000, 100, axis=0)
    assert inception_score(rows, same, split=100) == pytest.approx(10, rel=0.05)


def test_bounds_of_the_inception_score():
    sure = np.repeat(np.eye(6, dtype=np.float32) * 1000, 5, axis=0)  # probabilities of exactly 0 and 1
    assert inception_score(sure, same) == pytest.approx(6, rel=1e-12)
    assert inception_score(np.ones((10, 6), np.float32), same) == pytest.approx(1, rel=1e-12)
