import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

from bench.measure.quality.scores import SPLIT, inception_score


def features(count, width=6, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (count, width)).astype(np.float32)


def same(pooled):
    return pooled


def by_definition(logits):
    """Return exp(E KL(p(y|x) || p(y))) as the paper writes it."""
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    return np.exp((p * np.log(p / p.mean(0))).sum(1).mean())


def test_one_split_is_the_definition():
    # Both in float64: some hundred operations of relative error 1e-16.
    assert inception_score(features(50), same) == pytest.approx(by_definition(features(50)), rel=1e-12)


def test_splits_follow_the_order_and_the_last_is_shorter():
    rows = features(25)
    wanted = np.mean([by_definition(rows[:10]), by_definition(rows[10:20]), by_definition(rows[20:])])
    assert inception_score(rows, same, split=10) == pytest.approx(wanted, rel=1e-12)
    assert SPLIT == 5000


def test_it_is_torch_fidelitys_where_splits_agree():
    rows = features(60)
    theirs = isc_features_to_metric(torch.from_numpy(rows), splits=3, shuffle=False)[KEY_METRIC_ISC_MEAN]
    assert inception_score(rows, same, split=20) == pytest.approx(theirs, rel=1e-12)


def test_bounds():
    classes = 6
    sure = np.repeat(np.eye(classes, dtype=np.float32) * 1000, 5, axis=0)  # probabilities of exactly 0 and 1
    assert inception_score(sure, same) == pytest.approx(classes, rel=1e-12)
    assert inception_score(np.ones((10, classes), np.float32), same) == pytest.approx(1, rel=1e-12)


def test_the_head_is_applied_split_by_split():
    seen = []

    def head(pooled):
        seen.append(len(pooled))
        return pooled * 2

    assert inception_score(features(25), head, split=10) > 1
    assert seen == [10, 10, 5]
