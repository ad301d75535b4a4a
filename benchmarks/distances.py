"""The Frechet distance from cached features against torch-fidelity's and clean-fid's: time, and error where N < d."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from bench.measure.quality.frechet import feature_moments, frechet_distance
from benchmarks.comparison import Comparison, Setting, compare, ratios

Features = NDArray[np.float32]
Distance = Callable[[Features, Features], float]


def features(count: int, length: int, seed: int) -> Features:
    """Return features like a network's: not negative, not normal, correlated, of decaying spectrum; [count, length]."""
    mix = np.random.default_rng(0).standard_normal((length, length)) / np.sqrt(np.arange(1, length + 1))[:, None]
    noise = np.random.default_rng(seed).standard_normal((count, length))
    return np.abs(noise @ mix + 0.1 * seed).astype(np.float32)


def ours(a: Features, b: Features) -> float:
    """Return our distance of features [N, d]."""
    return frechet_distance(*feature_moments(a), *feature_moments(b))


def _torch_fidelity(a: Features, b: Features) -> float:
    from torch_fidelity import metric_fid

    statistics = [metric_fid.fid_features_to_statistics(torch.from_numpy(part)) for part in (a, b)]
    return float(metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID])


def _clean_fid(a: Features, b: Features) -> float:
    from cleanfid import fid

    return float(fid.fid_from_feats(a, b))


def peers() -> Mapping[str, Distance]:
    """Return the other implementations that work here: SciPy 1.18 has no ``disp`` any more, which clean-fid gives."""
    works = "disp" in inspect.signature(scipy.linalg.sqrtm).parameters
    return {"torch-fidelity": _torch_fidelity} | ({"clean-fid": _clean_fid} if works else {})


def exact_distance(a: Features, b: Features) -> float:
    """Return the distance by way of the images: the trace term is the nuclear norm of X Y^T, an N x N matrix.

    Rounding is all its error: no covariance is formed, so nothing is a difference or a root of what rounding left.
    """
    x, y = (part.astype(np.float64) for part in (a, b))
    xc, yc = ((part - part.mean(0)) / np.sqrt(len(part) - 1) for part in (x, y))
    trace = np.linalg.svd(xc @ yc.T, compute_uv=False).sum()
    shift = np.square(x.mean(0) - y.mean(0)).sum()
    return float(shift + np.square(xc).sum() + np.square(yc).sum() - 2 * trace)


def frechet(setting: Setting) -> Iterator[Comparison]:
    """Compare the time from features to distance, then the error where there are fewer images than features."""
    others = peers()
    if "clean-fid" not in others:
        print("clean-fid does not work with this SciPy (1.18 or later), so it is left out", file=sys.stderr)
    for count in setting.counts:
        a, b = (features(count, setting.features, seed) for seed in (1, 2))
        name = f"Frechet distance, {count} x {setting.features}"
        for peer, other in others.items():
            pairs, goal = (setting.pairs, 1.2) if peer == "torch-fidelity" else (1, None)  # a matrix root takes long
            yield compare(
                "frechet", name, peer, partial(ours, a, b), partial(other, a, b), setting,
                pairs=pairs, warm=False, goal=goal,
            )  # fmt: skip
        if count < setting.features:
            yield from _errors(name, a, b, others, setting)


def _errors(
    name: str, a: Features, b: Features, others: Mapping[str, Distance], setting: Setting
) -> Iterator[Comparison]:
    exact = exact_distance(a, b)
    rounding = float(np.finfo(np.float64).eps)  # an error below it would say nothing

    def error(distance: Distance) -> float:
        return max(abs(distance(a, b) / exact - 1), rounding)

    mine = error(ours)
    for peer, other in others.items():
        pairs = [(mine, error(other))]
        yield ratios("frechet", name, peer, pairs, setting, unit="relative error", goal=1.0)
