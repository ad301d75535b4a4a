"""The tests of normality, on errors whose distribution is known."""

import numpy as np
import pytest
import scipy.stats
from synthetic_results import drawn_texts, make_cell

from analysis.normality import error_normality as normality
from analysis.normality.error_normality import analyse, normality_table, per_cell, summary_table
from analysis.normality.shapiro import benjamini_hochberg, level_statistics, power_table, shapiro_wilk
from analysis.output.entries import Output
from analysis.records.load import load_results

PIXELS = 64


def errors_of(draw, images=200, levels=2):
    return {
        "errors": draw((levels, images, 1, 8, 8)).astype(np.float32),
        "i": np.arange(levels), "t": np.linspace(0, 999, levels), "part": np.array(["train"] * images),
    }  # fmt: skip


def normal(seed):
    rng = np.random.default_rng(seed)
    return lambda size: 0.3 * rng.standard_normal(size)


def laplace(seed):
    rng = np.random.default_rng(seed)
    return lambda size: rng.laplace(size=size)


def share_error(share, samples=PIXELS):
    """Standard error of a share of independent samples."""
    return np.sqrt(share * (1 - share) / samples)


def test_gaussian_errors_are_rejected_at_the_level(tmp_path):
    make_cell(tmp_path, "adm", errors=errors_of(normal(0)))
    table = normality_table(per_cell(load_results(tmp_path)))
    assert (table["rejected"] < 0.05 + 4 * share_error(0.05)).all()
    assert (table["rejected_fdr"] < 0.05).all()
    # Over 64 pixels of 200 images the error of the unbiased kurtosis is sqrt(24 / 200 / 64) = .043.
    assert (table["excess_kurtosis"].abs() < 4 * 0.043).all()
    assert table["t"].tolist() == [0.0, 999.0]
    assert (table["n"].tolist(), table["n_published"].tolist()) == ([200, 200], [100, 100])


def test_laplace_errors_are_found_out_as_often_as_the_power_says(tmp_path):
    make_cell(tmp_path, "adm", errors=errors_of(laplace(0), images=300))
    table = normality_table(per_cell(load_results(tmp_path)))
    power = power_table(100, 300).set_index(["n", "distribution"])["rejected"]
    published, full = power[100, "Laplace"], power[300, "Laplace"]
    assert full > 0.99 > 0.9 > published  # about .80
    # Shares of 2000 draws: standard error at most .011.
    assert abs(power[100, "normal"] - 0.05) < 0.02
    assert power[100, "normal"] < power[100, "logistic"] < published
    # Shares of 64 pixels; that of the power table is known to .009 and adds nothing here.
    assert (np.abs(table["rejected"] - published) < 4 * share_error(published)).all()
    assert (table["rejected_fdr"] > 1 - 4 * share_error(full) - 0.03).all()
    assert (table["excess_kurtosis"] > 2).all()  # 3 in the limit; biased down by about 3 * 6 / 300 * 3


def test_the_published_draw_is_a_hundred_images_of_each_pixel_always_the_same():
    errors = np.random.default_rng(0).standard_normal((250, 1, 8, 8))
    first = level_statistics(errors)
    assert level_statistics(errors) == first
    assert (first["n"], first["n_published"]) == (250, 100)
    exact = level_statistics(errors[:100])
    p = shapiro_wilk(errors[:100].reshape(100, -1).T)[1]
    assert exact["rejected"] == (p < 0.05).mean()  # no more than are stored


def test_kurtosis_is_scipys_unbiased_one():
    errors = np.random.default_rng(0).standard_t(5, (30, 1, 2, 2)) * 1e-90  # fourth powers would vanish
    wanted = scipy.stats.kurtosis(errors.reshape(30, -1) * 1e90, axis=0, bias=False).mean()
    assert level_statistics(errors)["excess_kurtosis"] == pytest.approx(wanted, rel=1e-12)


def test_constant_pixels_and_draws_without_range_are_left_out_and_counted():
    errors = np.zeros((6000, 1, 1, 3))  # more images than the test is defined for
    errors[0, 0, 0, 0] = 1.0  # one image in fifty draws of a hundred holds it
    errors[:, 0, 0, 1] = np.random.default_rng(0).laplace(size=6000)
    found = level_statistics(errors)
    assert (found["n"], found["pixels"], found["constant_pixels"], found["rejected_fdr"]) == (6000, 2, 1, 1.0)
    assert found["rejected"] in (0.0, 1.0)  # of one pixel, not of two
    assert np.isnan(level_statistics(np.zeros((50, 1, 2, 2)))["rejected"])


def test_benjamini_hochberg_on_the_authors_own_example():
    # Benjamini & Hochberg 1995, section 3.2: fifteen p-values, of which the procedure rejects the first four.
    p = [
        0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
        0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1,
    ]  # fmt: skip
    assert benjamini_hochberg(np.array(p)).tolist() == [True] * 4 + [False] * 11
    assert not len(benjamini_hochberg(np.zeros(0)))


def test_seeds_that_share_images_are_averaged_not_pooled(tmp_path):
    rng, images, pixels, seeds = np.random.default_rng(0), 100, (1, 20, 20), 5
    shared, own = rng.standard_normal((1, images, *pixels)), rng.standard_normal((seeds, images, *pixels))
    errors = np.sqrt(0.6) * shared + np.sqrt(0.4) * own  # normal; two seeds of an image correlate by .6
    for seed in range(seeds):
        record = {"errors": errors[seed : seed + 1], "i": np.array([0]), "t": np.array([0.0])}
        make_cell(tmp_path, "adm", seed, errors=record)
    cells = per_cell(load_results(tmp_path))
    table = normality_table(cells)
    assert (table["seeds"].tolist(), table["n"].tolist()) == ([seeds], [images])
    # 400 pixels, five dependent tests of each: at least as sure as one.
    assert abs(table["rejected"][0] - 0.05) < 4 * share_error(0.05, 400)
    assert table["rejected_sd"][0] == pytest.approx(cells["rejected"].std())
    pooled = shapiro_wilk(errors.reshape(seeds * images, -1).T)[1]
    assert (pooled < 0.05).mean() > 0.05 + 4 * share_error(0.05, 400)  # what pooling would have said: .15


def test_the_summary_is_the_mean_over_t_at_the_most_steps(tmp_path):
    for seed in range(3):
        make_cell(tmp_path, "adm", seed, steps=4, errors=errors_of(laplace(seed), 20, levels=4))
        make_cell(tmp_path, "adm", seed, steps=2, errors=errors_of(laplace(seed), 20))
    make_cell(tmp_path, "ip", 0, steps=2, errors=errors_of(laplace(9), 20))
    cells = per_cell(load_results(tmp_path))
    table = summary_table(cells).set_index("model")
    by_seed = cells[(cells["model"] == "adm") & (cells["steps"] == 4)].groupby("seed")["rejected"].mean()
    assert (table["steps"].to_dict(), table["seeds"].to_dict()) == ({"adm": 4, "ip": 2}, {"adm": 3, "ip": 1})
    assert table.loc["adm", "published"] == pytest.approx(by_seed.mean())
    assert table.loc["adm", "published_sd"] == pytest.approx(by_seed.std())
    assert np.isnan(table.loc["ip", "published_sd"])


@pytest.mark.parametrize("counts", [{"ddim": 4, "ddpm": 8}, {"ddim": 8, "ddpm": 4}])
def test_the_figure_shows_the_ancestral_sampler_the_most_steps_and_eight_models(tmp_path, monkeypatch, counts):
    models = [f"model-{number}" for number in range(8)]
    for model in models:
        for sampler, steps in (*counts.items(), ("ddpm", 2)):
            make_cell(tmp_path, model, 0, sampler, steps, errors=errors_of(normal(0), 120))
    drawn, out = drawn_texts(monkeypatch, normality), Output(tmp_path)
    analyse(load_results(tmp_path), out)
    assert {*models, f"t ({counts['ddpm']} steps)"} <= set(drawn[0])
    assert [entry.name for entry in out.entries] == [
        "normality_summary", "normality", "normality_power", "error_normality"
    ]  # fmt: skip
    assert "n = 120 training and held-out images a seed" in out.entries[-1].caption


DAMAGE = [
    {"errors": np.ones((2, 20, 8, 8))}, {"errors": np.full((2, 20, 1, 8, 8), np.nan)}, {"t": np.array([0.0])},
    {"i": np.array(["a", "b"])},
]  # fmt: skip


@pytest.mark.parametrize("wrong", DAMAGE)
def test_damaged_records_are_left_out_and_named(tmp_path, wrong):
    make_cell(tmp_path, "adm", 0, errors=errors_of(normal(0), 20))
    make_cell(tmp_path, "adm", 1, errors=errors_of(normal(0), 20) | wrong)
    results = load_results(tmp_path)
    assert set(per_cell(results)["seed"]) == {0}
    (problem,) = results.problems
    assert "adm-ddpm-4-seed1" in problem
    assert "errors.npz" in problem


@pytest.mark.parametrize("records", [{}, {"errors": errors_of(normal(0), 3)}])
def test_a_folder_without_enough_errors_gives_nothing(tmp_path, records):
    make_cell(tmp_path, "adm", **records)
    results, out = load_results(tmp_path), Output(tmp_path)
    analyse(results, out)
    assert (out.entries, results.problems) == ([], [])
