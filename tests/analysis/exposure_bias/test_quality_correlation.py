import math

import numpy as np
import pandas as pd
import pytest
from synthetic_results import assert_figures

from analysis.exposure_bias.quality_correlation import (
    DEFINITIONS,
    analyse,
    correlation_table,
    diagnostics_table,
    draw_diagnostics,
)
from analysis.output.entries import Output
from analysis.records.load import load_results


def rows(arm, quantity, values, first):
    """Rows of one quantity at levels first, first + 1, ..., the least noisy one first."""
    return [[arm, first + k, 0, float(k), 0.7, 0.7, 20, quantity, value, 0.1] for k, value in enumerate(values)]


COLUMNS = ["arm", "i", "stage", "t", "alpha", "sigma", "n", "quantity", "value", "std"]
BY_HAND = [
    *rows("free", "eps_norm", [2.0, 1.0], 0),
    *rows("forced-train", "eps_norm", [1.0, 2.0], 0),
    *rows("forced-heldout", "eps_norm", [2.0, 0.5], 0),
    *rows("free", "variance_ratio", [0.8, 1.3, 1.1], -1),
    *rows("gaussian", "variance_ratio", [0.9, 1.0, 1.0], -1),
    *rows("free", "excess_std", [-0.2, 0.1, 0.4], -1),
    *rows("free", "delta_t", [0.9, 0.5, 0.3], -1),
    *rows("free", "clipped", [0.0, 0.5], 0),
    *rows("forced-heldout", "x0_rmse", [0.2, 0.4], 0),
    *rows("forced-train", "x0_rmse", [0.1, 0.4], 0),
]


def measured(folder, table=BY_HAND, **cell):
    made = folder.cell(probes=False, steps=3, **cell)
    pd.DataFrame(table, columns=COLUMNS).to_csv(made / "steps.csv", index=False)
    return diagnostics_table(load_results(folder.root)).iloc[0]


def test_measures_by_hand(folder):
    found = measured(folder, value=3.5)
    wanted = {
        "eps_gap": math.log(2),
        "eps_gap_signed": 0,
        "eps_gap_heldout": math.log(2) / 2,
        "eps_gap_heldout_signed": math.log(2) / 2,
        "variance_end": 0.2,
        "variance_along": (0.2 + 0.3 + 0.1) / 3,
        "variance_network": (0.1 + 0.3 + 0.1) / 3,
        "excess_std": 0.7 / 3,
        "excess_std_signed": 0.1,
        "delta_t": 0.5,
        "x0_rmse_heldout": 0.3,
        "x0_rmse_ratio": 1.5,
        "clipped": 0.25,
        "nn_ratio": 0.9,
    }
    assert set(wanted) == set(DEFINITIONS)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert (found["fd"], found["model"], found["seed"]) == (3.5, "adm", 0)


def test_what_was_not_recorded_is_empty(folder):
    found = measured(folder, [row for row in BY_HAND if row[0] not in ("forced-heldout", "gaussian")])
    empty = {"eps_gap_heldout", "eps_gap_heldout_signed", "variance_network", "x0_rmse_heldout", "x0_rmse_ratio"}
    assert {name for name in DEFINITIONS if math.isnan(found[name])} == empty


def test_an_edited_norm_of_0_breaks_nothing(folder):
    edited = [[*row[:8], 0.0, row[9]] if row[:2] == ["free", 0] and row[7] == "eps_norm" else row for row in BY_HAND]
    assert measured(folder, edited)["eps_gap"] == pytest.approx(math.log(2))  # of the level that is left


@pytest.mark.parametrize("mode", ["fixed-small", None])
def test_an_injected_error_of_an_exact_denoiser_is_recovered(folder, exact_steps, mode):
    # Free norms made 3 % larger. The exact sampler's own ratio is not 1 at 20 steps, so the factor is held against the
    # same table without it.
    exact = exact_steps(mode)
    larger = exact.copy()
    chosen = (larger["arm"] == "free") & (larger["quantity"] == "eps_norm")
    larger.loc[chosen, "value"] *= 1.03
    tables = []
    for name, table in {"exact": exact, "larger": larger}.items():
        made = folder.cell(name, probes=False, steps=20)
        table.drop(columns=["model", "sampler", "steps", "seed"]).to_csv(made / "steps.csv", index=False)
    tables = diagnostics_table(load_results(folder.root)).set_index("model")
    difference = tables.loc["larger", "eps_gap_signed"] - tables.loc["exact", "eps_gap_signed"]
    assert difference == pytest.approx(math.log(1.03), abs=1e-6)  # six digits in steps.csv
    ratio = exact[(exact["arm"] == "free") & (exact["quantity"] == "variance_ratio")]
    # |ratio - closed form| has mean 0.8 standard errors a level, so its mean stays below four of them.
    assert tables.loc["exact", "variance_network"] < 4 * (ratio["std"] / np.sqrt(ratio["n"].astype(float))).mean()


def cells(measures, fd, steps=None, seeds=None, models=None):
    """A table of cells with one varying measure."""
    n = len(fd)
    table = pd.DataFrame({name: np.ones(n) for name in DEFINITIONS})
    keys = {"sampler": "ddpm", "model": models or [f"m{k}" for k in range(n)], "steps": steps or 10, "seed": seeds or 0}
    return table.assign(**keys, eps_gap=measures, fd=fd)


def test_rank_correlation_by_hand():
    # Rank differences 0, 1, 1, 0: rho = 1 - 6 * 2 / (4 * 15) = .8.
    table = correlation_table(cells([0.1, 3.0, 2.0, 9.0], [1.0, 2.0, 3.0, 40.0]))
    assert table["measure"].tolist() == ["eps_gap"]  # the others do not vary
    row = table.iloc[0]
    assert (row["rho"], row["rho_settings"], row["rho_within"], row["rho_models"]) == pytest.approx((0.8,) * 4)
    assert (row["cells"], row["settings"]) == (4, 4)
    assert len(correlation_table(cells([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]))) == 0  # too few
    table = cells([0.1, 3.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0]).assign(clipped=[4.0, 3.0, 2.0, 1.0])
    assert correlation_table(table)["measure"].tolist() == ["clipped", "eps_gap"]  # the strongest come first


def test_the_step_count_is_told_from_the_rest():
    # Two step counts far apart; within each, the measure falls as the distance grows.
    steps, fd = [10] * 4 + [100] * 4, [5.0, 6.0, 7.0, 8.0, 1.0, 2.0, 3.0, 4.0]
    row = correlation_table(cells([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], fd, steps)).iloc[0]
    assert row["rho"] > 0.5
    assert row["rho_within"] == row["rho_models"] == pytest.approx(-1)


def test_the_seed_is_told_from_the_model():
    # The seed moves distance and measure up together; under one seed the models' measures order them the other way.
    seeds, models = [0] * 4 + [1] * 4, list("abcd") * 2
    table = cells([4.0, 3.0, 2.0, 1.0, 8.0, 7.0, 6.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 10, seeds, models)
    row = correlation_table(table).iloc[0]
    assert row["rho_within"] > 0.5
    assert (row["rho_models"], row["rho_settings"], row["settings"]) == (pytest.approx(-1), pytest.approx(-1), 4)


@pytest.fixture
def grid(folder):
    for model, level in {"adm": 1.0, "ip": 1.5}.items():
        for steps in (5, 20):
            for seed in (0, 1):
                folder.cell(model, steps, seed, level / steps + 0.01 * seed)
    return folder


@pytest.mark.parametrize("measures", [1, 2, 4, 6])
def test_figure(grid, tmp_path, measures):
    table = diagnostics_table(load_results(grid.root))
    correlations = pd.DataFrame({"measure": list(DEFINITIONS)[:measures]})
    correlations = correlations.assign(rho=0.5, rho_within=0.2, rho_models=float("nan"))
    assert_figures(draw_diagnostics(table, correlations, "fd_toy", tmp_path), "diagnostics")


def test_everything_is_written(grid):
    out = Output(grid.root)
    analyse(load_results(grid.root), out)
    names = [entry.name for entry in out.entries]
    assert names == ["diagnostics", "quality_predictors", "diagnostics"]  # two tables and the figure
    assert all("N = 20 samples a seed, 2 seeds" in entry.caption for entry in out.entries)
    assert "not independent" in out.entries[1].caption


@pytest.mark.parametrize("probes", [True, False])
def test_nothing_is_written_of_few_cells_or_no_records(folder, probes):
    for seed in range(3 if probes else 6):
        folder.cell("adm", 10, seed, 1.0 + seed, probes=probes)
    out = Output(folder.root)
    analyse(load_results(folder.root), out)
    assert out.entries == []
