"""Responses from the plan to their records, with cheap denoisers that keep what they are asked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench.data import to_unit
from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.schedules import levels
from bench.diffusion.types import Prediction
from bench.measure.instruments.response import RESPONSE_COLUMNS, response_grid
from bench.models.interface import Description
from bench.suite.cells.walks import RunError
from bench.suite.experiments.response import plan_response
from bench.suite.plan import recorded_indices
from bench.suite.registry.model import Model
from bench.suite.settings import ConfigError

NETWORK = {"in_channels": 1, "out_channels": 2}


def toy(name="toy", T=20, **changes):
    return Model(name, Path("toy.safetensors"), Description(NETWORK | changes, T=T))


@pytest.fixture
def make(make_cell):
    """Return a function that plans the only response of a cell."""

    def plan(**changes):
        (response,) = plan_response([make_cell(**{"model": toy(), "steps": 3, **changes})])
        return response

    return plan


def record(response, root, model="toy"):
    return pd.read_csv(root / "response" / f"{model}-{response.cell.steps}" / "record.csv")


# --- the plan ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "spacing"), [(3, "plain"), (50, "plain"), (5, "ddim"), (150, "plain")])
def test_levels_are_those_whose_errors_a_cell_keeps(make, make_cell, steps, spacing):
    response = make(model=toy(T=1000), steps=steps, spacing=spacing, measure=())
    told = list(dict.fromkeys(told for told, _ in response.pairs))
    cell = make_cell(model=toy(T=1000), steps=steps, spacing=spacing)
    assert told == [cell.levels()[steps - 1 - i] for i in cell.instruments.error_indices]
    assert len(told) == min(steps, 20) == len(recorded_indices(steps)[1])
    every = levels("cosine", 1000, 1000)
    for s in told:
        grid = [true for own, true in response.pairs if own == s]
        assert [true.t for true in grid] == response_grid(int(s.t), 1000)
        assert all(true == every[999 - int(true.t)] for true in grid)


@pytest.mark.parametrize(
    ("parts", "shown"), [((1442, 355), ("heldout", 128)), ((42, 18), ("heldout", 18)), ((1442, 0), ("train", 128))]
)
def test_heldout_images_are_shown_where_there_are_any(make, parts, shown):
    response = make(parts=parts)
    assert (response.part, response.cost()) == (shown, len(response.pairs) * shown[1])


def test_models_that_share_a_network_share_the_measurement(make_cell):
    models = [("a", "1" * 64, {}), ("a-es", "1" * 64, {}), ("b", "2" * 64, {}), ("c", "1" * 64, {"x": 1})]
    cells = [
        make_cell(model=toy(name, **network), weights_hash=weights, steps=steps, seed=seed)
        for name, weights, network in models
        for steps in (2, 3)
        for seed in (4, 0)
    ]
    planned = plan_response(cells)
    named = [([cell.model.name for cell in response.cells], response.cell.steps) for response in planned]
    assert named == [(["a", "a-es"], 2), (["a", "a-es"], 3), (["b"], 2), (["b"], 3), (["c"], 2), (["c"], 3)]
    assert {response.cell.seed for response in planned} == {4}  # the run's first


# --- what is computed ----------------------------------------------------------------------------------------------


class Telling:
    """Say eps = x + the level told, and keep what was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, x, level, cond=None):
        self.asked.append((level, x))
        eps = x + level.t
        return Prediction(eps, (x - level.sigma * eps) / level.alpha)


def test_a_record_is_the_networks_norm_at_every_pair(make, make_context, small_data, tmp_path):
    response, network, counted = make(seed=2), Telling(), []
    response.compute(make_context(network, counted=counted), tmp_path)
    assert len(network.asked) == len(response.pairs)
    assert sum(counted) == response.cost() == 18 * len(response.pairs)
    table = record(response, tmp_path)
    assert tuple(table.columns) == RESPONSE_COLUMNS
    assert (table[["model", "steps", "n", "part"]] == ["toy", 3, 18, "heldout"]).all(axis=None)
    x0 = to_unit(small_data.part("heldout"))
    noise = Noise(2).normal(torch.arange(18), Purpose.RESPONSE, 0, (1, 4, 4))
    for row, (told, true), (level, x) in zip(table.itertuples(), response.pairs, network.asked, strict=True):
        assert (row.s, row.t, level) == (told.t, true.t, told)
        torch.testing.assert_close(x, true.alpha * x0 + true.sigma * noise)  # the same noise at every level
        norms = (x + told.t).flatten(1).double().norm(dim=1)
        # float32 norms of 16 values: a few 1e-7 of each; their spread cancels some more.
        assert row.norm == pytest.approx(norms.mean().item(), rel=1e-6)
        assert row.energy == pytest.approx(norms.square().mean().item(), rel=1e-6)
        assert row.norm_std == pytest.approx(norms.std().item(), rel=1e-4)
    facts = json.loads((tmp_path / "response" / "toy-3" / "response.json").read_text())
    assert (facts["response"]["seed"], facts["network_calls"]) == (2, response.cost())


@pytest.mark.parametrize("batch", [1, 5, 18])
def test_batches_change_nothing_of_an_elementwise_model(make, make_context, tmp_path, batch):
    response, tables = make(), []
    for size in (100, batch):
        for folder in response.folders(tmp_path):
            folder.facts.unlink(missing_ok=True)
        counted = []
        response.compute(make_context(Telling(), batch=size, counted=counted), tmp_path)
        assert sum(counted) == response.cost()  # padding is not a call
        tables.append(record(response, tmp_path))
    np.testing.assert_allclose(tables[0]["energy"], tables[1]["energy"], rtol=1e-12)


def test_a_single_image_has_no_spread(make, make_context, small_data, tmp_path):
    heldout = torch.zeros(60, dtype=torch.bool)
    heldout[7] = True
    response = make(parts=(59, 1))
    response.compute(make_context(Telling(), data=replace(small_data, heldout=heldout)), tmp_path)
    table = record(response, tmp_path)
    assert table["norm_std"].isna().all()
    assert table["norm"].notna().all()


def test_every_model_of_the_network_has_the_record(make_cell, make_context, tmp_path):
    cells = [make_cell(model=toy(name), steps=3) for name in ("a", "a-es")]
    (response,) = plan_response(cells)
    network = Telling()
    site = make_context(network)
    response.compute(site, tmp_path)
    first, second = (record(response, tmp_path, name) for name in ("a", "a-es"))
    assert set(second["model"]) == {"a-es"}
    pd.testing.assert_frame_equal(first.drop(columns="model"), second.drop(columns="model"))
    assert response.is_complete(tmp_path)
    # One that is lost is copied from the other, byte for byte, without a call.
    folder = tmp_path / "response" / "a-es-3"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "response.json").unlink()
    assert not response.is_complete(tmp_path)
    assert response.remaining(tmp_path) == 0
    calls = len(network.asked)
    response.compute(site, tmp_path)
    assert len(network.asked) == calls
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_first_seed_is_measured_anew_and_another_network_refused(make, make_context, tmp_path):
    make(seed=0).compute(make_context(Telling()), tmp_path)
    other = make(seed=1)
    assert not other.is_complete(tmp_path)
    for folder in other.folders(tmp_path):
        folder.check()
    with pytest.raises(ConfigError, match="was made with another weights"):
        make(weights_hash="1" * 64).folders(tmp_path)[0].check()


def test_a_network_that_is_not_finite_is_named(make, make_context, tmp_path):
    def broken(x, level, cond=None):
        return Prediction(x * float("inf"), x)

    with pytest.raises(RunError, match=r"model 'toy' at .* steps, seed 0, responds"):
        make().compute(make_context(broken), tmp_path)
