"""The variance gap, delta_t and the norms of an exact denoiser: what is left when few steps are taken out is 0."""

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_results import drawn_texts

from analysis.exposure_bias import delta_t as delta
from analysis.exposure_bias import variance
from analysis.exposure_bias.delta_t import draw_delta, draw_single_step, single_step_table
from analysis.exposure_bias.norms import draw_eps_norm, draw_scaling, norm_table
from analysis.exposure_bias.variance import draw_variance_gap, draw_variance_parts, final_table, variance_table
from analysis.output.selection import over_seeds, thinned
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM, Ancestral, Euler
from bench.diffusion.types import Level, Prediction

MODES = ("fixed-small", "exact", None)  # None is DDIM


@pytest.fixture(scope="module", params=MODES, ids=str)
def table(request, exact_steps):
    return exact_steps(request.param)


def test_the_network_part_of_an_exact_denoiser_is_nothing(table):
    parts = variance_table(table)
    # Independent standard errors at each level would leave one |z| in 16,000 above 4; levels of a walk share images, so
    # that fewer than their number count.
    assert len(parts) == 20
    assert parts["z"].abs().max() < 4
    assert np.allclose(parts["ratio"] - 1, parts["few_steps"] + parts["network"], atol=1e-12)


def test_few_steps_alone_bias_the_variance_unless_it_is_exact(exact_steps):
    few = {mode: final_table(variance_table(exact_steps(mode)))["few_steps"].item() for mode in MODES}
    assert abs(few["exact"]) < 1e-9  # a closed form, up to rounding
    assert few["fixed-small"] < -0.05
    assert few[None] < -0.02


def test_an_injected_gap_is_recovered(exact_steps):
    table = exact_steps("exact").copy()
    chosen = (table["arm"] == "free") & (table["quantity"] == "variance_ratio")
    table.loc[chosen, "value"] *= 0.9
    parts = variance_table(table)
    # The gap is put into the table, so what is left to chance is the unscaled ratio's own error.
    assert ((parts["network"] + 0.1).abs() < 4 * parts["error"]).all()
    assert (parts["z"] < -4).all()


def test_delta_of_an_exact_sampler_is_its_floor(exact_steps):
    table = exact_steps("exact")
    found, floor = (over_seeds(table, name, ["free"]) for name in ("delta_t", "delta_t_floor"))
    joined = found.merge(floor, on=["i", "t"], suffixes=("", "_floor"))
    excess = over_seeds(table, "excess_std", ["free"])
    assert len(joined) == len(excess) == 20
    # pred_std is a mean over 16 pixels of standard deviations from N = 4000 images; one has the standard error
    # std / sqrt(2 N) = .011 std, and their mean at most that. std is at most 1.5 here. Five of them.
    bound = 5 * 1.5 / np.sqrt(2 * 4000)
    assert excess["value"].abs().max() < bound
    root = np.sqrt(joined["value_floor"])
    assert (joined["value"] - joined["value_floor"]).abs().le(2 * root * bound + bound**2).all()
    assert joined["value_floor"].max() > 0.1  # and the floor is far from 0


def test_the_papers_formula_fails_for_an_exact_denoiser(exact_steps):
    table = single_step_table(exact_steps("fixed-small"))
    exact, measured = (table[table["arm"] == arm] for arm in ("gaussian-forced", "forced-train"))
    joined = measured.merge(exact, on="i", suffixes=("", "_exact"))
    assert len(joined) == 19
    # The measured excess is the closed form's within the relative error of a variance, sqrt(2 / N) = .022 a pixel.
    assert ((joined["conditional"] - joined["conditional_exact"]).abs() < 5 * 0.023 * (1 + joined["conditional"])).all()
    assert np.allclose(joined["formula"], joined["formula_exact"], rtol=0.15)  # e is a mean over 16 pixels and N images
    # Closed forms on both sides: the formula misses by more than a tenth of sigma^2 somewhere, and nowhere hits.
    gap = exact["conditional"] - exact["formula"]
    assert gap.max() > 0.1
    assert (gap > 0).all()


def test_formula_by_hand():
    # One step from (alpha, sigma) = (.6, .8) to (.8, .6): beta = 1 - .75^2 = .4375, c1 = .8 * .4375 / .64 = .546875.
    rows = [
        ["forced-train", 1, 5.0, 0.6, 0.8, "x0_rmse", 0.5],
        ["forced-train", 0, 2.0, 0.8, 0.6, "var_conditional", 0.45],
    ]
    table = pd.DataFrame(rows, columns=["arm", "i", "t", "alpha", "sigma", "quantity", "value"])
    found = single_step_table(table.assign(std=0.1, n=10, model="m", sampler="ddpm", steps=2, seed=0))
    assert found["formula"].item() == pytest.approx((0.546875 * 0.5 / 0.6) ** 2)
    assert found["conditional"].item() == pytest.approx(0.45 / 0.36 - 1)


@pytest.mark.parametrize(
    ("sampler", "solver", "eta"),
    [("ddpm", Ancestral("fixed-small"), 0.0), ("ddim", DDIM(), 0.0), ("ddim", DDIM(0.5), 0.5), ("euler", Euler(), 0.0)],
)
def test_the_formula_is_that_of_each_solvers_step(sampler, solver, eta):
    """Of x = alpha x0 + sigma n and x0_hat = x0 + e u with independent n, u a step is linear; its weights say all."""
    e = 0.3
    here, there = (
        (Level(500.0, 1.0, 4.0), Level(400.0, 1.0, 1.5)) if sampler == "euler" else levels("cosine", 1000, "4")[1:3]
    )
    rows = [
        ["forced-train", 1, here.t, here.alpha, here.sigma, "x0_rmse", e],
        ["forced-train", 0, there.t, there.alpha, there.sigma, "var_conditional", 0.45],
    ]
    table = pd.DataFrame(rows, columns=["arm", "i", "t", "alpha", "sigma", "quantity", "value"])
    found = single_step_table(table.assign(std=0.1, n=10, model="m", sampler=sampler, steps=2, seed=0), eta)

    total = 0.0
    for n, u, z in np.eye(3):
        x, x0 = torch.tensor([here.sigma * n]), torch.tensor([e * u])
        eps = (x - here.alpha * x0) / here.sigma
        step = solver.update(x, Prediction(eps, x0), here, there, torch.tensor([z]))
        total += step.item() ** 2
    # Double precision throughout; the excess is a difference of numbers about 1e3 times itself at most.
    assert found["formula"].item() == pytest.approx(total / there.sigma**2 - 1, rel=1e-10)


def test_a_corrected_step_has_no_formula(exact_steps, tmp_path, monkeypatch):
    table = single_step_table(exact_steps(None).assign(sampler="heun"))
    assert table["formula"].isna().all()
    assert table["conditional"].notna().all()
    drawn = drawn_texts(monkeypatch, delta)
    draw_single_step(table, tmp_path)
    assert not any("formula" in text for text in drawn[0])


@pytest.mark.parametrize("exact", [True, False])
def test_an_exact_denoiser_is_named_only_where_there_is_one(exact_steps, tmp_path, monkeypatch, exact):
    table = exact_steps("fixed-small")
    table = table if exact else table[~table["arm"].str.startswith("gaussian")]
    single = single_step_table(table)
    drawn = drawn_texts(monkeypatch, delta), drawn_texts(monkeypatch, variance)
    draw_single_step(single, tmp_path)
    draw_variance_gap(table, tmp_path)
    for (texts,) in drawn:
        assert any("exact denoiser" in text for text in texts) == exact
    assert ("exact denoiser" in delta._explanation(single)) == exact


def test_norms_of_an_exact_denoiser_agree(exact_steps):
    table = norm_table(exact_steps("exact"))
    assert len(table) == 20
    # With the exact variance the walk's states are those of real noised data at every level.
    assert ((table["ratio_train"] - 1).abs() < 4.5 * table["ratio_train_error"]).all()
    assert np.allclose(table["ratio_train"], table["ratio_after"])  # nothing was scaled or clipped


def test_injected_scaling_is_recovered(exact_steps):
    table = exact_steps("exact").copy()
    chosen = (table["arm"] == "free") & (table["quantity"] == "eps_used_norm")
    table.loc[chosen, "value"] /= 1.25
    found = norm_table(table)
    assert ((found["ratio_after"] - 0.8).abs() < 4.5 * found["ratio_after_error"]).all()


def test_thinning_keeps_both_ends_of_every_walk(exact_steps):
    table = variance_table(exact_steps("exact"))
    assert sorted(thinned(table, 5)["i"]) == [-1, 4, 9, 13, 18]
    assert thinned(table.iloc[:0]).empty


def test_figures_are_drawn(exact_steps, tmp_path):
    table = exact_steps("fixed-small")
    paths = [
        *draw_variance_gap(table, tmp_path), *draw_variance_parts(variance_table(table), tmp_path),
        *draw_delta(table, tmp_path), *draw_single_step(single_step_table(table), tmp_path),
        *draw_eps_norm(table, norm_table(table), tmp_path),
        *draw_scaling(norm_table(table), ["exact"], tmp_path),
    ]  # fmt: skip
    assert len(paths) == 6
    assert all(path.stat().st_size > 1000 for path in paths)
