"""The embedded classifiers: their weights, their features, and the commands that make them."""

import numpy as np
import pytest
import torch
from pictures import class_folders
from refusals import outcome_of

from bench.data import Dataset, load, stratified_split
from bench.measure.features.classifier import CLASSIFIERS, accuracy, load_classifier, main, train_classifier
from bench.measure.features.extractors import open_extractor

# Classifier: pixels a side and channels of its images, pooled width, pixels a side of the early layer, largest file.
LAYERS = {
    "cifar10": (32, 3, 128, 8, 1_000_000), "cifar10-16": (16, 3, 128, 8, 1_000_000), "digits": (8, 1, 64, 4, 500_000)
}  # fmt: skip
every = pytest.mark.parametrize("name", LAYERS)


def images(count, seed=0, size=32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@every
def test_embedded_weights_are_small_and_come_in_evaluation_mode_and_float32(name):
    assert CLASSIFIERS[name].weights.stat().st_size <= LAYERS[name][-1]
    network = load_classifier(name)
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in network.parameters())
    assert name == "digits" or 300_000 < sum(p.numel() for p in network.parameters()) < 600_000


def test_the_digits_are_told_apart():
    assert accuracy(load_classifier(), load("digits"), "heldout") >= 0.98


@every
def test_layers(name):
    size, channels, width, side, _ = LAYERS[name]
    extractor, pictures = open_extractor(name), images(5, size=size)[:, :channels]
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
    extractor, grey = open_extractor(name), images(4, size=LAYERS[name][0])[:, :1]
    for one, other in zip(extractor.extract(grey), extractor.extract(grey.expand(-1, 3, -1, -1)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.ci
def test_training_learns_and_repeats():
    """Of 240 noisy images of two classes, dark and bright, every sixth is held out."""
    labels = torch.arange(240) % 2
    pixels = (images(240) // 4 + labels.reshape(-1, 1, 1, 1) * 120).to(torch.uint8)
    colours = Dataset("colours", pixels, labels, stratified_split(labels, every=6))
    first, again = (train_classifier(CLASSIFIERS["cifar10"], colours, 3, seed=1, quiet=True) for _ in range(2))
    assert accuracy(first, colours, "heldout") > 0.9  # chance is 50 %; the classes differ in brightness alone
    for one, other in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_command_writes_what_it_reports(tmp_path, capsys):
    out = tmp_path / "new" / "weights.safetensors"
    assert main(["--out", str(out), "--epochs", "1"]) == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    reached = accuracy(load_classifier("digits", out), load("digits"), "heldout")
    assert f"held-out {reached:.4f}" in capsys.readouterr().out


def test_the_command_reads_class_folders(tmp_path, capsys):
    for number in range(6):
        class_folders(tmp_path / "data", images(10, seed=number).movedim(1, -1).numpy(), number)
    out = tmp_path / "weights.safetensors"
    args = ["--dataset", "cifar10", "--data", str(tmp_path / "data"), "--epochs", "1", "--out", str(out)]
    assert main(args) == 0
    assert "held-out" in capsys.readouterr().out
    assert not load_classifier("cifar10", out).training


@pytest.mark.parametrize("given", [[], ["--data", "/nonexistent"]])
def test_without_data_the_command_says_so(given, capsys):
    assert outcome_of(capsys, main, "--dataset", "cifar10", *given).refused()
