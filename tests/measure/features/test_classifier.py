import pytest
import torch

from bench.data import load
from bench.measure.features.classifier import (
    CLASSIFIERS,
    DigitsClassifier,
    accuracy,
    load_classifier,
    main,
    train_classifier,
)

DIGITS = CLASSIFIERS["digits"]


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_embedded_weights_are_small_and_accurate(digits):
    assert DIGITS.weights.stat().st_size < 500_000
    assert accuracy(load_classifier(), digits, "heldout") >= 0.98


@pytest.mark.parametrize("name", list(CLASSIFIERS))
def test_it_comes_in_evaluation_mode_and_float32(name):
    network = load_classifier(name)
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in network.parameters())


def test_layer_shapes_and_order(digits):
    network = load_classifier()
    images = digits.images[:5]
    pooled, spatial = network.features(images)
    early = network.early(images.float() / 127.5 - 1)[:, :7]
    assert pooled.shape == (5, 64)
    assert spatial.shape == (5, 4 * 4 * 7)
    assert spatial.min() >= 0  # after rectification
    # Height, width, channel: entry (h, w, c) stands at (4 h + w) * 7 + c.
    assert torch.equal(spatial[:, (4 * 2 + 3) * 7 + 5], early[:, 5, 2, 3])
    assert network(images).shape == (5, 10)


def test_grey_and_three_equal_channels_give_the_same_features(digits):
    network, images = load_classifier(), digits.images[:9]
    for grey, wide in zip(network.features(images), network.features(images.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(grey, wide)


def test_training_learns_and_repeats(digits):
    first, again = (train_classifier(DIGITS, digits, epochs=2, seed=1, quiet=True) for _ in range(2))
    torch.manual_seed(1)
    untrained = DigitsClassifier().eval()
    # Chance is 10 %; two epochs of a working recipe pass 60 % by far.
    assert accuracy(untrained, digits, "heldout") < 0.3
    assert accuracy(first, digits, "heldout") > 0.6
    for one, other in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_command_writes_what_it_reports(tmp_path, capsys, digits):
    out = tmp_path / "new" / "weights.safetensors"
    assert main(["--out", str(out), "--epochs", "1"]) == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert f"held-out {accuracy(load_classifier('digits', out), digits, 'heldout'):.4f}" in capsys.readouterr().out
