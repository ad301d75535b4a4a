"""The conformance check: corrections that break one rule each, and those of the suite, which break none."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from cases import at_first
from refusals import outcome_of

from bench.check.__main__ import main, ours, report, subject_of
from bench.check.rules import Findings, _check_place, _neutral, check
from bench.check.walks import BIASES, FRAMES, OPPOSITES, SOLVERS, Oracle, biased_images, distance, states
from bench.diffusion import corrections
from bench.diffusion.corrections import Correction, EpsilonScaling, SigmaLying, TemporalRescaling, TimeShift
from bench.diffusion.corrections.base import with_noise
from bench.suite.settings import SAMPLER_FRAMES


class Wrong(Correction):
    """Epsilon scaling of the wrong sign."""

    def __init__(self, b=1.02):
        self.b = b

    def prediction(self, pred, x, call):
        return (pred.x0, pred.eps) if self.b == 1 else with_noise(pred, x, call.level, self.b * pred.eps)


class InPlace(Correction):
    def after(self, x_next, pred, call):
        return x_next.mul_(1.01)


class ByBatch(Correction):
    def __init__(self, c=0.1):
        self.c = c

    def after(self, x_next, pred, call):
        return x_next - self.c * x_next.mean(0)


class Never(Correction):
    def prediction(self, pred, x, call):
        return pred.x0 / 0, pred.eps


class Crash(Correction):
    def before(self, x, call):
        raise KeyError("no\nreason")


class Loud(Correction):
    def before(self, x, call):
        raise ValueError("two\nlines")


class Off(Correction):
    """Its neutral constant is not neutral."""

    neutral: ClassVar = {"c": 1.0}

    def __init__(self, c=1.1):
        self.c = c

    def after(self, x_next, pred, call):
        return x_next * self.c * 1.0001


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A walk in each frame is enough to find what breaks everywhere."""
    places = [("vp", "ddpm"), ("vp", "ddim"), ("edm", "heun"), ("flow", "unipc")]
    monkeypatch.setattr("bench.check.rules.SOLVERS", {place: SOLVERS[place] for place in places})
    monkeypatch.setattr("bench.check.rules.SHOWN", [("vp", "ddim")])


@pytest.mark.parametrize(
    ("kind", "broken"),
    [(Wrong, "right direction"), (InPlace, "inputs stay"), (ByBatch, "any batch"), (Never, "finite"),
     (Crash, "works or refuses"), (Loud, "works or refuses"), (Off, "neutral is plain")],
)  # fmt: skip
def test_what_breaks_a_rule(kind, broken):
    assert broken in check(subject_of(kind.__name__, kind, {}, None)).broken


@pytest.mark.parametrize(
    ("kind", "constants", "bias"),
    [(EpsilonScaling, {"b": 1.02}, "eps too large"), (SigmaLying, {"d": 1 - 1 / 1.1}, "time too late")],
)
def test_what_undoes_a_bias_leaves_no_error(kind, constants, bias):
    findings = check(subject_of(kind.__name__, kind, constants, None))
    assert not findings.broken
    errors = findings.errors[bias, "vp", "ddim"]
    assert errors.plain > 0.05
    assert max(errors.treated, errors.best[1]) < 1e-3
    assert errors.lessened


def test_constants_far_from_best_are_not_of_the_wrong_sign():
    findings = check(subject_of("EpsilonScaling", EpsilonScaling, {"b": 1.08}, None))
    assert all(one.treated > one.plain for (bias, *_), one in findings.errors.items() if bias != "time too late")
    assert "right direction" not in findings.broken


@pytest.mark.ci
def test_the_time_shift_removes_more_noise():
    broken = check(subject_of("TimeShift", TimeShift, {}, None)).broken
    assert "lessens 2 of 3 of the opposite" in broken["right direction"][0]


def test_every_bias_leaves_too_little_spread():
    exact = biased_images(("vp", "ddim"), None)
    for bias in BIASES:
        biased = biased_images(("vp", "ddim"), bias)
        assert biased.std(0).mean() < 0.999 * exact.std(0).mean()
        assert distance(biased, exact) > 0.05
    for bias in OPPOSITES:
        biased = biased_images(("vp", "ddim"), bias)
        assert biased.std(0).mean() > 1.001 * exact.std(0).mean()
    assert distance(exact, exact) == 0


def test_every_sampler_of_the_suite_is_walked():
    ours = {(frame, name) for name, frames in SAMPLER_FRAMES.items() for frame in frames}
    assert ours | {("edm", "heun, churn")} == set(SOLVERS)
    assert all(torch.isfinite(states(place, None, Oracle(), range(2))[-1]).all() for place in SOLVERS)
    assert set(FRAMES) == {frame for frame, _ in SOLVERS}


def test_all_of_ours_are_there():
    kinds = {getattr(corrections, name) for name in corrections.__all__}
    classes = {kind for kind in kinds if isinstance(kind, type)} - {corrections.Correction, corrections.InOrder}
    assert {subject.make for subject in ours()} == classes


@pytest.mark.parametrize("subject", at_first(ours(), 6), ids=lambda subject: subject.name)
def test_ours_break_no_rule_of_any_sampler(subject):
    findings = Findings()
    constants = subject if subject.neutral is not None else replace(subject, neutral=_neutral(subject))
    for place in SOLVERS:
        _check_place(constants, place, findings)
    assert findings.broken == {}


def test_the_report_has_every_rule_and_error():
    subject = subject_of("TemporalRescaling", TemporalRescaling, {}, None)
    lines = list(report(subject, check(subject)))
    assert (lines[0], sum("holds" in line for line in lines)) == ("TemporalRescaling(k=0.95, s=1)", 6)
    assert sum("ddim (vp)" in line for line in lines) == len(BIASES) + len(OPPOSITES)


CODES = [
    ("class Mine(Correction):\n    pass", 0, "Mine()"),
    ("class Mine(Correction):\n    def after(self, x, p, c): return x * 2", 1, "BROKEN"),
    ("class Mine:\n    pass", 2, "makes no Correction"),
    ("class Other(Correction):\n    pass", 2, "has no class 'Mine'"),
    ("class Mine(Correction):\n    def __init__(self, b): pass", 2, "give --set b=VALUE"),
    ("1 / 0", 2, "raised ZeroDivisionError"),
]


@pytest.mark.parametrize(("code", "rc", "text"), CODES)
def test_the_command(tmp_path, capsys, code, rc, text):
    path = tmp_path / "mine.py"
    path.write_text(f"from bench.diffusion.corrections import Correction\n{code}\n")
    assert main([f"{path}:Mine"]) == rc
    out, err = capsys.readouterr()
    assert text in (err if rc == 2 else out)
    assert err.count("\n") == (rc == 2)


@pytest.mark.parametrize("spec", ["mine.py", "mine:Mine", "absent.py:Mine", "mine.py:"])
def test_names_of_no_class(spec, capsys):
    assert outcome_of(capsys, main, spec).refused()
