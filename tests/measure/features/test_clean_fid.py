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


def of_folder(folder, images, model):
    """Return the features that clean-fid computes of the files of images with a model."""
    for number, image in enumerate(images):
        Image.fromarray(image.movedim(0, -1).numpy()).save(folder / f"{number}.png")
    device = torch.device("cpu")
    return fid.get_folder_features(
        str(folder), model, num_workers=0, batch_size=2, device=device, mode="clean", verbose=False
    )


@pytest.fixture(scope="module")
def network(random_inception):
    return open_network(CleanInceptionFeatures, random_inception)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (40, 30), (320, 310)])
def test_the_resizing_is_clean_fids_own_path(network, tmp_path, height, width):
    images, seen = pictures(2, height, width), []

    def spy(batch):
        seen.append(batch.clone())
        return torch.zeros(len(batch), 1)

    of_folder(tmp_path, images, spy)
    resized = network.resized(images)
    assert torch.equal(resized, torch.cat(seen))
    assert resized.dtype == torch.float32
    assert (resized != resized.round()).any()  # nothing was rounded to grey levels


def test_the_features_are_clean_fids_of_the_same_network(network, tmp_path):
    images = pictures(2, 32, 32)

    def theirs(batch):
        x = (batch - 128) / 128
        for layer in network._layers:
            x = layer(x)
        return x.flatten(1)

    np.testing.assert_array_equal(network(images)[0].numpy(), of_folder(tmp_path, images, theirs))


def test_at_299_pixels_alone_both_ways_of_resizing_are_the_same_network(network, random_inception):
    plain = open_network(InceptionFeatures, random_inception)
    large, small = pictures(2, 299, 299), pictures(2, 32, 32)
    for one, other in zip(network(large), plain(large), strict=True):
        assert torch.equal(one, other)
    assert not torch.allclose(network(small)[0], plain(small)[0], rtol=1e-2)


def test_the_extractor_reads_grey_images_and_says_what_it_is(random_inception):
    extractor = open_extractor("clean-fid", random_inception)
    pooled, spatial = extractor.extract(pictures(2, 8, 8)[:, :1])
    assert (pooled.shape, spatial.shape) == ((2, 2048), (2, 17 * 17 * 7))
    assert extractor.note == "torch-fidelity's network, clean-fid's resizing"
    assert extractor.metrics["frechet"] == "clean_fd_inception"
