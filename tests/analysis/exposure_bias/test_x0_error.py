"""nu_t, its map and gamma, on errors whose spread is known."""

import numpy as np
import pandas as pd
import pytest
from synthetic_results import drawn_texts, make_cell

from analysis.exposure_bias import x0_error
from analysis.exposure_bias.x0_error import analyse, gamma_table, nu_table, pixel_spread
from analysis.output.entries import Output
from analysis.records.load import load_results

IMAGES = 400
TIMES = np.array([0.0, 500.0, 999.0])
NU = np.array([0.1, 0.3, 0.8])
SHAPE = np.linspace(0.5, 1.5, 16).reshape(1, 4, 4)  # of the pixels' std, mean 1


def errors_of(seed, scale=1.0):
    noise = np.random.default_rng(seed).standard_normal((3, IMAGES, 1, 4, 4))
    return scale * NU[:, None, None, None, None] * SHAPE * noise


def moments_of(errors):
    counts = np.full(len(errors), float(errors.shape[1]))
    return {
        "t": TIMES, "i": np.arange(3), "forced-train/error/count": counts,
        "forced-train/error/mean": errors.mean(1), "forced-train/error/second": (errors**2).mean(1),
    }  # fmt: skip


def rows_of(errors, arms=("forced-train", "forced-heldout")):
    """Rows of steps.csv as ``bench.measure.instruments.step_table`` writes them: mean and spread over pixels of the std
    over images."""
    std = errors.std(1, ddof=1).reshape(3, -1)
    rows = [
        [arm, i, 0, TIMES[i], 0.7, 0.7, IMAGES, "x0_nu", std[i].mean(), std[i].std()] for arm in arms for i in range(3)
    ]
    return pd.DataFrame(rows, columns=["arm", "i", "stage", "t", "alpha", "sigma", "n", "quantity", "value", "std"])


def add(root, model, seed=0, steps=3, scale=1.0, **arms):
    errors = errors_of(seed, scale)
    make_cell(root, model, seed, steps=steps, moments=moments_of(errors))
    rows_of(errors, **arms).to_csv(root / "cells" / f"{model}-ddpm-{steps}-seed{seed}" / "steps.csv", index=False)


def nu_error(images=IMAGES, pixels=16):
    """Relative standard error of nu: each pixel's std is known to 1 / sqrt(2 (n - 1)); SHAPE adds sqrt(1 + var)."""
    return np.sqrt(1 + SHAPE.var()) / np.sqrt(2 * (images - 1) * pixels)


def test_nu_is_recovered_with_its_range_over_pixels_and_a_map_of_variances_pooled_over_seeds(tmp_path):
    for seed in (0, 1):
        add(tmp_path, "adm", seed)
    results = load_results(tmp_path)
    ((walk, levels),) = pixel_spread(results).items()
    assert walk == ("adm", "ddpm", 3)
    wanted = np.sqrt(np.mean([errors_of(seed).var(1, ddof=1) for seed in (0, 1)], axis=0))
    # Moments against centred squares, in float64: the square of a mean is at most 1e-2 of the variance.
    assert np.allclose([levels[t] for t in TIMES], wanted, rtol=1e-12)
    table = nu_table(results.steps, {walk: levels}).set_index(["arm", "t"])
    trained = table.loc["forced-train"].sort_index()
    assert (np.abs(trained["nu"] / NU - 1) < 4 * nu_error() / np.sqrt(2)).all()
    # The extreme pixels are half and one and a half of nu; each is known to 1 / sqrt(2 * 798), of sixteen.
    pixel = 4 / np.sqrt(2 * 2 * (IMAGES - 1))
    assert (np.abs(trained["pixel_min"] / (0.5 * NU) - 1) < pixel).all()
    assert (np.abs(trained["pixel_max"] / (1.5 * NU) - 1) < pixel).all()
    assert (trained["seeds"] == 2).all()
    assert (trained["n"] == IMAGES).all()
    assert table.loc["forced-heldout"]["pixel_min"].isna().all()


def test_gamma_is_half_the_mean_of_nu_at_the_most_steps(tmp_path):
    add(tmp_path, "adm", 0, steps=3)
    add(tmp_path, "adm", 1, steps=3)
    add(tmp_path, "adm", 0, steps=4, scale=2.0)
    table = gamma_table(load_results(tmp_path).steps)
    assert (table["steps"] == 4).all()
    trained = table[table["arm"] == "forced-train"].iloc[0]
    # The mean over three t of independent errors is led by the largest nu, .8 of 1.2.
    assert trained["gamma"] == pytest.approx(NU.mean(), rel=4 * nu_error())
    assert trained["mean_nu"] == 2 * trained["gamma"]
    assert np.isnan(trained["gamma_sd"])


@pytest.mark.parametrize("arms", [("forced-train", "forced-heldout"), ("forced-train",)])
def test_figures(tmp_path, monkeypatch, arms):
    models = [f"model-{number}" for number in range(8)]
    for model in models:
        add(tmp_path, model, arms=arms)
    drawn, out = drawn_texts(monkeypatch, x0_error), Output(tmp_path)
    results = load_results(tmp_path)
    analyse(results, out)
    assert [entry.name for entry in out.entries] == ["error_gamma", "error_nu", "error_nu", "error_std_map"]
    assert {*models, "training images"} <= set(drawn[0])
    assert ("held-out images" in drawn[0]) == (len(arms) == 2)
    assert sum(text.startswith("t = ") for text in drawn[1]) == 3
    gamma = gamma_table(results.steps)["gamma"][0]
    assert f"model-0 {gamma:.3f}, model-1 {gamma:.3f}" in out.entries[2].caption
    assert "1/sqrt(2(n - 1)) = 4 %" in out.entries[2].caption


def test_without_moments_there_is_no_map_and_no_range(tmp_path, monkeypatch):
    drawn_texts(monkeypatch, x0_error)
    add(tmp_path, "adm")
    (tmp_path / "cells" / "adm-ddpm-3-seed0" / "moments.npz").unlink()
    out = Output(tmp_path)
    analyse(load_results(tmp_path), out)
    assert [entry.name for entry in out.entries] == ["error_gamma", "error_nu", "error_nu"]
    assert out.entries[1].frame["pixel_min"].isna().all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("forced-train/error/second", np.ones((2, 1, 4, 4))),
        ("forced-train/error/mean", np.full((3, 1, 4, 4), np.nan)),
        ("t", np.ones(2)),
    ],
)
def test_damaged_records_are_left_out_and_named(tmp_path, name, wrong):
    make_cell(tmp_path, "adm", 0, moments=moments_of(errors_of(0)))
    make_cell(tmp_path, "adm", 1, moments=moments_of(errors_of(1)) | {name: wrong})
    results = load_results(tmp_path)
    levels = pixel_spread(results)[("adm", "ddpm", 3 + 1)]
    assert np.allclose(levels[500.0], errors_of(0)[1].std(0, ddof=1))
    (problem,) = results.problems
    assert "adm-ddpm-4-seed1" in problem
    assert "moments.npz" in problem


def test_seeds_of_other_shapes_are_named(tmp_path):
    for seed, pixels in ((0, 4), (1, 2)):
        errors = np.random.default_rng(seed).normal(size=(3, 5, 1, pixels, pixels))
        make_cell(tmp_path, "adm", seed, steps=3, moments=moments_of(errors))
    results = load_results(tmp_path)
    (levels,) = pixel_spread(results).values()
    assert {spread.shape for spread in levels.values()} == {(1, 4, 4)}
    (problem,) = results.problems
    assert "of adm (ddpm, 3 steps) hold errors of other shapes" in problem
