"""Reference statistics, their cache and Inception's weights, through ``bench.measure`` and ``run_bench.py``."""

import random

import numpy as np
import pytest
import torch

from bench.measure.features.extractors import open_extractor
from bench.measure.quality.statistics_files import cached_statistics


@pytest.fixture
def refuses(room, sound, refused):
    """A function of a file of statistics that asserts that both commands refuse it, and returns what they say."""

    def both(path):
        out = ("--out", room / "scores.json", "--save-statistics", room / "copy.npz")
        measured = refused("measure", sound / "images.npz", "--reference", path, "--features", "digits", *out)
        run = ("--models", "adm", "--steps", "2", "--samples", "4", "--features", "digits", "--out", room / "out")
        return measured + refused("run_bench", *run, "--no-probes", "--quiet", "--reference", path)

    return both


@pytest.mark.parametrize("kept", [0, 1, 0.5, -1])
def test_truncated(given, refuses, kept):
    path = given("statistics.npz")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    assert refuses(path).startswith("error: ")


@pytest.mark.parametrize("content", ["random", "own.safetensors", "released.pt", "edm.pkl", "images.zip"])
def test_another_format(room, sound, refuses, content):
    path = room / "in" / "statistics.npz"
    path.write_bytes(random.Random(0).randbytes(3000) if content == "random" else (sound / content).read_bytes())
    assert refuses(path).startswith("error: ")


GOOD = {"mu": np.zeros(64), "sigma": np.eye(64)}


@pytest.mark.parametrize("name", ["mu", "sigma", "n", "extractor"])
def test_objects(room, hostile, refuses, name):
    np.savez(room / "in" / "statistics.npz", **(GOOD | {name: np.array(hostile, dtype=object)}))
    assert "object" in refuses(room / "in" / "statistics.npz")


def test_a_hostile_cache_costs_time_alone(room, sound, hostile, marker):
    """A cached file is ours, but a folder may be shared: nothing in it is run, and the numbers are computed anew."""
    extractor = open_extractor("digits")
    images = torch.randint(0, 256, (10_001, 1, 8, 8), dtype=torch.uint8)
    made = cached_statistics(extractor, images, "mine", "content")
    (cached,) = (room / "cache" / "statistics").iterdir()
    np.savez(cached, mu=np.array([hostile], dtype=object), sigma=np.eye(64))
    again = cached_statistics(extractor, images, "mine", "content")
    np.testing.assert_array_equal(again.moments.cov, made.moments.cov)
    assert not marker.exists()
