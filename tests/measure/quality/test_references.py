import numpy as np
import pytest

from bench.data import DataError, load
from bench.measure.features.extractors import open_extractor
from bench.measure.quality.references import ImageSet, open_statistics
from bench.measure.quality.statistics import summarise
from bench.measure.quality.statistics_files import write_statistics
from bench.runtime.errors import FeatureError


@pytest.fixture(scope="module")
def images():
    return load("digits").part("heldout")[:120]


@pytest.fixture
def extractor():
    return open_extractor("digits")


@pytest.fixture
def statistics(images, extractor):
    return summarise(extractor, images, "held out")


def test_images_of_the_file_are_what_is_compared(tmp_path, images, extractor, statistics):
    write_statistics(statistics, tmp_path / "file.npz", images)
    opened = open_statistics(tmp_path / "file.npz", extractor)
    assert len(opened.statistics.pooled) == 0  # nothing was computed
    np.testing.assert_array_equal(opened.pictures.images, images.expand(-1, 3, -1, -1))
    completed = opened.completed(extractor)
    # The digits' classifier reads the mean of the channels, and that of three equal float32 may round.
    np.testing.assert_allclose(completed.pooled, statistics.pooled, atol=1e-5)
    assert completed.pooled_name == opened.pictures.name == "images of file.npz (120)"
    np.testing.assert_array_equal(completed.moments.cov, statistics.moments.cov)


def test_a_file_without_images_stays_as_it_is(tmp_path, extractor, statistics):
    write_statistics(statistics, tmp_path / "file.npz")
    opened = open_statistics(tmp_path / "file.npz", extractor)
    assert opened.pictures is None
    assert opened.completed(extractor) is opened.statistics


def test_the_hash_is_of_numbers_and_images(tmp_path, images, extractor, statistics):
    hashes = set()
    for name, pictures in {"none": None, "all": images, "fewer": images[1:]}.items():
        write_statistics(statistics, tmp_path / f"{name}.npz", pictures)
        hashes.add(open_statistics(tmp_path / f"{name}.npz", extractor).content_hash())
        assert open_statistics(tmp_path / f"{name}.npz", extractor).content_hash() in hashes
    assert len(hashes) == 3


def test_images_of_another_size_are_refused(tmp_path, extractor, statistics):
    write_statistics(statistics, tmp_path / "file.npz", load("digits").images[:3, :, :4])
    with pytest.raises(FeatureError, match="--features digits reads 8x8 images only, not 4x8"):
        open_statistics(tmp_path / "file.npz", extractor)


def test_images_that_are_none_are_refused(tmp_path, extractor, statistics):
    moments = {"mu": statistics.moments.mean, "sigma": statistics.moments.cov}
    np.savez(tmp_path / "file.npz", **moments, arr_0=np.zeros((3, 8, 8, 1)))
    with pytest.raises(DataError, match=r"file\.npz") as caught:
        open_statistics(tmp_path / "file.npz", extractor)
    assert "\n" not in str(caught.value)


def test_a_set_of_images_is_named_with_its_number():
    data = load("digits")
    training, everything = ImageSet.training(data), ImageSet.all_of(data)
    assert (training.name, everything.name) == ("digits-train (1442)", "digits (1797)")
    assert (training.size, training.content) == ("8x8", data.content_hash())
