"""Models in diffusers' format through ``run_bench.py``: folders, settings and hub ids."""

from __future__ import annotations

import json
import random

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


FOLDERS = {
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "no scheduler": lambda folder: (folder / "scheduler_config.json").unlink(),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "pickled weights": lambda folder: (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin"),
    "empty weights": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "random weights": lambda folder: (folder / WEIGHTS).write_bytes(random.Random(0).randbytes(5000)),
    "cut weights": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1]),
    "empty configuration": lambda folder: (folder / "config.json").write_text(""),
    "nested configuration": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "huge configuration": lambda folder: (folder / "config.json").write_text(" " * 2**21),
    "list as configuration": lambda folder: (folder / "config.json").write_text("[1]"),
    "nested scheduler": lambda folder: (folder / "scheduler_config.json").write_text('{"a":' * 100_000),
    "random index": lambda folder: (folder / "model_index.json").write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("how", FOLDERS)
def test_spoiled_folders_of_diffusers(given, model, refused, how):
    path = given("diffusers")
    FOLDERS[how](path)
    assert refused(*model(path)).startswith("error: ")


SETTINGS = [
    {"_class_name": "os.system"}, {"_class_name": "UNet2DConditionModel"}, {"in_channels": "1"},
    {"out_channels": 10**9},
    {"block_out_channels": 5}, {"block_out_channels": []}, {"block_out_channels": [8] * 1000}, {"norm_num_groups": 0},
    {"down_block_types": ["os.system", "DownBlock2D"]}, {"layers_per_block": 10**9}, {"act_fn": "eval"},
    {"unknown": "x\n" * 1000}, {"sample_size": 16},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_hostile_settings_of_diffusers(given, model, refused, settings):
    path = given("diffusers")
    content = json.loads((path / "config.json").read_text()) | settings
    (path / "config.json").write_text(json.dumps(content))
    assert refused(*model(path)).startswith("error: ")


@pytest.mark.parametrize("change", [lambda t: t.to(torch.int32), lambda t: t * float("nan"), lambda t: t[:1]])
def test_spoiled_tensors_of_diffusers(given, model, refused, change):
    path = given("diffusers") / WEIGHTS
    tensors = load_file(path)
    save_file(tensors | {"conv_in.weight": change(tensors["conv_in.weight"]).contiguous()}, path)
    assert refused(*model(path.parent)).startswith("error: ")


@pytest.mark.parametrize("name", ["owner/model", "owner/model-1.0", "owner/v2.5.1"])
def test_ids_that_the_hub_does_not_have(room, model, refused, monkeypatch, name):
    def unreachable(*_, **__):
        raise OSError("no network\nhere")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    assert f"model {name} lacks config.json" in refused(*model(name))


@pytest.mark.parametrize("name", ["dir/model.pt", "dir/model.safetensors", "dir/model.PKL", "a/b/c", "../up", "x"])
def test_missing_paths_are_no_ids(model, refused, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # must not be asked
    assert f"cannot read the checkpoint {name}: no such file" in refused(*model(name))
