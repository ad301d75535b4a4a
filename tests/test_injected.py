"""Known biases: what they do to a prediction, and that instruments see what is large and not what is nothing."""

import math

import pytest
import torch
from refusals import outcome_of

from bench.diffusion.schedules import alpha_bars, levels
from bench.injected import KINDS, Biased, Finding, Trial, findings, main, seen_from
from bench.measure.instruments.exact_denoisers import FiniteSet

BARS = alpha_bars("cosine", 1000)
LEVEL = levels("cosine", 1000, "10")[4]


@pytest.fixture(scope="module")
def exact():
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return FiniteSet(images)


@pytest.fixture(scope="module")
def trial():
    return Trial(4, 130, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_keeps_the_state_and_vanishes_with_its_size(exact, kind):
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = exact(x, LEVEL)
    for size in (0.0, 0.1):
        pred = Biased(exact, kind, size, BARS, 0)(x, LEVEL)
        torch.testing.assert_close(LEVEL.alpha * pred.x0 + LEVEL.sigma * pred.eps, x, rtol=0, atol=1e-5)
        assert torch.allclose(pred.x0, plain.x0, atol=1e-5) == (size == 0)


def test_biases_by_hand(exact):
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = exact(x, LEVEL)
    scaled = Biased(exact, "scale", 0.1, BARS, 0)(x, LEVEL)
    torch.testing.assert_close(scaled.eps, 1.1 * plain.eps)
    noisy = Biased(exact, "noise", 0.1, BARS, 0)(x, LEVEL)
    assert float((noisy.x0 - plain.x0).std()) == pytest.approx(0.1, rel=0.2)  # 320 draws
    smooth = Biased(exact, "low-pass", 0.1, BARS, 0)(x, LEVEL)
    middle = plain.x0[:, :, 2:5, 2:5].mean(dim=(2, 3))  # of pixel (3, 3)
    torch.testing.assert_close(smooth.x0[:, :, 3, 3], 0.9 * plain.x0[:, :, 3, 3] + 0.1 * middle)


def test_what_is_unbiased_is_seen_nowhere_and_what_is_large_is(trial):
    same = findings(trial.walks("scale", 0.0), trial.unbiased, trial.samples)
    assert {finding.p for finding in same.values()} == {1.0}
    large = findings(trial.walks("low-pass", 0.5), trial.unbiased, trial.samples)
    assert set(large) == set(same)
    assert large["Frechet distance"].p < 1e-4
    assert large["variance at the end"].effect < 0  # smooth images vary less
    assert large["spectrum at the end"].effect < 0
    undone = findings(trial.walks("scale", 0.1, b=1.1), trial.unbiased, trial.samples)
    assert abs(undone["variance at the end"].effect) < 1e-3


def test_the_size_from_which_on_a_bias_is_seen():
    def at(p):
        return {"instrument": Finding(0.2, 0.1, p, 1000)}

    surveyed = {
        ("scale", 0.01): at(1e-4),
        ("scale", 0.02): at(0.5),
        ("scale", 0.05): at(1e-4),
        ("scale", 0.1): at(1e-4),
    }
    needed = 1000 * (2.8 / 2) ** 2
    assert at(1)["instrument"].enough == pytest.approx(needed)
    assert seen_from(surveyed, "scale", "instrument") == "5 % + (N 2,000)"  # at 1 % it was luck
    assert seen_from({("scale", 0.1): at(0.5)}, "scale", "instrument") == "- (10 %: N 2,000)"
    assert math.isnan(Finding(0.0, 0.1, 1.0, 10).enough)


@pytest.mark.ci
def test_the_command_prints_two_tables(capsys, monkeypatch):
    monkeypatch.setattr("bench.injected.KINDS", ("scale",))
    assert main(["--steps", "2", "--samples", "130", "--seeds", "3", "--sizes", ".1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 steps, 3 x 130 images:" in lines
    assert (
        sum(line.startswith("| scale 10 % | ") for line in lines) == 2
    )  # the published divisor, and the one that undoes
    assert any(line.startswith("| Frechet distance | ") for line in lines)


@pytest.mark.parametrize(
    "argv", [["--steps", "1"], ["--samples", "128"], ["--seeds", "2"], ["--sizes", "0"], ["--sizes", "nan"], ["x"]]
)
def test_bad_input_is_one_line(argv, capsys):
    assert outcome_of(capsys, main, *argv).refused()
