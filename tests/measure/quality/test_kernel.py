import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from bench.measure.quality import scores as kernel
from bench.measure.quality.scores import kernel_terms

ROUNDING = 1e-12  # a few hundred float64 operations on values of size 1 to 100


def k(x, y):
    return (float(np.dot(x.astype(np.float64), y.astype(np.float64))) / len(x) + 1) ** 3


def features(count, size, seed):
    return np.random.default_rng(seed).normal(0.3, 1, size=(count, size)).astype(np.float32)


def by_loops(a, r):
    within = [np.mean([k(a[i], a[j]) for j in range(len(a)) if j != i]) for i in range(len(a))]
    cross = [np.mean([k(row, other) for other in r]) for row in a]
    return np.stack([within, cross], axis=1)


@pytest.mark.parametrize("block", [1024, 3])  # 3 does not divide 8: the last block is short
def test_equals_double_loops(monkeypatch, block):
    monkeypatch.setattr(kernel, "_BLOCK", block)
    a, r = features(8, 5, 0), features(6, 5, 1)
    np.testing.assert_allclose(kernel_terms(a, r), by_loops(a, r), rtol=ROUNDING)


def test_its_mean_is_torch_fidelitys_distance_up_to_the_reference():
    count, size = 40, 6
    a, r = features(count, size, 2), features(count, size, 3)
    within, cross = kernel_terms(a, r).mean(0)
    own = np.mean([k(r[i], r[j]) for i in range(count) for j in range(count) if i != j])
    # One subset that holds everything, so that nothing is left to chance.
    theirs = kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(r), kid_subset_size=count, kid_subsets=1, verbose=False
    )[KEY_METRIC_KID_MEAN]
    # They sum in float32, whose eps is 1.2e-7, over terms of the size of the kernel itself.
    assert within + own - 2 * cross == pytest.approx(theirs, abs=1e-5 * within)
