"""Quantiles and histograms, of errors whose distribution is known."""

import numpy as np
import pytest
from cases import at_first
from scipy.special import ndtri
from synthetic_results import drawn_texts, make_cell

from analysis.normality import error_shape
from analysis.normality.error_shape import analyse, histogram_table, kept_by_model, quantile_table
from analysis.output.entries import Output
from analysis.records.load import load_results

IMAGES, PIXELS = 200, 64


def kept(draw, seeds=1):
    return {"adm": {0.0: [draw((IMAGES, 1, 8, 8)) for _ in range(seeds)]}}


def quantile_error(p, density, values):
    """Standard error of the quantile of independent values."""
    return np.sqrt(p * (1 - p) / values) / density


def normal_error(table):
    """That of normal values of known mean and std; standardising by estimates can only lower it."""
    density = np.exp(-(ndtri(table["p"]) ** 2) / 2) / np.sqrt(2 * np.pi)
    return quantile_error(table["p"], density, table["values"])


@pytest.mark.parametrize("seeds", [1, 3])
def test_normal_errors_lie_on_the_diagonal(seeds):
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.1, 2, (1, 8, 8))  # of the pixels: standardised away
    table = quantile_table(kept(lambda size: 3 * spread + spread * rng.standard_normal(size), seeds))
    assert (table["values"] == IMAGES * PIXELS * seeds).all()
    assert (np.abs(table["error"] - table["normal"]) < 4 * normal_error(table)).all()
    # The jackknife over ten groups is known to 1 / sqrt(2 * 9) = 24 %; the mean over the quantiles' middle half is
    # surer, and standardising takes from the error where quantiles follow the estimated mean and std.
    middle = table["p"].between(0.25, 0.75)
    assert 0.2 < (table["se"] / normal_error(table))[middle].mean() < 1.5
    assert table["p"].min() > 10 / (IMAGES * PIXELS * seeds)


def test_small_samples_of_normal_errors_lie_on_the_diagonal_too():
    # Of four images no standardised value passes 3 / sqrt(4): quantiles of the normal distribution itself would not do.
    rng = np.random.default_rng(0)
    table = quantile_table({"adm": {0.0: [rng.standard_normal((4, 1, 100, 100))]}})
    assert table["normal"].abs().max() < 1.5
    far = np.abs(table["error"] - ndtri(table["p"])).max()
    # A uniform distribution between -1.5 and 1.5 (which Thompson's tau is for n = 4): density 1 / 3.
    assert (np.abs(table["error"] - table["normal"]) < 4 * quantile_error(table["p"], 1 / 3, table["values"])).all()
    assert far > 1


def test_laplace_errors_leave_the_diagonal():
    rng = np.random.default_rng(0)
    table = quantile_table(kept(lambda size: rng.laplace(size=size)))
    last = table.iloc[-1]
    # A Laplace quantile of unit variance is -log(2 (1 - p)) / sqrt(2), its density sqrt(2) (1 - p); standardised over
    # 200 images, whose std is known to sqrt(5 / 800) = 8 %, the tail loses some of it.
    exact = -np.log(2 * (1 - last["p"])) / np.sqrt(2)
    tolerance = 4 * quantile_error(last["p"], np.sqrt(2) * (1 - last["p"]), last["values"]) + 0.08 * exact
    assert last["error"] == pytest.approx(exact, abs=tolerance)
    assert last["error"] - 2 * last["se"] > last["normal"]
    inner = table[table["p"].between(0.6, 0.8)]
    assert (inner["error"] < inner["normal"]).all()  # peaked


def test_dependent_pixels_widen_the_band():
    rng = np.random.default_rng(0)
    alone = quantile_table(kept(lambda size: rng.standard_normal(size)))
    same = quantile_table(kept(lambda size: np.broadcast_to(rng.standard_normal((IMAGES, 1, 1, 1)), size)))
    tails = (alone["p"] < 0.1) | (alone["p"] > 0.9)
    # 64 equal pixels are one: eight times the error, each known to about a quarter.
    assert same["se"][tails].mean() > 4 * alone["se"][tails].mean()


def test_seeds_that_repeat_the_same_errors_do_not_narrow_the_band():
    errors = np.random.default_rng(0).standard_normal((IMAGES, 1, 8, 8))
    one, three = (quantile_table({"adm": {0.0: [errors] * seeds}}) for seeds in (1, 3))
    both = one.merge(three, on="p", suffixes=("", "_three"))
    # Equal but for interpolation between neighbours, which counts where ten values are left; never 1 / sqrt(3) = .58.
    assert (both["se_three"] / both["se"]).between(0.8, 1.25).all()


def test_constant_pixels_are_left_out():
    rng = np.random.default_rng(0)
    errors = rng.standard_normal((IMAGES, 1, 8, 8))
    errors[:, :, 4] = 0.25  # with the central one
    assert (quantile_table({"adm": {0.0: [errors]}})["values"] == IMAGES * (PIXELS - 8)).all()
    assert set(histogram_table({0.0: [errors]})["what"]) == {"all pixels, standardised"}
    assert not len(quantile_table({"adm": {0.0: [np.zeros((IMAGES, 1, 8, 8))]}}))


def test_histograms_are_those_of_the_central_pixel_and_of_all():
    rng = np.random.default_rng(0)
    errors = rng.standard_normal((5000, 3, 4, 4))
    errors[:, -1, 2, 2] = 0.5 + 0.1 * rng.standard_normal(5000)
    table = histogram_table({0.0: [errors[:2500], errors[2500:]]})
    for what, scale in (("central pixel", 0.1), ("all pixels, standardised", 1.0)):
        here = table[table["what"] == what]
        width = here["right"] - here["left"]
        values = here["values"].iloc[0]
        assert values == (5000 if what == "central pixel" else 5000 * 48)
        assert (here["density"] * width).sum() == pytest.approx(1, abs=1e-3)  # but for what is beyond 4 std: 6e-5
        # Counts of a bin have the standard error sqrt(n p); the density at a bin's middle is off by width^2 / 24 of its
        # curvature, at most 1 / std^3 / sqrt(2 pi).
        expected = here["normal"] * width
        bend = width**3 / 24 / scale**3 / np.sqrt(2 * np.pi)
        assert (
            np.abs(here["density"] * width - expected) < 4 * np.sqrt(expected / values + 1 / values**2) + bend
        ).all()
    assert table[table["what"] == "central pixel"]["normal"].idxmax() in range(12, 18)


def record(rng, levels=6):
    shape = (levels, 20, 1, 4, 4)
    return {"errors": rng.standard_normal(shape), "i": np.arange(levels), "t": np.linspace(0, 999, levels)}


def test_the_most_steps_of_the_ancestral_sampler_at_four_t(tmp_path):
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        make_cell(tmp_path, "adm", seed, steps=6, errors=record(rng))
    make_cell(tmp_path, "adm", 0, steps=4, errors=record(rng, 4))
    make_cell(tmp_path, "adm", 0, "ddim", steps=8, errors=record(rng, 8))
    make_cell(tmp_path, "ip", 0, steps=8)  # without errors
    found, sampler, steps = kept_by_model(load_results(tmp_path))
    assert (list(found), sampler, steps, len(found["adm"])) == (["adm"], "ddpm", 6, 4)
    assert {0.0, 999.0} <= set(found["adm"])
    assert [len(seeds) for seeds in found["adm"].values()] == [2] * 4


@pytest.mark.parametrize("levels", at_first([6, 1, 2], 2))
def test_figures(tmp_path, monkeypatch, levels):
    rng = np.random.default_rng(0)
    models = [f"model-{number}" for number in range(8)]
    for model in models:
        make_cell(tmp_path, model, errors=record(rng, levels))
    drawn, out = drawn_texts(monkeypatch, error_shape), Output(tmp_path)
    analyse(load_results(tmp_path), out)
    assert [entry.name for entry in out.entries] == [
        "error_quantiles", "error_quantiles", "error_histogram", "error_histogram"
    ]  # fmt: skip
    assert set(models) <= set(drawn[0])
    assert {"t = 0", "model-0"} <= set(drawn[1])
    assert "model-1" not in drawn[1]
    assert all("n = 20 training and held-out images" in entry.caption for entry in out.entries)
