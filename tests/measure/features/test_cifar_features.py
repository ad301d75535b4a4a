import numpy as np
import pytest
import torch
from PIL import Image
from refusals import outcome_of

from bench.data import Dataset, stratified_split
from bench.measure.features.classifier import CLASSIFIERS, accuracy, load_classifier, main, train_classifier
from bench.measure.features.extractors import open_extractor

CIFAR = CLASSIFIERS["cifar10"]


SIZES = {"cifar10": 32, "cifar10-16": 16, "digits": 8}
# Classifier: channels of its images, pooled width, pixels a side of the early layer.
LAYERS = {"cifar10": (3, 128, 8), "cifar10-16": (3, 128, 8), "digits": (1, 64, 4)}
every = pytest.mark.parametrize("name", SIZES)
both = pytest.mark.parametrize("name", ["cifar10", "cifar10-16"])


def images(count, seed=0, size=32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def colours():
    """Make 240 noisy images of two classes, dark and bright, every sixth held out."""
    labels = torch.arange(240) % 2
    pixels = (images(240) // 4 + labels.reshape(-1, 1, 1, 1) * 120).to(torch.uint8)
    return Dataset("colours", pixels, labels, stratified_split(labels, every=6))


@both
def test_the_embedded_weights_are_small(name):
    assert CLASSIFIERS[name].weights.stat().st_size <= 1_000_000
    network = load_classifier(name)
    assert 300_000 < sum(p.numel() for p in network.parameters()) < 600_000


@every
def test_layers(name):
    channels, width, side = LAYERS[name]
    extractor, pictures = open_extractor(name), images(5, size=SIZES[name])[:, :channels]
    pooled, spatial = extractor.extract(pictures)
    network = load_classifier(name)
    early = network.early(network.to_input(pictures))[:, :7]
    assert (pooled.shape, spatial.shape) == ((5, width), (5, side * side * 7))
    assert (pooled.shape[1], spatial.shape[1]) == extractor.widths
    assert spatial.min() >= 0  # after rectification
    # Height, width, channel: entry (h, w, c) stands at (side h + w) * 7 + c.
    assert spatial[1, (side * 2 + 3) * 7 + 2] == pytest.approx(early[1, 2, 2, 3].item(), rel=1e-5)
    # The scores' logits are the classifier's; float32 sums of 128 products of order 1.
    torch.testing.assert_close(extractor.logits(torch.from_numpy(pooled)), network(pictures), rtol=1e-4, atol=1e-4)


@every
def test_grey_images_are_three_equal_channels(name):
    extractor, grey = open_extractor(name), images(4, size=SIZES[name])[:, :1]
    for one, other in zip(extractor.extract(grey), extractor.extract(grey.expand(-1, 3, -1, -1)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.ci
def test_training_learns_and_repeats(colours):
    first, again = (train_classifier(CIFAR, colours, epochs=3, seed=1, quiet=True) for _ in range(2))
    assert accuracy(first, colours, "heldout") > 0.9  # chance is 50 %; the classes differ in brightness alone
    for one, other in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_command_reads_class_folders(tmp_path, capsys):
    for k, name in enumerate(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    ):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for number, picture in enumerate(images(6, seed=k)):
            Image.fromarray(picture.movedim(0, -1).numpy()).save(folder / f"{number}.png")
    out = tmp_path / "weights.safetensors"
    args = ["--dataset", "cifar10", "--data", str(tmp_path / "data"), "--epochs", "1", "--out", str(out)]
    assert main(args) == 0
    assert "held-out" in capsys.readouterr().out
    assert not load_classifier("cifar10", out).training


@pytest.mark.parametrize("given", [[], ["--data", "/nonexistent"]])
def test_without_data_the_command_says_so(given, capsys):
    assert outcome_of(capsys, main, "--dataset", "cifar10", *given).refused()
