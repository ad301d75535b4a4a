import os

import numpy as np
import pytest
from refusals import refusal

from bench.files.writing import write_array, write_json
from bench.suite import plan
from bench.suite.plan import Unit
from bench.suite.settings import ConfigError
from bench.suite.store.resume import is_sampled, is_scored
from bench.suite.store.store import Store

UNIT = Unit("free", 0, 12)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "out")


def test_nothing_is_made_before_something_is_written(store, make_cell):
    assert store.metrics(make_cell()) is None
    assert not store.has_shard(make_cell(), UNIT)
    store.check(make_cell())
    assert not store.root.exists()


@pytest.mark.parametrize(("module", "function"), [(np, "savez"), (os, "replace")])
def test_a_half_written_shard_is_not_one(store, make_cell, monkeypatch, module, function):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, function, stop)
        with pytest.raises(KeyboardInterrupt):
            store.put_shard(make_cell(), UNIT, {"a": np.zeros(2)})
    assert not store.has_shard(make_cell(), UNIT)
    store.put_shard(make_cell(), UNIT, {"a": np.ones(2)})  # the leftover does not stand in the way
    assert store.get_shard(make_cell(), UNIT.name)["a"].tolist() == [1, 1]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 rubbish", None])
def test_damaged_samples_are_named(store, make_cell, damage):
    store.put_arrays(make_cell(), "samples.npz", {"arr_0": np.zeros((2, 4, 4, 3), np.uint8)})
    assert store.samples(make_cell()).shape == (2, 4, 4, 3)
    path = store.folder(make_cell()) / "samples.npz"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises(ConfigError, match=r"samples.npz is missing or damaged; delete"):
        store.samples(make_cell())


def test_metrics_complete_a_cell_and_drop_its_shards(store, make_cell):
    cell = make_cell()
    store.begin(cell)
    store.put_shard(cell, UNIT, {"a": np.zeros(2)})
    assert not is_sampled(store, cell)
    store.finish(cell, {"scores": []})
    assert is_sampled(store, cell)
    assert [path.name for path in store.folder(cell).iterdir()] == ["metrics.json"]
    found = store.metrics(cell)
    assert (found["key"], found["cell"]["model"], found["scores"]) == (cell.key(), "toy", [])


@pytest.mark.parametrize("text", ["", '{"key": "', "[]", "3"])
def test_half_written_metrics_do_not_complete_a_cell(store, make_cell, text):
    store.begin(make_cell())
    (store.folder(make_cell()) / "metrics.json").write_text(text)
    assert store.metrics(make_cell()) is None
    assert not is_sampled(store, make_cell())


def complete(store, cell, **facts):
    store.put_arrays(cell, "samples.npz", {"arr_0": np.zeros((2, 4, 4, 3), np.uint8)})
    write_array(store.folder(cell) / "kernel.npy", np.zeros((2, 2)))
    store.finish(cell, {"scores": [], **facts})


@pytest.mark.parametrize("name", ["samples.npz", "steps.csv", "moments.npz", "errors.npz"])
def test_any_file_of_the_sampling_counts(store, make_cell, name):
    cell = make_cell()
    store.begin(cell)
    (store.folder(cell) / name).write_text("content")
    store.finish(cell, {"scores": []})
    assert store.metrics(cell)["files"] == {name: 7}
    assert is_sampled(store, cell)
    for spoil in (lambda path: path.write_text("Content"), lambda path: path.write_text("contents"), os.remove):
        spoil(store.folder(cell) / name)
        assert not is_sampled(store, cell)


def test_without_file_sizes_a_cell_is_not_complete(store, make_cell):
    complete(store, make_cell())
    for files in (None, ["samples.npz"]):
        write_json(store.folder(make_cell()) / "metrics.json", {**store.metrics(make_cell()), "files": files})
        assert not is_sampled(store, make_cell())


def test_scores_are_complete_by_themselves(store, make_cell):
    # A rescoring that was stopped has dropped kernel.npy: the images are still good, only the scores must be made anew.
    cell = make_cell()
    assert not is_scored(store, cell, "toy-1")
    complete(store, cell, features="toy-1")
    assert is_scored(store, cell, "toy-1")
    assert not is_scored(store, cell, "toy-2")
    store.unscore(cell)
    assert not is_scored(store, cell, "toy-1")
    assert is_sampled(store, cell)
    assert not (store.folder(cell) / "kernel.npy").exists()
    assert set(store.metrics(cell)["files"]) == {"samples.npz"}
    # Of other features, whose scores were never finished.
    write_array(store.folder(cell) / "kernel.npy", np.zeros((2, 2)))
    assert not is_scored(store, cell, "toy-1")


SETTINGS = [
    ({"samples": 13}, "samples"), ({"clip": False}, "clip"), ({"spacing": "ddim"}, "spacing"),
    ({"precision": "bf16"}, "precision .'fp32', now 'bf16'.;"),
    ({"quantize": "floor"}, "quantize"), ({"data_hash": "other"}, "data"), ({"variance": "fixed-small"}, "variance"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "name"), SETTINGS)
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("steps", [7, 5])
def test_cells_of_one_folder_share_their_settings(store, make_cell, change, name, finished, steps):
    """Another step count is another folder name, but lands in the same tables."""
    store.begin(make_cell(steps=7))
    if finished:
        complete(store, make_cell(steps=7))
    store.check(make_cell(steps=steps))
    other = make_cell(steps=steps, **change)
    assert not is_sampled(store, other)
    assert refusal(ConfigError, store.check, other, match=f"another {name} .*choose another --out")


def test_cells_of_an_older_record_are_refused(store, make_cell, monkeypatch):
    complete(store, make_cell(steps=7))
    monkeypatch.setattr(plan, "RECORD_VERSION", plan.RECORD_VERSION + 1)
    with pytest.raises(ConfigError, match="another version"):
        store.check(make_cell(steps=5))


def test_samplers_share_a_folder_and_have_settings_of_their_own(store, make_cell):
    ddim = {"sampler": "ddim", "variance": None}
    complete(store, make_cell())  # ancestral, learned variance
    store.check(make_cell(**ddim, eta=0.5))
    complete(store, make_cell(**ddim, eta=0.5))
    store.check(make_cell(steps=9))
    with pytest.raises(ConfigError, match=r"another eta .0\.5, now 0\.0."):
        store.check(make_cell(**ddim, steps=9))


def test_seeds_probes_and_damaged_cells_stand_in_no_others_way(store, make_cell):
    complete(store, make_cell())
    (store.root / "cells" / "other").mkdir()
    for text in ("{", "[]", "3", '{"cell": 3}', "{}"):
        (store.root / "cells" / "other" / "metrics.json").write_text(text)
        for cell in (make_cell(seed=1), make_cell(steps=9, measure=()), make_cell()):
            store.check(cell)
        assert is_sampled(store, make_cell())  # and looking changed nothing
