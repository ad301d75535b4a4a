"""The effective timestep, on curves whose inverse is known, and chains, on records made by hand."""

import numpy as np
import pandas as pd
import pytest

from analysis.exposure_bias.response import analyse, effective_table, invert
from analysis.output.entries import Output
from analysis.records.load import load_results


def test_a_line_is_inverted_exactly():
    t = np.array([-3.0, -1.0, 0.0, 2.0])
    assert invert(t, 5 + 2 * t, 6.0) == pytest.approx((0.5, 2.0))
    assert invert(t, 5 - 2 * t, 6.0) == pytest.approx((-0.5, -2.0))


def test_a_value_the_curve_never_takes_has_no_inverse():
    t = np.array([-1.0, 0.0, 1.0])
    assert np.isnan(invert(t, t, 3.0)).all()
    assert np.isnan(invert(t, np.ones(3), 1.0)).all()  # a flat curve tells nothing


def test_of_several_crossings_the_nearest_counts():
    t = np.array([-10.0, -4.0, 0.0, 1.0, 20.0])
    shift, _ = invert(t, np.array([0.0, 2.0, 0.0, 2.0, 0.0]), 1.0)
    assert shift == pytest.approx(0.5)


def curves(levels, slope=0.02, n=100):
    """Responses norm = 8 + slope * (t - s) at several conditioning levels."""
    rows = [
        {"model": "adm", "steps": 10, "s": s, "t": t, "n": n, "part": "heldout", "norm": 8 + slope * (t - s),
         "norm_std": 0.5, "energy": 64.0}
        for s in levels for t in sorted({0, 250, 500, 750, 999, s})
    ]  # fmt: skip
    return pd.DataFrame(rows)


def sampled(levels, shift, slope=0.02):
    """Per-step rows of sampling whose norm is that of states ``shift`` timesteps noisier."""
    rows = [
        {"arm": "free", "i": i, "stage": 0, "t": float(t), "alpha": 0.7, "sigma": 0.7, "n": 400, "quantity": "eps_norm",
         "value": 8 + slope * shift, "std": 1.0, "model": "adm", "sampler": "ddpm", "steps": 10, "seed": 0}
        for i, t in enumerate(levels)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("shift", [-30.0, 0.0, 12.5])
def test_an_injected_shift_is_recovered(shift):
    levels = [250, 500, 750]
    table = effective_table(curves(levels), sampled(levels, shift))
    assert np.allclose(table["shift"], shift)
    # Error of the sampled mean 1 / sqrt(400) = .05, of the real one .5 / sqrt(100) = .05; over the slope .02.
    assert np.allclose(table["error"], np.hypot(0.05, 0.05) / 0.02)
    assert table["n"].tolist() == [400, 400, 400]


def test_levels_that_were_not_asked_are_left_out():
    table = effective_table(curves([250, 500]), sampled([250, 333], 5.0))
    assert table["t"].tolist() == [250]


def test_the_analysis_reads_records_and_writes_its_table(folder, make_record):
    cell = folder.cell("adm", 10)
    steps = pd.read_csv(cell / "steps.csv")
    levels = steps.loc[steps["arm"] == "free", "t"].unique().astype(int).tolist()
    make_record(folder.root / "response" / "adm-10", "response", curves(levels))
    out = Output(folder.root)
    results = load_results(folder.root)
    analyse(results, out)
    assert (results.problems, {entry.name for entry in out.entries}) == ([], {"response", "effective_timestep"})
    assert {path.name for path in out.figures.iterdir()} == {"response.png", "effective_timestep.png"}
    written = pd.read_csv(folder.root / "tables" / "effective_timestep.csv")
    assert set(written["t"]) <= set(levels)
