import io
import pickle
import zipfile
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import refusals
import torch
from hostile import Call
from pictures import zipped

from bench.data import load
from bench.measure.features.extractors import Extractor, open_extractor
from bench.measure.quality import statistics
from bench.measure.quality import statistics_files as statistics_cache
from bench.measure.quality.frechet import feature_moments
from bench.measure.quality.statistics_files import (
    cached_statistics,
    npz_names,
    read_statistics,
    with_features,
    write_statistics,
)
from bench.runtime.errors import FeatureError


def rows(count, width=5, centre=0.0, seed=0):
    return np.random.default_rng(seed).normal(centre, 1, (count, width)).astype(np.float32)


def streamed(features, size):
    return statistics.MomentStream.of(features[start : start + size] for start in range(0, len(features), size))


@pytest.mark.parametrize("size", [1, 100, 5000])
@pytest.mark.parametrize("centre", [0.0, 1000.0])
def test_streamed_moments_are_numpys(size, centre):
    features = rows(5000, centre=centre)
    mean, cov = feature_moments(features)
    found = streamed(features, size)
    assert found.n == 5000
    # Float64 relative to the values summed: 1e-16 * 1000 for the mean; squares of deviations, of order 1, for the
    # covariance whatever the mean is. Raw second moments would lose 1e6 times as much.
    np.testing.assert_allclose(found.mean, mean, rtol=0, atol=1e-12 * max(centre, 1))
    np.testing.assert_allclose(found.cov, cov, rtol=0, atol=1e-12)


def test_a_single_row_has_no_spread():
    found = streamed(rows(1), 1)
    assert found.n == 1
    assert not found.cov.any()
    both = statistics.merged(found, streamed(rows(1, seed=1), 1))
    wanted = feature_moments(np.concatenate([rows(1), rows(1, seed=1)]))
    np.testing.assert_allclose(both.cov, wanted[1], rtol=1e-12)


def test_memory_does_not_grow_with_the_number():
    stream = statistics.MomentStream()
    for k in range(100):
        stream.add(rows(500, seed=k))
        assert sum(map(len, stream._batches)) < statistics._BLOCK
    assert stream.result().n == 50_000


def test_kept_rows_are_evenly_spaced():
    assert statistics.thinned(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert statistics.thinned(9, 3).tolist() == [0, 4, 8]
    many = statistics.thinned(50_000)
    assert (len(many), len(set(many)), many[0], many[-1]) == (statistics.RETAINED, statistics.RETAINED, 0, 49_999)


class Brightness(torch.nn.Module):
    """Features that tell an image's number: its first two pixels."""

    def forward(self, images):
        pooled = images[:, 0, 0].float()
        return pooled, pooled[:, :1] * 2


COUNTING = Extractor("counting", Brightness(), {}, "0" * 64, widths=(2, 1))


def counted(count):
    """Return images [N, 1, 1, 2] whose pixels are the digits of their number to the base 256."""
    numbers = torch.arange(count)
    return torch.stack([numbers // 256, numbers % 256], dim=1).to(torch.uint8).reshape(count, 1, 1, 2)


def test_a_large_set_keeps_ten_thousand_features_and_the_moments_of_all():
    pictures = counted(12_345)
    found = statistics.summarise(COUNTING, pictures, "many", batch=1000)
    every = COUNTING.extract(pictures)[0]
    np.testing.assert_array_equal(found.pooled, every[statistics.thinned(12_345)])
    np.testing.assert_allclose(found.moments.cov, feature_moments(every)[1], rtol=1e-10)
    np.testing.assert_allclose(found.spatial.cov, 4 * found.moments.cov[:1, :1], rtol=1e-12)
    assert (found.n, found.name, found.pooled_name) == (12_345, "many", "many, 10000 of them evenly spaced")


def test_a_small_set_keeps_everything():
    pictures, extractor = load("digits").images[:300], open_extractor("digits")
    found = statistics.summarise(extractor, pictures, "few")
    pooled, spatial = extractor.extract(pictures)
    np.testing.assert_array_equal(found.pooled, pooled)
    for moments, layer in ((found.moments, pooled), (found.spatial, spatial)):
        np.testing.assert_array_equal(moments.cov, feature_moments(layer)[1])
    assert (found.extractor, found.pooled_name) == (extractor.key, "few")


TOY = Extractor("toy", torch.nn.Identity(), {}, "1" * 64, widths=(5, 3))


def made(spatial=True):
    parts = [statistics.FeatureMoments(*feature_moments(rows(40, width)), 40) for width in (5, 3)]
    return statistics.ReferenceStatistics("made", TOY.key, parts[0], parts[1] if spatial else None, rows(40), "made")


def test_written_statistics_come_back(tmp_path):
    write_statistics(made(), tmp_path / "new" / "reference.npz", keep_features=True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["reference.npz"]
    found = read_statistics(tmp_path / "new" / "reference.npz", TOY)
    assert (found.content_hash(), found.n, found.name) == (made().content_hash(), 40, "reference.npz (40)")


def test_the_format_is_guided_diffusions(tmp_path):
    images = torch.arange(6 * 4, dtype=torch.uint8).reshape(6, 1, 2, 2)
    write_statistics(made(), tmp_path / "reference.npz", images)
    with np.load(tmp_path / "reference.npz", allow_pickle=False) as file:
        assert {"mu", "sigma", "mu_s", "sigma_s", "arr_0"} <= set(file.files)
        assert "pooled" not in file.files
        assert file["mu"].dtype == file["sigma_s"].dtype == np.float64
        np.testing.assert_array_equal(file["sigma"], made().moments.cov)
        assert file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(file["arr_0"], images.expand(-1, 3, -1, -1).movedim(1, -1))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_edms_files_have_no_spatial_part(tmp_path, kind):
    moments = made().moments
    np.savez(tmp_path / "edm.npz", mu=moments.mean.astype(kind), sigma=moments.cov.astype(kind))
    found = read_statistics(tmp_path / "edm.npz", TOY)
    assert (found.spatial, found.n, found.extractor, len(found.pooled)) == (None, None, "", 0)
    assert found.moments.cov.dtype == np.float64
    # One rounding to float32 of entries of order 1.
    np.testing.assert_allclose(found.moments.cov, moments.cov, atol=1e-7)


def test_without_spatial_features_the_file_is_edms(tmp_path):
    write_statistics(made(spatial=False), tmp_path / "reference.npz")
    assert npz_names(tmp_path / "reference.npz") == {"mu", "sigma", "n", "extractor"}


def test_the_hash_is_of_the_numbers():
    assert replace(made(), name="other").content_hash() == made().content_hash()
    shifted = replace(made().moments, mean=made().moments.mean + 1e-9)
    assert replace(made(), moments=shifted).content_hash() != made().content_hash()


EYE = np.eye(5)
LOPSIDED = EYE + np.triu(np.ones((5, 5)))
BAD = {
    "no sigma": ({"mu": np.zeros(5)}, r"holds 'mu' float64 .5.; a file of statistics has 'mu' .d. and 'sigma'"),
    "images": ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, "holds images and no statistics; write them with"),
    "integers": ({"mu": np.zeros(5, int), "sigma": EYE}, "'mu' is int64, not float32 or float64"),
    "half": ({"mu": np.zeros(5), "sigma": EYE.astype(np.float16)}, "'sigma' is float16"),
    "objects": ({"mu": np.zeros(5, object), "sigma": EYE}, "'mu' is object"),
    "texts": ({"mu": np.full(5, "a"), "sigma": EYE}, "'mu' is <U1"),
    "complex": ({"mu": np.zeros(5, complex), "sigma": EYE}, "'mu' is complex128"),
    "other features": ({"mu": np.zeros(6), "sigma": np.eye(6)}, r"'mu' is \[6\], not \[5\] as --features toy"),
    "two axes": ({"mu": np.zeros((5, 1)), "sigma": EYE}, r"'mu' is \[5, 1\]"),
    "not square": ({"mu": np.zeros(5), "sigma": np.zeros((5, 4))}, r"'sigma' is \[5, 4\], not \[5, 5\]"),
    "nan mean": ({"mu": np.full(5, np.nan), "sigma": EYE}, "'mu' holds values that are not finite"),
    "infinite": ({"mu": np.zeros(5), "sigma": np.diag([np.inf] * 5)}, "'sigma' holds values that are not finite"),
    "lopsided": ({"mu": np.zeros(5), "sigma": LOPSIDED}, "'sigma' is no covariance"),
    "negative": ({"mu": np.zeros(5), "sigma": -EYE}, "'sigma' is no covariance"),
    "spatial": ({"mu": np.zeros(5), "sigma": EYE, "mu_s": np.zeros(5), "sigma_s": EYE}, r"'mu_s' is \[5\], not \[3\]"),
    "extractor": ({"mu": np.zeros(5), "sigma": EYE, "extractor": "digits-0"}, "statistics of digits-0, not of toy-1"),
    "number": ({"mu": np.zeros(5), "sigma": EYE, "n": np.zeros(3, int)}, "'n' is .*, not one number"),
}


@pytest.mark.parametrize("shape", [(5,), (1, 5)])
@pytest.mark.parametrize("names", [("mu", "sigma"), ("m", "s")])
def test_other_names_and_a_row_as_mean_are_read(tmp_path, names, shape):
    features = rows(40)
    mean, cov = feature_moments(features)
    np.savez(tmp_path / "x.npz", **dict(zip(names, (mean.reshape(shape), cov), strict=True)))
    found = read_statistics(tmp_path / "x.npz", TOY).moments
    np.testing.assert_array_equal(found.mean, mean)
    np.testing.assert_array_equal(found.cov, cov)
    assert statistics_cache.is_statistics(npz_names(tmp_path / "x.npz"))


def test_features_themselves_are_read(tmp_path):
    features = rows(40)
    np.savez(tmp_path / "x.npz", pool_3=features[..., None, None])  # as a network without flattening gives them
    found = read_statistics(tmp_path / "x.npz", TOY)
    np.testing.assert_allclose(found.moments.cov, feature_moments(features)[1], rtol=1e-12)
    np.testing.assert_array_equal(found.pooled, features)
    assert (found.n, found.name) == (40, "x.npz (40)")
    np.savez(tmp_path / "x.npz", m=np.zeros(5), s=EYE, pool_3=features)
    found = read_statistics(tmp_path / "x.npz", TOY)
    assert (found.moments.mean.any(), len(found.pooled), found.comparable) == (False, 40, False)
    np.savez(tmp_path / "x.npz", pool_3=features[:, :4])
    assert refusal(tmp_path / "x.npz").endswith("it was made with (64 are digits, 128 cifar10, 2048 inception)")


def refusal(path, match=None):
    """Return the one-line message of the FeatureError."""
    with np.errstate(all="raise"):
        return refusals.refusal(FeatureError, read_statistics, path, TOY, match=match)


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD)
def test_what_is_no_statistics_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    assert refusal(tmp_path / "bad.npz", match=message)


def npy(array, shape=None):
    """Return an npy file's bytes, whose header may declare another shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape if shape is None else shape}
    )
    return file.getvalue() + array.tobytes()


@pytest.mark.parametrize("shape", [(10**9, 10**9), (10**5, 10**5), (-5, 5), (5, 6)])
def test_a_header_that_declares_another_size_is_refused_unread(tmp_path, shape):
    members = {"mu.npy": npy(np.zeros(5)), "sigma.npy": npy(EYE, shape)}
    zipped(tmp_path / "bad.npz", members, zipfile.ZIP_DEFLATED)
    assert "'sigma' is" in refusal(tmp_path / "bad.npz")


def test_a_member_larger_than_it_declares_is_refused_unread(tmp_path):
    members = {"mu.npy": npy(np.zeros(5)), "sigma.npy": npy(EYE) + bytes(10**7)}
    zipped(tmp_path / "bad.npz", members, zipfile.ZIP_DEFLATED)
    assert "declares [5, 5] but holds" in refusal(tmp_path / "bad.npz")


def test_changed_files_are_refused_or_mean_the_same(tmp_path):
    write_statistics(made(), tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        (tmp_path / "changed.npz").write_bytes(changed)
        # What is accepted has a change in a field that no one reads, or in the name of an array that need not be there.
        with suppress(FeatureError):
            found = read_statistics(tmp_path / "changed.npz", TOY)
            np.testing.assert_array_equal(found.moments.cov, made().moments.cov)


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path):
    assert "there is no file" in refusal(tmp_path / "absent.npz")
    (tmp_path / "folder.npz").mkdir()
    assert "cannot be read (Is a directory)" in refusal(tmp_path / "folder.npz")


@pytest.mark.parametrize(("count", "is_comparable"), [(0, False), (2, False), (99, False), (100, True)])
def test_a_hundred_images_can_be_compared_with_one_by_one(count, is_comparable):
    assert replace(made(), pooled=rows(count)).comparable == is_comparable


def test_names_of_what_is_no_npz(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    assert npz_names(tmp_path / "bad.npz") == npz_names(tmp_path) == npz_names(tmp_path / "absent.npz") == frozenset()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(statistics_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


@pytest.fixture
def computed(monkeypatch):
    """Count how often statistics are computed."""
    calls = []
    monkeypatch.setattr(statistics_cache, "summarise", lambda *args: calls.append(args) or statistics.summarise(*args))
    return calls


def test_statistics_are_computed_once_a_content(cache, computed):
    pictures = counted(300)
    first = cached_statistics(COUNTING, pictures, "first", "abc")
    again = cached_statistics(COUNTING, pictures, "again", "abc")
    assert len(computed) == len(list(cache.iterdir())) == 1
    assert first.content_hash() == again.content_hash()
    assert (again.name, again.pooled_name, again.n) == ("again", "again", 300)
    cached_statistics(COUNTING, pictures, "other", "def")
    cached_statistics(replace(COUNTING, weights_hash="2" * 64), pictures, "other", "abc")
    assert len(computed) == len(list(cache.iterdir())) == 3


def test_small_sets_of_embedded_features_are_not_cached(cache):
    cached_statistics(open_extractor("digits"), load("digits").images[:50], "digits", "abc")
    assert not cache.exists()


def test_features_to_compare_with_are_computed_once(cache, computed):
    pictures, bare = counted(12_345), replace(made(), pooled=rows(0, 2))
    first = with_features(bare, COUNTING, pictures, "many", "abc")
    again = with_features(bare, COUNTING, pictures, "same", "abc")
    np.testing.assert_array_equal(first.pooled, COUNTING.extract(pictures[statistics.thinned(12_345)])[0])
    np.testing.assert_array_equal(again.pooled, first.pooled)
    assert (first.moments, first.name) == (bare.moments, bare.name)
    assert again.pooled_name == "same, 10000 of them evenly spaced"
    assert [len(args[1]) for args in computed] == [statistics.RETAINED]
    with_features(bare, COUNTING, pictures[:12_000], "fewer", "abc")
    assert len(computed) == len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("count", [300, 12_345])
def test_what_was_cached_of_the_same_images_serves_too(cache, computed, count):
    pictures = counted(count)
    whole = cached_statistics(COUNTING, pictures, "whole", "abc")
    np.testing.assert_array_equal(with_features(made(), COUNTING, pictures, "p", "abc").pooled, whole.pooled)
    assert len(computed) == len(list(cache.iterdir())) == 1


def damages(whole):
    yield b""
    yield whole[: len(whole) // 2]
    yield pickle.dumps(Call(open, "executed", "w"))
    file = io.BytesIO()
    np.savez(file, mu=np.zeros(2), sigma=np.eye(2))
    yield file.getvalue()


def test_a_damaged_cache_is_computed_anew_with_a_note(cache, computed, caplog):
    pictures = counted(300)
    first = cached_statistics(COUNTING, pictures, "first", "abc")
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for k, damage in enumerate(damages(whole), start=2):
        path.write_bytes(damage)
        assert cached_statistics(COUNTING, pictures, "first", "abc").content_hash() == first.content_hash()
        assert len(computed) == k
        assert "computed anew" in caplog.messages[-1]
        assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_a_note_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(statistics_cache.CACHE_VARIABLE, str(tmp_path / "file"))
    assert cached_statistics(COUNTING, counted(30), "few", "abc").n == 30
    assert "not cached" in caplog.messages[-1]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv(statistics_cache.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert statistics_cache.statistics_cache() == tmp_path / "exposure-bias-bench" / "statistics"
