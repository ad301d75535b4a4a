import numpy as np
import pytest
import torch

from bench.data import to_unit
from bench.measure.instruments.probes import WalkProbe
from bench.suite.cells.records import ARMS, Records
from bench.suite.cells.reference import Reference


@pytest.fixture
def records(make_cell, small_data):
    cell = make_cell(steps=3)
    return Records(cell, cell.instruments, Reference(small_data, None))


def empty_arm(arm, images=0):
    state = WalkProbe(3, [0, 1, 2], torch.zeros(1, 4, 4), paired=arm != "free").state()
    state["scalars/count"] = np.full(3, float(images))
    return {f"{arm}/{name}": value for name, value in state.items()}


def test_an_arm_that_saw_nothing_is_left_out(records):
    records.add(empty_arm("forced-train", 2) | empty_arm("forced-heldout", 0))
    found = {name.split("/")[0] for name in records.moments()}
    assert (found & set(ARMS), set(records.table()["arm"])) == ({"forced-train"}, {"forced-train"})


def test_moments_carry_levels_and_the_datas_own(records, small_data):
    records.add(empty_arm("free", 2))
    found, reference, path = records.moments(), records.reference, records.cell.levels()
    assert found["i"].tolist() == [0, 1, 2]
    assert found["t"].tolist() == [path[2 - i].t for i in range(3)]  # the level the network saw
    reached = [path[3 - i] for i in range(3)]  # and the one its state stands at
    assert found["alpha_next"].tolist() == [level.alpha for level in reached]
    assert found["sigma_next"].tolist() == [level.sigma for level in reached]
    assert (found["alpha_next"][0], found["sigma_next"][0]) == (1.0, 0.0)
    pixels = to_unit(small_data.part("train")).double()
    np.testing.assert_allclose(found["data/mean"], pixels.mean(0), atol=1e-12)
    np.testing.assert_allclose(found["data/variance"], pixels.var(0), atol=1e-12)
    np.testing.assert_array_equal(found["data/spectrum"], reference.spectrum)


def test_errors_put_training_images_first_whatever_the_shards_order(records):
    errors = {
        name: np.full((3, count, 1, 4, 4), value) for name, count, value in [("train", 2, 1.0), ("heldout", 1, 9.0)]
    }
    records.add({"errors/train": errors["train"], "errors/heldout": errors["heldout"]})
    records.add({"errors/train": errors["train"] + 1})
    joined = records.errors()
    assert joined["errors"][0, :, 0, 0, 0].tolist() == [1, 1, 2, 2, 9]
    assert (joined["part"].tolist(), joined["t"].tolist()) == (["train"] * 4 + ["heldout"], [0, 500, 999])


def test_the_networks_variance_gives_a_floor_of_its_own(make_cell, small_data):
    cell = make_cell(steps=3)
    records = Records(cell, cell.instruments, Reference(small_data, None))
    probe = WalkProbe(3, [0, 1, 2], torch.zeros(1, 4, 4), paired=True, fraction=True)
    for row in range(3):
        probe.moments["fraction"].add(row, torch.full((2, 1, 4, 4), 0.5))
    state = probe.state() | {"scalars/count": np.full(3, 2.0)}
    records.add({f"forced-train/{name}": value for name, value in state.items()})
    found = records.moments()
    assert found["forced-train/fraction"].dtype == np.float16
    assert (found["forced-train/fraction"] == 0.5).all()
    assert found["recorded/eps_ratio"].shape == found["recorded/variance_ratio"].shape == (3,)
    assert not any(name.startswith("forced-train/fraction/") for name in found)
    records.add(empty_arm("forced-train", 2))  # a shard of an earlier version
    assert "recorded/eps_ratio" not in records.moments()
