import numpy as np
import pytest
import torch
from cleanfid import fid
from PIL import Image

from bench.measure.features.extractors import open_extractor
from bench.measure.features.inception import CleanInceptionFeatures, InceptionFeatures, open_network

pytestmark = pytest.mark.slow  # Inception on a CPU


def pictures(count, height, width):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def network(random_inception):
    return open_network(CleanInceptionFeatures, random_inception)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (40, 30), (320, 310)])
def test_the_resizing_is_clean_fids_own_path(network, tmp_path, height, width):
    images = pictures(2, height, width)
    for number, image in enumerate(images):
        Image.fromarray(image.movedim(0, -1).numpy()).save(tmp_path / f"{number}.png")
    seen = []

    def spy(batch):
        seen.append(batch.clone())
        return torch.zeros(len(batch), 1)

    fid.get_folder_features(
        str(tmp_path), spy, num_workers=0, batch_size=2, device=torch.device("cpu"), mode="clean", verbose=False
    )
    resized = network.resized(images)
    assert torch.equal(resized, torch.cat(seen))
    assert resized.dtype == torch.float32
    assert (resized != resized.round()).any()  # nothing was rounded to grey levels


def test_the_features_are_clean_fids_of_the_same_network(network, tmp_path):
    images = pictures(2, 32, 32)
    for number, image in enumerate(images):
        Image.fromarray(image.movedim(0, -1).numpy()).save(tmp_path / f"{number}.png")

    def theirs(batch):
        x = (batch - 128) / 128
        for layer in network._layers:
            x = layer(x)
        return x.flatten(1)

    found = fid.get_folder_features(
        str(tmp_path), theirs, num_workers=0, batch_size=2, device=torch.device("cpu"), mode="clean", verbose=False
    )
    np.testing.assert_array_equal(network(images)[0].numpy(), found)


def test_at_299_pixels_both_ways_of_resizing_are_the_same_network(network, random_inception):
    images = pictures(2, 299, 299)
    plain = open_network(InceptionFeatures, random_inception)
    for one, other in zip(network(images), plain(images), strict=True):
        assert torch.equal(one, other)


def test_at_other_sizes_they_are_not(network, random_inception):
    images = pictures(2, 32, 32)
    plain = open_network(InceptionFeatures, random_inception)
    assert not torch.allclose(network(images)[0], plain(images)[0], rtol=1e-2)


def test_the_extractor_reads_grey_images_and_says_what_it_is(random_inception):
    extractor = open_extractor("clean-fid", random_inception)
    pooled, spatial = extractor.extract(pictures(2, 8, 8)[:, :1])
    assert (pooled.shape, spatial.shape) == ((2, 2048), (2, 17 * 17 * 7))
    assert extractor.note == "torch-fidelity's network, clean-fid's resizing"
    assert extractor.metrics["frechet"] == "clean_fd_inception"
