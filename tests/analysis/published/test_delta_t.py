import numpy as np
import pytest
from synthetic_results import assert_figures

from analysis.published import delta_t
from analysis.published.tables import load_published
from bench.diffusion.schedules import alpha_bars, levels


def test_cosine_schedule_is_the_suites():
    t = np.arange(999)  # the last index is capped there
    np.testing.assert_allclose(delta_t.cosine_alpha_bar(t), alpha_bars("cosine", 1000)[:-1], rtol=1e-10)


def test_levels_are_those_of_20_respaced_steps():
    table = delta_t.delta_table()
    visited = [level.t for level in levels("cosine", 1000, "20")][1:-1]  # all but the start and the clean one
    assert (table["t"].tolist(), table["timestep"].tolist()) == (visited, list(range(19, 0, -1)))
    # The carried alpha_bar has eight digits.
    carried = load_published("delta_t_floor_cifar10_20step")["alpha_bar"]
    np.testing.assert_allclose(1 - table["sigma"] ** 2, carried, atol=1e-8)


def test_the_floor_is_that_of_the_mean_pixel_but_for_jensens_gap():
    # floor = mean of f(s), f(s) = sqrt(a + b s^2) with a = 1 - alpha_bar, b = 2 alpha_bar, is convex in the pixel's std
    # s, so it lies above f(mean s) by f'' Var(s) / 2 + ..., f'' = a b / (a + b s^2)^1.5. Var(s) is one number for all
    # levels; from the widest gap it is .00136 (pixels' stds .49 +- .04). Its higher orders scale with the spread over
    # s, (.04 / .49) of the gap. The mean std is known to 5e-5, which moves f by at most sqrt(2) 5e-5.
    table = delta_t.delta_table()
    alpha_bar = 1 - table["sigma"] ** 2
    a, b, s = 1 - alpha_bar, 2 * alpha_bar, delta_t.MEAN_PIXEL_STD
    gap = table["floor_std"] - delta_t.floor_of_mean(alpha_bar.to_numpy())
    curvature = a * b / (a + b * s**2) ** 1.5
    variance = 2 * gap.max() / curvature[gap.idxmax()]
    assert 0.03 < np.sqrt(variance) < 0.05
    rounding = np.sqrt(2) * 5e-5
    assert (gap > -rounding).all()
    predicted = curvature * variance / 2
    assert (abs(gap - predicted) < rounding + np.sqrt(variance) / s * predicted).all()


def test_published_minus_floor_is_as_computed_before():
    # The design's own table, six digits: std of the published curve minus the floor's.
    excess = delta_t.delta_table().set_index("timestep")["excess_std"]
    assert excess[[19, 12, 8, 5]].tolist() == pytest.approx([0.002753, 0.002146, -0.000343, -0.004128], abs=1e-6)
    assert excess[[4, 3, 2, 1]].isna().all()  # the published series is cut


def test_the_published_curve_is_nearly_all_floor():
    table = delta_t.delta_table().dropna(subset="delta_t")
    large = table[table["delta_t"] > 0.001]
    assert len(large) == 11
    assert (large["delta_t_floor"] / large["delta_t"]).between(0.9, 1.03).all()


def test_a_perfect_sampler_shows_the_floor(exact_steps):
    # Images of an exact sampler (variance mode exact): their published delta_t is the floor of the same levels.
    steps = exact_steps("exact")
    free = steps[(steps["arm"] == "free") & steps["quantity"].isin(["pred_std", "floor_std"])]
    wide = free.pivot(index="i", columns="quantity", values="value")
    # A pixel's std from 4000 images is off by a share of 1 / sqrt(2 * 4000) = .011, and pixels may move together.
    assert (abs(wide["pred_std"] / wide["floor_std"] - 1) < 4 * 0.011).all()


def test_the_caption_of_the_figure_gives_the_share(tmp_path):
    table = delta_t.delta_table()
    assert_figures(delta_t.draw_published_delta(table, tmp_path), "published_delta_t")
    text = delta_t.caption(table)
    assert "the floor is 90 to 102 % of it" in text
    assert "-0.0041 to +0.0028" in text
