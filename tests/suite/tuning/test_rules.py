import tomllib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from bench.data import load
from bench.diffusion.types import Prediction
from bench.measure.features.extractors import open_extractor
from bench.suite.registry.remedies import Remedy
from bench.suite.settings import RESERVED_SEEDS, ConfigError
from bench.suite.tuning import rules as fitting
from bench.suite.tuning.rules import fit


@pytest.fixture
def fitted(make_cell, make_context):
    """Return a function that fits a constant on the small data with a denoiser."""

    def call(constant, denoiser, **changes):
        return fit(constant, make_cell(measure=(), **changes), make_context(denoiser, batch=16)).value

    return call


def checks(std):
    """Return a denoiser whose x0_hat is a checkerboard of a spread, and so beyond [-1, 1] where that is above .99."""

    def denoiser(x, level, cond=None):
        rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
        sign = (1.0 - 2.0 * ((rows + columns) % 2)).expand(x.shape)
        x0 = sign * (std * (15 / 16) ** 0.5)  # 16 pixels, n - 1
        return Prediction((x - level.alpha * x0) / level.sigma, x0, torch.zeros_like(x))

    return denoiser


def test_the_spread_of_x0_hat_is_measured_where_the_walk_goes(fitted):
    reference = fitted("reference", checks(0.5))
    t = [pair[0] for pair in reference]
    assert t == sorted(t)
    assert (len(t), t[0], t[-1]) == (25, 0.0, 999.0)
    assert [pair[1] for pair in reference] == [pytest.approx(0.5, abs=1e-4)] * 25  # five digits are kept


def test_it_is_that_of_the_clamped_x0_hat_only_where_the_walk_clamps(fitted):
    clamped = (16 / 15) ** 0.5
    assert [pair[1] for pair in fitted("reference", checks(3.0))] == [pytest.approx(clamped, abs=1e-4)] * 25
    free = fitted("reference", checks(3.0), clip=False)
    assert [pair[1] for pair in free] == [pytest.approx(3.0, abs=1e-3)] * 25


def test_the_spread_of_the_training_images(fitted, small_data):
    pixels = small_data.part("train").double().flatten(1).numpy() / 127.5 - 1
    within = pixels.var(axis=1, ddof=1).mean()
    assert fitted("data_variance", checks(0.5)) == pytest.approx(within, rel=1e-5)  # six digits are kept
    assert fitted("std", checks(0.5)) == pytest.approx(within**0.5, rel=1e-5)


@pytest.mark.parametrize("constant", ["k", "window", "low", "gamma"])
def test_constants_without_a_rule(fitted, constant):
    with pytest.raises(ConfigError, match=f"no rule is known for '{constant}'"):
        fitted(constant, checks(0.5))


def test_a_divisor_is_fitted_on_reserved_noise_among_other_remedies(make_cell, make_context, shrink, monkeypatch):
    """The rule gets what a walk under any b ends in; here it is handed on and looked at."""
    given, seeds, calls = {}, [], []
    fitted = SimpleNamespace(b=7, vertex=1.0, slope=0.0, error=0.1, gain=0.0, unit=0.07, images=1400)
    monkeypatch.setattr(fitting, "fit_divisor", lambda drawn, *about: given.update(drawn=drawn, about=about) or fitted)
    real = fitting.Noise
    monkeypatch.setattr(fitting, "Noise", lambda seed: seeds.append(seed) or real(seed))
    digits, cell = load("digits"), make_cell(measure=(), steps=3)
    remedies = (Remedy("dcw").overridden({"low": 0.3}), Remedy("epsilon-scaling").overridden({"b": 1.0}))
    cell = replace(cell, model=replace(cell.model, remedies=remedies))
    context = make_context(shrink(), digits, open_extractor("digits"), 5, calls)
    assert fit("b", cell, context).value == 7
    assert seeds == [RESERVED_SEEDS]
    states, features = given["drawn"](1.0, 2, 9)
    assert (states.shape, len(features), sum(calls)) == ((7, 1, 8, 8), 7, 7 * 3)
    np.testing.assert_array_equal(given["drawn"](1.0, 4, 5)[0], states[2:3])  # whatever the batch
    assert (given["drawn"](1.1, 2, 9)[0] != states).any()
    plain = replace(cell, model=replace(cell.model, remedies=remedies[1:]))
    fit("b", plain, context)
    assert (given["drawn"](1.0, 2, 9)[0] != states).any()
    mean, cov, spread = given["about"]
    assert mean.shape == (cov.shape[0],)
    pixels = digits.part("train").double().numpy() / 127.5 - 1
    assert spread == pytest.approx(pixels.var(axis=0, ddof=1).mean() ** 0.5, rel=1e-7)  # to_unit is float32


FINAL = '{ kind = "variance-normalisation", variant = "final" }'
FINAL_ENTRY = {"kind": "variance-normalisation", "variant": "final", "sampler": "ddpm", "steps": [2, 4]}


def test_fitting_writes_an_entry(command, tmp_path):
    out = tmp_path / "out"
    entries = (f'[models.{name}-final]\nbase = "{name}"\ncorrections = [{FINAL}]\n' for name in ("adm", "adm-ip"))
    (tmp_path / "c.toml").write_text("".join(entries))
    models = ("--config", tmp_path / "c.toml", "--models", "adm-final,adm-ip-final")
    args = (*models, "--tune", "std=fit", "--steps", "4,2", "--quiet", "--out", out)
    outcome = command(*args)
    assert outcome.code == 0
    entries = tomllib.loads((out / "tuned.toml").read_text())["models"]
    assert set(entries) == {"adm-final-tuned", "adm-ip-final-tuned"}
    correction = entries["adm-ip-final-tuned"]["corrections"][0]
    assert correction == {**FINAL_ENTRY, "std": [0.754899] * 2}
    assert not (out / "cells").exists()
    assert pd.read_csv(out / "fitted.csv")["images"].tolist() == [1442] * 4
    used = ("--config", out / "tuned.toml", "--models", "adm,adm-final-tuned", "--steps", "3", "--dry-run")
    assert "variance-normalisation-final std 0.7549" in command(*used).out
