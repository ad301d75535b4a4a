import pytest
import torch

from bench.data import load
from bench.measure.features.classifier import CLASSIFIERS, accuracy, load_classifier, main

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


def test_the_command_writes_what_it_reports(tmp_path, capsys, digits):
    out = tmp_path / "new" / "weights.safetensors"
    assert main(["--out", str(out), "--epochs", "1"]) == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert f"held-out {accuracy(load_classifier('digits', out), digits, 'heldout'):.4f}" in capsys.readouterr().out
