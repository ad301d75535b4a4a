"""Records of exact samplers: which arms they have, what is missing and why, and whom they serve."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from cases import at_first

from bench.data import Dataset
from bench.measure.instruments.floors import GaussianFloors
from bench.measure.instruments.moments import PixelMoments
from bench.measure.quality.embedded_statistics import EmbeddedStatistics, Unseen
from bench.suite.cells.reference import Reference
from bench.suite.experiments import exact
from bench.suite.experiments.exact import plan_exact

WALKED = ("mixture", "mixture-forced", "empirical", "empirical-forced")


@pytest.fixture(autouse=True)
def as_many_walks_as_in_a_run(monkeypatch):
    monkeypatch.setattr(exact, "_MANY", 1024)
    monkeypatch.setattr(exact, "_FEW", 256)


@pytest.fixture
def compute(make_context, tmp_path):
    """Return a function that computes the record of one cell; gives its table, spectra and facts."""

    def make(cell, data):
        (record,) = plan_exact([cell])
        record.compute(make_context(None, data=data), tmp_path)
        assert record.is_complete(tmp_path)
        assert record.cost() == record.remaining(tmp_path) == 0
        folder = record.folders(tmp_path)[0].path
        facts = json.loads((folder / "exact.json").read_text())
        with np.load(folder / "spectra.npz") as spectra:
            return pd.read_csv(folder / "record.csv"), dict(spectra), facts

    return make


def test_a_record_has_three_laws(compute, make_cell, small_data):
    cell = make_cell(spacing="ddim")
    table, spectra, facts = compute(cell, small_data)
    arms = {"gaussian", "gaussian-paired", "gaussian-forced", *WALKED}
    assert set(table["arm"]) == arms
    assert table["note"].isna().all()
    description, of_cell = facts["exact"], cell.description()
    assert {name: description[name] for name in description if name != "version"}.items() <= of_cell.items()
    walked = table[table["arm"].isin(WALKED)]
    assert (walked["n"] == 1024).all()
    assert {"eps_norm", "eps_rms", "variance_ratio", "delta_t", "excess_std"} <= set(walked["quantity"])
    # Single steps start from the law itself: the first state's variance is right but for chance and the step.
    assert set(spectra) == {"i", *(f"{arm}/{kind}_{of}" for arm in arms for kind in ("spectrum", "haar")
                                   for of in ("state", "x0"))}  # fmt: skip
    assert spectra["gaussian/spectrum_state"].shape == spectra["empirical/spectrum_x0"].shape == (4, 4)
    rows = table[table["arm"].str.startswith("gaussian")]
    path, instruments = cell.levels(), cell.instruments
    reference = GaussianFloors(_law(small_data), path, instruments.indices, cell.solver(), True)
    assert len(rows) == len(reference.rows)
    wanted = {(row.arm, row.i, row.quantity): row.value for row in reference.rows}
    for row in rows.itertuples():
        assert row.value == pytest.approx(wanted[row.arm, row.i, row.quantity], rel=1e-6, abs=1e-9)


def _law(data):
    return Reference(data, None).gaussian("cosine", 1000)


@pytest.mark.parametrize("law", at_first(["mixture", "empirical"], 1))
def test_single_steps_of_an_exact_denoiser_are_unbiased(compute, make_cell, small_data, law):
    """Away from the clean end a learned variance keeps the law: a ratio of 1 within five errors and a twentieth."""
    table, *_ = compute(make_cell(steps=20, variance="learned"), small_data)
    rows = table[(table["arm"] == f"{law}-forced") & (table["quantity"] == "variance_ratio") & (table["i"] > 3)]
    assert len(rows)
    assert ((rows["value"] - 1).abs() < 5 * rows["std"] / np.sqrt(rows["n"]) + 0.05).all()


def test_what_is_missing_says_why(compute, make_cell, small_data, monkeypatch):
    plain = replace(small_data, labels=torch.zeros_like(small_data.labels))
    table, *_ = compute(make_cell(), plain)
    assert notes(table) == {"mixture": "the images are too large, or have no classes of at least two images"}
    monkeypatch.setattr(exact, "_LARGE", 1)
    monkeypatch.setattr(exact, "_STEPS", 3)
    table, *_ = compute(make_cell(), small_data)
    assert set(table["arm"]) == {"gaussian", "gaussian-forced", "mixture", "empirical"}
    assert set(notes(table).values()) == {"more than 3 steps are too expensive"}
    table, *_ = compute(make_cell(steps=3), small_data)
    assert (table[table["arm"].isin(WALKED)]["n"] == 256).all()  # few walks of large data


def notes(table):
    empty = table[table["note"].notna()]
    assert empty[["i", "quantity", "value"]].isna().all(axis=None)
    return dict(zip(empty["arm"], empty["note"], strict=True))


def test_without_images_the_committed_covariance_serves(compute, make_cell, small_data):
    pixels = PixelMoments.of_training(small_data)
    whole = _law(small_data)
    for law, missing in ((whole, set()), (type(whole).of_eigenvalues(whole.values, whole.mean), {"gaussian"}),
                         (None, {"gaussian"})):  # fmt: skip
        data = _unseen(small_data, pixels, law)
        table, *_ = compute(make_cell(sampler="ddim", variance=None), data)
        assert set(notes(table)) == {"mixture", "empirical"} | missing
        assert ("gaussian-forced" in set(table["arm"])) == (law is not None)
    bare = _unseen(small_data, pixels, type(whole).of_eigenvalues(whole.values, whole.mean))
    table, *_ = compute(make_cell(), bare)  # a learned variance differs between pixels
    assert set(table["arm"]) == {"gaussian", "mixture", "empirical"}


def _unseen(data, pixels, law):
    embedded = EmbeddedStatistics(data.name, data.content_hash(), 18, pixels, law)
    nothing = torch.empty(0, dtype=torch.int64)
    images = torch.empty(0, *pixels.mean.shape, dtype=torch.uint8)
    return Unseen(data.name, images, nothing, nothing.bool(), embedded=embedded)


def test_models_and_seeds_share_a_record(make_cell):
    cells = [
        make_cell(steps=steps, seed=seed, clip=clip) for steps in (2, 3) for seed in (0, 1) for clip in (True, False)
    ]
    assert [record.folder_name for record in plan_exact(cells)] == ["cosine-1000-ddpm-2", "cosine-1000-ddpm-3"]
    assert plan_exact([make_cell(measure=("normality",)), make_cell(measure=())]) == []


def test_images_of_one_value_are_no_obstacle(compute, make_cell):
    black = Dataset("black", torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8) % 2, torch.zeros(8).bool())
    table, *_ = compute(make_cell(steps=2), black)
    assert np.isfinite(table["value"].dropna()).all()
