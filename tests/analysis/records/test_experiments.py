"""Exact samplers stand beside the cells on whose levels they walked."""

import pandas as pd
import pytest
from records import edited

from analysis.exposure_bias.norms import norm_table
from analysis.exposure_bias.variance import variance_table
from analysis.records.load import load_results
from bench.suite.settings import short_hash


def exact_table(steps, **norms):
    """Rows of each law, free and forced; the norm of a law free running is given, forced it is 1."""
    rows = [
        [arm, i, 0, float(i), 0.7, 0.7, None if law == "gaussian" else 256, quantity, value, 0.1, ""]
        for law, norm in norms.items() for i in range(steps)
        for arm, quantity, value in (
            (law, "eps_rms", norm), (f"{law}-forced", "eps_rms", 1.0), (law, "variance_ratio", norm),
        )
    ]  # fmt: skip
    columns = ["arm", "i", "stage", "t", "alpha", "sigma", "n", "quantity", "value", "std", "note"]
    note = pd.DataFrame([{"arm": "mixture", "note": "no classes"}])
    return pd.concat([pd.DataFrame(rows, columns=columns), note], ignore_index=True)


@pytest.fixture
def walked(folder, make_record):
    """Two models of two seeds at 10 steps and one cell at 20, and what exact samplers do at 10."""
    for model, steps, seed in (("adm", 10, 0), ("adm", 10, 1), ("ip", 10, 0), ("ip", 10, 1), ("adm", 20, 0)):
        cell = folder.cell(model, steps, seed)
        table = pd.read_csv(cell / "steps.csv")
        table[table["arm"] != "gaussian"].to_csv(cell / "steps.csv", index=False)
    path = folder.root / "exact" / "cosine-1000-ddpm-10"
    make_record(path, "exact", exact_table(10, gaussian=1.1, empirical=1.3), sampler="ddpm", steps=10, data="toy")
    return folder


def test_rows_join_the_cells_of_their_levels(walked):
    results = load_results(walked.root)
    assert results.problems == []
    steps = results.steps
    exact = steps[steps["arm"].isin(["gaussian", "empirical"])]
    places = exact.groupby("arm", observed=True)[["model", "steps", "seed"]].apply(
        lambda rows: set(rows.itertuples(index=False, name=None))
    )
    assert places["gaussian"] == {("adm", 10, 0), ("adm", 10, 1), ("ip", 10, 0), ("ip", 10, 1)}
    assert places["empirical"] == {("adm", 10, 0), ("ip", 10, 0)}  # a walk is no more images for more seeds


def test_floors_stand_in_the_tables_of_norms_and_variance(walked):
    steps = load_results(walked.root).steps
    norms, variance = norm_table(steps), variance_table(steps)
    for table in (norms, variance):
        at_10 = table[table["steps"] == 10]
        assert at_10["exact_gaussian"].dropna().unique() == pytest.approx([1.1])
        assert at_10["exact_empirical"].dropna().unique() == pytest.approx([1.3])
        assert table.loc[table["steps"] == 20, ["exact_gaussian", "exact_empirical"]].isna().all(axis=None)
    assert variance.loc[variance["steps"] == 10, "few_steps"].dropna().unique() == pytest.approx([0.1])


@pytest.mark.parametrize("damage", ["version", "file", "missing"])
def test_a_damaged_record_is_named_and_left_out(walked, make_record, damage):
    path = walked.root / "exact" / "cosine-1000-ddpm-10"
    if damage == "version":
        make_record(path, "exact", exact_table(10, gaussian=1.1), version=9, sampler="ddpm", steps=10)
    elif damage == "file":
        (path / "record.csv").write_text("arm\n")
    else:
        (path / "exact.json").unlink()
    results = load_results(walked.root)
    assert not (results.steps["arm"] == "gaussian").any()
    [problem] = results.problems
    assert "cosine-1000-ddpm-10" in problem


def test_models_whose_description_does_not_fit_are_named(folder, make_record):
    """By what their cells say of network and data; the worst level is quoted, and one without a slope is worst."""
    for model in ("adm", "wrong"):
        cell = folder.cell(model)
        with edited(cell / "metrics.json") as facts:
            facts["cell"] |= {"weights": "a", "network": "n", "prediction": "v" if model == "wrong" else None}
            facts["key"] = short_hash(facts["cell"])
    for prediction, values in (("v", (0.7, 0.4)), (None, (1.0, 1.1))):
        table = pd.DataFrame({"sigma": [0.5, 0.9], "slope": values, "error": 0.01})
        table["off"] = ["yes" if abs(value - 1) > 0.2 else "no" for value in values]
        described = {"prediction": prediction} if prediction else {}
        path = folder.root / "slopes" / str(prediction)
        make_record(path, "slopes", table, weights="a", network="n", data="toy", **described)
    assert load_results(folder.root).misfits == {"wrong": "at sigma 0.9 the slope is 0.40 ± 0.01, not 1"}
    (folder.root / "slopes" / "v" / "record.csv").write_text("")
    results = load_results(folder.root)
    assert (results.misfits, len(results.problems)) == ({}, 1)
