"""Descriptions that do not fit are warned of before sampling: on stderr, in run.json, and once a folder."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bench
from bench.diffusion.types import Prediction
from bench.models.checkpoints.formats import describe, open_network
from bench.models.checkpoints.native import save_network
from bench.models.denoisers import calibration
from bench.suite.experiments.calibration import SlopeCheck, plan_slopes

WEIGHTS = Path(bench.__file__).parent / "models" / "weights" / "digits"
SMALL = ("--steps", "2", "--samples", "8", "--no-probes", "--features", "none", "--quiet")


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """Return a function that saves the digits' baseline under another description."""
    path = WEIGHTS / "adm.safetensors"
    about, room = describe(path), tmp_path_factory.mktemp("described")

    def save(name, **changes):
        save_network(room / f"{name}.safetensors", open_network(path, about), replace(about, training={}, **changes))
        return f"{name}={room / name}.safetensors"

    return save


def warnings_of(err):
    return [line for line in err.splitlines() if line.startswith("warning: ")]


def test_a_wrong_description_is_warned_of_once_a_run_and_asked_once_a_folder(described, command, tmp_path, monkeypatch):
    asked, ask = [], calibration.slope_at
    monkeypatch.setattr(calibration, "slope_at", lambda *args: asked.append(args) or ask(*args))
    wrong = {"v": {"prediction": "v"}, "linear": {"schedule": "linear"}, "half": {"T": 500}}
    wrong |= {"scaled": {"schedule": "scaled_linear(0.00085,0.012)"}}
    models = ",".join(["adm", *(described(name, **changes) for name, changes in wrong.items())])
    for levels in (8 * 5, 0):  # the second run finds the slopes
        outcome = command("--models", models, *SMALL, "--out", tmp_path / "out")
        assert (outcome.code, len(asked)) == (0, levels)
        lines = warnings_of(outcome.err)
        assert len(lines) == len(wrong)
        for name, line in zip(wrong, lines, strict=True):
            assert line.startswith(f"warning: {name}: the description does not fit the network: at sigma ")
        assert json.loads((tmp_path / "out" / "run.json").read_text())["warnings"] == [line[9:] for line in lines]
        asked.clear()


def test_remedies_share_the_answers_of_their_network(described, command, tmp_path):
    assert not warnings_of(command("--models", "adm,adm-es,adm-ip", *SMALL, "--out", tmp_path / "out").err)
    assert len(list((tmp_path / "out" / "slopes").iterdir())) == 2
    assert "warnings" not in json.loads((tmp_path / "out" / "run.json").read_text())


@pytest.mark.parametrize(("cost", "images"), [(100, 16), (10_000, 25), (10**7, 42)])
def test_a_share_of_the_calls_is_asked(make_cell, make_context, monkeypatch, tmp_path, cost, images):
    """At least 16 images a level, at most 128 or all 42 of the training part, and else 2 % of the run's calls."""
    cell, sizes = make_cell(), []
    denoiser = lambda x, level, cond=None: sizes.append(len(x)) or Prediction(-x, x)  # noqa: E731 - off by far
    monkeypatch.setattr(type(cell), "cost", lambda self: (cost, 0))
    (check,) = plan_slopes([cell])
    check.compute(make_context(denoiser), tmp_path)
    assert sizes == 8 * [images]


def test_values_that_are_not_finite_are_off(make_cell, make_context, tmp_path):
    check = SlopeCheck((make_cell(),))
    nothing = lambda x, level, cond=None: Prediction(torch.full_like(x, math.nan), x)  # noqa: E731
    check.compute(make_context(nothing, batch=7), tmp_path)
    assert "slope of the noise on its prediction is nan" in check.warning(tmp_path)


def test_labels_that_the_network_does_not_take_are_a_reason(make_cell, make_context, shrink):
    cell = make_cell()
    about = replace(cell.model.description, network={**cell.model.description.network, "num_classes": 5})
    check = SlopeCheck((replace(cell, model=replace(cell.model, description=about)),))
    assert check.refusal(make_context(shrink())) == "it takes 5 class labels, and the images have 3"
    assert SlopeCheck((cell,)).refusal(make_context(shrink())) is None
