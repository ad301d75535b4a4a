"""Models in diffusers' format through ``run_bench.py``: folders, settings and hub ids."""

import random

import huggingface_hub
import pytest

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


@pytest.mark.parametrize("name", ["dir/model.pt", "dir/model.safetensors", "dir/model.PKL", "a/b/c", "../up", "x"])
def test_missing_paths_are_no_ids(model, refused, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # must not be asked
    line = refused(*model(name))  # whose path starts in the folder of the config file
    assert line.startswith("error: cannot read the checkpoint ")
    assert f"/{name}: no such file" in line
