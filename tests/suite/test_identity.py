"""Everything that determines a record's numbers is in its key: what the network says, labels, what scores compare."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.suite.experiments.chains import plan_chains
from bench.suite.experiments.response import plan_response
from bench.suite.registry.model import Guidance


def predicting(cell, prediction):
    description = replace(cell.model.description, prediction=prediction)
    return replace(cell, model=replace(cell.model, description=description))


def test_what_the_network_says_is_part_of_every_key(make_cell):
    eps, v = make_cell(), predicting(make_cell(), "v")
    assert eps.key() != v.key()
    assert "prediction" not in eps.description()  # keys of plain eps models are those of before
    for plan in (plan_chains, plan_response):
        descriptions = [[f.description for e in plan([c]) for f in e.folders(Path())] for c in (eps, v)]
        models = [[d for d in found if d.get("model") == "toy"] for found in descriptions]
        assert models[0]
        assert all(a != b for a, b in zip(*models, strict=True))
    assert len(plan_response([eps, v])) == 2  # they are asked apart


def test_a_classifier_is_part_of_the_key(make_cell, tmp_path):
    cell, keys = make_cell(), set()
    for content in (b"one", b"two"):
        path = tmp_path / content.decode()
        path.write_bytes(content)
        for scale in (0.5, 1.0):
            keys.add(replace(cell, model=replace(cell.model, guidance=Guidance(path, {}, scale))).key())
    assert len(keys | {cell.key()}) == 5


@pytest.fixture
def labelled(tmp_path, save_tiny, run_tiny):
    """Return a function that runs a conditional model on 40 pictures with labels in an order of choice."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8), np.arange(40) % 4
    weights = {n: save_tiny(name=f"of{n}", num_classes=n) for n in (4, None)}

    def run(order, classes=4, *flags):
        np.savez(tmp_path / "pictures.npz", arr_0=images, arr_1=labels[order])
        config = tmp_path / "bench.toml"
        config.write_text(f'[datasets.pictures]\npath = "{tmp_path / "pictures.npz"}"\n')
        return run_tiny(weights[classes], "--config", config, "--dataset", "pictures", "--steps", "3", *flags)[0]

    return run


def test_labels_are_part_of_a_conditional_cells_key(labelled):
    assert labelled(np.arange(40)).code == 0
    assert labelled(np.arange(40)).code == 0
    outcome = labelled(np.arange(40)[::-1])
    assert outcome.refused("another labels")


def test_labels_play_no_part_where_no_network_takes_them(labelled):
    assert labelled(np.arange(40), None).code == 0
    assert labelled(np.arange(40)[::-1], None).code == 0


def test_a_paired_walk_that_shares_the_class_has_no_floor(labelled, tmp_path):
    for classes, folder in ((4, "conditional"), (None, "plain")):
        assert labelled(np.arange(40), classes, "--spacing", "ddim", "--out", tmp_path / folder).code == 0
    tables = {
        folder: pd.read_csv(tmp_path / folder / "cells" / "mine-ddpm-3-seed0" / "steps.csv")
        for folder in ("conditional", "plain")
    }
    over = {"floor_std", "delta_t_floor", "excess_std"}
    for folder, table in tables.items():
        paired = set(table[table["arm"] == "paired"]["quantity"])
        assert {"var_conditional", "pred_std", "delta_t"} <= paired
        assert over.isdisjoint(paired) == (folder == "conditional")
        assert over <= set(table[table["arm"] == "free"]["quantity"])
        exact = pd.read_csv(tmp_path / folder / "exact" / "cosine-1000-ddpm-3" / "record.csv")
        assert ("gaussian-paired" in set(exact["arm"])) == (folder == "plain")


def test_one_folder_compares_with_one_reference(tmp_path, command, tiny_weights, half_statistics):
    args = ("--models", f"mine={tiny_weights}", "--samples", "70", "--no-probes", "--quiet", "--out", tmp_path / "out")
    assert command(*args, "--steps", "2").code == 0
    outcome = command(*args, "--steps", "3", "--reference", half_statistics)
    assert outcome.code == 2
    assert "mine-ddpm-2-seed0 was scored with other features or another reference" in outcome.err
    assert not (tmp_path / "out" / "cells" / "mine-ddpm-3-seed0").exists()
    assert command(*args, "--steps", "2,3", "--reference", half_statistics).code == 0  # all of it, scored anew
    assert command(*args, "--steps", "4", "--features", "none").code == 0  # no scores, so nothing to mix
