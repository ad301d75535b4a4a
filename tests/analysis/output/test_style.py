"""EDM levels are named by sigma, others by the training index."""

import numpy as np
import pandas as pd
import pytest
from cases import at_first
from synthetic_results import drawn_texts

from analysis.exposure_bias import variance, x0_error
from analysis.output import style
from analysis.records.checks import walk_name
from analysis.records.load import load_results
from bench.diffusion.schedules import edm_position
from bench.suite.settings import SAMPLER_FRAMES


@pytest.mark.parametrize("sigma", [0.002, 0.01, 0.5, 1.0, 10.0, 80.0])
def test_sigma_is_the_suites(sigma):
    # A seventh power magnifies rounding (2e-16) sevenfold, and again by sigma^(1/7) against its least value, .41.
    assert style.sigma_at(edm_position(sigma)) == pytest.approx(sigma, rel=1e-13)


def test_the_samplers_are_those_of_the_suite():
    """A walk is on EDM levels where its frame is, whatever its sampler."""
    schedules = {"vp": "cosine", "edm": "edm", "flow": "flow(3)"}
    for sampler, frames in SAMPLER_FRAMES.items():
        names = [walk_name({"sampler": sampler, "schedule": schedules[frame]}) for frame in frames]
        assert [style.is_edm(name) for name in names] == [frame == "edm" for frame in frames]
        assert len(set(names)) == len(frames)


def test_names():
    assert (style.level_name(646.0, "ddpm"), style.level_symbol("ddim")) == ("t = 646", "t")
    assert (style.level_name(999.0, "heun"), style.level_symbol("euler")) == (r"$\sigma$ = 80", r"$\sigma$")


def test_ticks_stand_where_their_sigma_is():
    with style.panels(1, 1) as (_, axes):
        axes[0, 0].plot([0, 999], [0, 1])
        style.noisy_left(axes[0, 0], "heun")
        places, labels = axes[0, 0].get_xticks(), [label.get_text() for label in axes[0, 0].get_xticklabels()]
        assert axes[0, 0].xaxis_inverted()
    assert [style.sigma_at(place) for place in places] == pytest.approx([float(label) for label in labels], rel=1e-12)
    assert np.diff(places).max() < -200  # they do not crowd


@pytest.mark.parametrize("sampler", at_first(["ddpm", "heun", "euler"], 2))
@pytest.mark.parametrize(
    ("module", "draw"), [(variance, variance.draw_variance_gap), (x0_error, x0_error.draw_x0_error)]
)
def test_figures_along_the_walk_name_its_levels(folder, monkeypatch, module, draw, sampler):
    drawn = drawn_texts(monkeypatch, module)
    draw(with_floor(folder, sampler), folder.root)
    labels = {text.split(" (levels")[0] for text in drawn[0]}
    assert style.level_symbol(sampler) in labels
    assert style.level_symbol("heun" if sampler == "ddpm" else "ddpm") not in labels


def with_floor(folder, sampler):
    """Return the steps of a cell, with a floor of .5 for pred_std."""
    folder.cell(sampler=sampler)
    steps = load_results(folder.root).steps
    floor = steps[steps["quantity"] == "excess_std"].assign(quantity="floor_std", value=0.5)
    return pd.concat([steps, floor], ignore_index=True)


def test_excess_is_relative_on_edm_levels(folder):
    both = with_floor(folder, "heun")
    plain, relative = variance._excess(both, "ddpm"), variance._excess(both, "heun")
    np.testing.assert_allclose(relative["value"], 2 * plain["value"])


def test_the_baseline_lies_on_top_and_no_panel_has_more_than_four_models():
    models = [f"m{k}" for k in range(9)]
    with style.line_panels(models, 2, ["norm", "ratio"]) as (_, rows):
        assert [" ".join(row.paint) for row in rows] == ["m1 m2 m0", "m3 m4 m5 m0", "m6 m7 m8 m0"]
        assert {row.quantity for row in rows} == {"ratio"}  # small panels of one quantity
        assert len({row.paint["m0"] for row in rows}) == 1
        assert all(len(set(row.paint.values())) == len(row.paint) for row in rows)
        widths = [rows[1].width(model) for model in rows[1].paint]
        assert widths == sorted(set(widths), reverse=True)  # of lines that coincide all are visible
    with style.line_panels(models[:4], 1, ["norm", "ratio"]) as (_, rows):
        assert [row.quantity for row in rows] == ["norm", "ratio"]
    with style.line_panels(["alone"], 1) as (_, rows):
        assert [list(row.paint) for row in rows] == [["alone"]]


def test_labels_of_step_counts_do_not_touch():
    with style.panels(1, 1) as (_, axes):
        style.step_axis(axes[0, 0], [10, 20, 50, 80, 100, 300, 1000])
        labels = [label.get_text() for label in axes[0, 0].get_xticklabels()]
    assert labels == ["10", "20", "50", "", "100", "300", "1000"]


def test_bars_of_models_lie_apart():
    places = [style.dodged([10, 100], position, 4) for position in range(4)]
    assert places == sorted(places)
    assert style.dodged([10], 0, 1) == [10]
    assert np.mean(np.log([first for first, _ in places])) == pytest.approx(np.log(10))


@pytest.mark.parametrize("number", [2, 9, 23])
def test_no_two_models_look_alike(number):
    models = [f"model{k}" for k in range(number)]
    assert len(set(style.markers(models).values())) == number
    assert len(set(style.colours(models).values())) == min(number, 8)
    with style.line_panels(models, 2) as (_, rows):
        for row in rows:
            assert len(set(row.paint.values())) == len(row.paint) <= 4
            assert models[0] in row.paint  # the baseline is in every row
        assert {model for row in rows for model in row.paint} == set(models)
