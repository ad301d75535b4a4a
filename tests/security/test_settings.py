"""The file of ``--config`` and what it names: settings, adapters, and a classifier."""

import json
import pickle
import random
from dataclasses import replace

import pytest
import torch

from bench.models.checkpoints.guided_diffusion import PRESETS
from bench.models.networks.adm import adm_unet
from bench.models.networks.adm_keys import published_shapes

PT = b"[models.x]\nweights = 'w.pt'\n"
FILES = {
    "empty": b"",
    "random": random.Random(0).randbytes(500),
    "zip": b"PK\x03\x04" + bytes(100),
    "utf-16": "[models.x]".encode("utf-16"),
    "nul": b"[models.x]\nweights = '\0'",
    "nested lists": b"a = " + b"[" * 100_000,
    "nested tables": b"a = " + b"{a=" * 50_000,
    "nested keys": b"a." * 50_000 + b"b = 1",
    "too large": b"#" * 2**19,
    "many digits": PT + b"T = " + b"9" * 5000,
    "list for a table": b"models = [1]",
    "date for a number": PT + b"T = 1979-05-27",
    "name that leads out": b'[models."../x"]\nweights = "w.pt"',
    "name of many lines": b'[models."a\\nb"]\nweights = "w.pt"',
    "path of many lines": b'[models.x]\nweights = "a\\nb\\u001b[2J.pt"',
    "path with nul": b'[models.x]\nweights = "a\\u0000b"',
    "endless key": b"[models.x]\n" + b"k" * 100_000 + b" = 1",
    "endless value": b"[models.x]\nT = '" + b"k" * 100_000 + b"'",
    "infinite scale": b"[models.x]\nbase = 'adm'\ncorrections = [{ kind = 'epsilon-scaling', b = inf }]",
    "slope that is none": b"[models.x]\nbase = 'adm'\ncorrections = [{ kind = 'epsilon-scaling', b = 1.0, k = nan }]",
    "circle": b"[models.x]\nbase = 'y'\n[models.y]\nbase = 'x'",
    "endless training": PT + b"T = 10000000000",
    "schedule": PT + b"schedule = 'q'",
    "network": PT + b"[models.x.network]\nchannel_mult = 5",
    "endless network": PT + b"[models.x.network]\nmodel_channels = 32\nnum_res_blocks = 9999999",
}


@pytest.fixture
def refuses(room, bench_args, refused):
    """A function of the config file's bytes that asserts that a run of the model x refuses it."""

    def refusal(content):
        (room / "cwd" / "w.pt").write_bytes(b"anything")
        (room / "in" / "c.toml").write_bytes(content)
        return refused("run_bench", "--config", room / "in" / "c.toml", "--models", "x", *bench_args)

    return refusal


@pytest.mark.parametrize("how", FILES)
def test_hostile_settings(refuses, how):
    assert refuses(FILES[how]).startswith("error: ")


ADAPTER_ENTRIES = {
    "missing": 'adapter = "none.py:load"',
    "no function": 'adapter = "mine.py"',
    "a module": 'adapter = "os:system"',
    "a call": 'adapter = "mine.py:load()"',
    "channels": 'adapter = "mine.py:load"\nin_channels = -1',
    "endless training": 'adapter = "mine.py:load"\nT = 10000000000',
    "missing weights": 'adapter = "mine.py:load"\nweights = "none.bin"',
}


@pytest.mark.parametrize("how", ADAPTER_ENTRIES)
def test_adapters_are_not_run_before_their_entry_is_checked(room, refuses, how):
    (room / "in" / "mine.py").write_text(f"open({str(room / 'ran')!r}, 'w')")
    assert refuses(f"[models.x]\n{ADAPTER_ENTRIES[how]}\n".encode()).startswith("error: ")


NETWORK = {"in_channels": 1, "model_channels": 32, "num_res_blocks": 1, "channel_mult": [1], "num_classes": 2}
CLASSIFIER = {
    "image_size": 8, "in_channels": 1, "out_channels": 2, "model_channels": 32, "num_res_blocks": 1,
    "channel_mult": (1,), "num_head_channels": 32, "pool": "attention",
}  # fmt: skip


def filled(network, value):
    """Return a released file's tensors of one value."""
    shapes = published_shapes(network.state_dict(), network.config["guided_diffusion"])
    return {name: torch.full(shape, value) for name, shape in shapes.items()}


@pytest.fixture
def guided(room, sound, bench_args, refused, monkeypatch):
    """A function of a classifier's file that asserts that a guided run refuses it."""
    network = {**NETWORK, "image_size": 8, "out_channels": 2}
    small = replace(PRESETS["imagenet128"], network=network, classifier=CLASSIFIER)
    monkeypatch.setattr("bench.suite.registry.registry.PRESETS", {"d": small})
    torch.save(filled(adm_unet(network), 0.01), room / "in" / "m.pt")
    (room / "d.toml").write_text(f"[datasets.d]\npath = {json.dumps(str(sound / 'images.npz'))}\n")
    flags = ("--config", room / "d.toml", "--dataset", "d", "--models", f"m={room / 'in' / 'm.pt'}")

    def refusal(path):
        return refused("run_bench", *flags, "--classifier", path, *bench_args)

    return refusal


def test_classifiers(room, hostile, guided):
    path = room / "in" / "classifier.pt"
    assert "no such file" in guided(path)
    noise, pickled = random.Random(0).randbytes(2000), pickle.dumps({"a": hostile})
    for content in (b"", noise, pickled, b"\x80\x02}r\xff\xff\xff\xff."):
        path.write_bytes(content)
        assert "truncated or not" in guided(path)
    torch.save({"a": hostile}, path)
    assert "not a file of plain tensors" in guided(path)
    torch.save({"a": torch.zeros(3)}, path)
    assert "of another architecture" in guided(path)
    torch.save({"a": torch.zeros(3, dtype=torch.int32)}, path)
    assert "int32" in guided(path)
