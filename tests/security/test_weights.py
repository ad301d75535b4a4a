"""Checkpoints of every format through ``run_bench.py``."""

import io
import json
import os
import pickle
import random
import struct
import warnings
from collections import OrderedDict

import pytest
import torch
from cases import at_first
from edm_files import Persistent, dump, edm_modules, module_state
from hostile import Call
from safetensors.torch import load_file, save_file

FILES = ("own.safetensors", "released.pt", "edm.pkl")
WEIGHTS = "diffusion_pytorch_model.safetensors"
CUTS = (1, 9, 0.01, 0.5, 0.99, -1)


def cut(data, kept):
    return data[: int(kept * len(data))] if isinstance(kept, float) else data[:kept]


@pytest.mark.parametrize("name", at_first(["diffusers", *FILES], 3))
def test_sound_ones_run(room, given, model, call, name):
    outcome = call(*model(given(name)))
    assert (outcome.code, outcome.err) == (0, "")
    assert (room / "out" / "run.json").exists()


@pytest.mark.parametrize("name", FILES)
def test_missing(room, model, refused, name):
    assert "no such file; check the path" in refused(*model(room / "in" / name))
    (room / "in" / name).mkdir()
    refused(*model(room / "in" / name))
    os.mkfifo(room / "in" / f"fifo-{name}")  # opening it for reading would wait for ever
    refused(*model(room / "in" / f"fifo-{name}"))


@pytest.mark.parametrize("kept", CUTS)
@pytest.mark.parametrize("name", FILES)
def test_truncated(given, model, refused, name, kept):
    path = given(name)
    path.write_bytes(cut(path.read_bytes(), kept))
    assert "truncated or not" in refused(*model(path))


@pytest.mark.parametrize("content", ["empty", "random", *FILES, "images.zip", "statistics.npz", "text"])
@pytest.mark.parametrize("name", FILES)
def test_another_format_under_this_suffix(given, sound, model, refused, name, content):
    path = given(name)
    made = {"empty": b"", "random": random.Random(0).randbytes(5000), "text": b"import os\n" * 50}
    if content == name:
        pytest.skip("that is the format itself")
    path.write_bytes(made[content] if content in made else (sound / content).read_bytes())
    assert refused(*model(path)).startswith("error: ")


def without_first(tensors):
    return dict(list(tensors.items())[1:])


def first(change):
    return lambda tensors: {name: change(t) if k == 0 else t for k, (name, t) in enumerate(tensors.items())}


SPOILED = {
    "fewer": (without_first, "of another architecture"),
    "more": (lambda tensors: tensors | {"more\n\x1b[2J": torch.zeros(1)}, "of another architecture"),
    "shape": (first(lambda t: torch.zeros(3, 3)), "of another architecture"),
    "integers": (first(lambda t: t.to(torch.int32)), "int32"),
    "booleans": (first(lambda t: t > 0), "bool"),
    "nan": (first(lambda t: t * float("nan")), "not finite"),
    "all nan": (lambda tensors: {name: t * float("nan") for name, t in tensors.items()}, "not finite"),
    "infinite": (first(lambda t: t.double() + float("inf")), "not finite"),
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", ["own.safetensors", "released.pt"])
def test_tensors_of_another_kind(given, model, refused, name, how):
    path, (change, message) = given(name), SPOILED[how]
    if name.endswith(".pt"):
        torch.save(change(torch.load(path)), path)
    else:
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        save_file(change(load_file(path)), path, metadata=header["__metadata__"])
    assert message in refused(*model(path))


def test_an_edm_file_whose_tensors_share_few_numbers(room, model, refused):
    """Each tensor may be as large as what is stored once, and there may be any number of them."""
    stored = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch deprecates the kind of storage that its pickles hold
        torch.save(torch.zeros(1000).storage(), stored, _use_new_zipfile_serialization=False)
    shared = Call(torch.storage._load_from_bytes, stored.getvalue())
    tensors = {f"w{k}": Call(torch._utils._rebuild_tensor_v2, shared, 0, (1000,), (1,)) for k in range(2000)}
    kwargs = {"img_resolution": 8, "in_channels": 1, "out_channels": 1}
    inner = Persistent("SongUNet", {"_parameters": tensors}, (), kwargs)
    outer = {"img_resolution": 8, "img_channels": 1, "label_dim": 0}
    path = room / "in" / "edm.pkl"
    with edm_modules():
        dump(path, Persistent("EDMPrecond", module_state({}, {"model": inner}), (), outer))
    assert "declares more weights than it has bytes" in refused(*model(path))


PICKLES = {
    "command": lambda command: pickle.dumps({"ema": command}),
    "command in protocol 2": lambda command: pickle.dumps({"ema": command, "recipe": command}, 2),
    "command in text": lambda command: pickle.dumps(command, 0),
    "memo": lambda command: b"\x80\x02}r\xff\xff\xff\xff.",
    "bytearray": lambda command: b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "frame": lambda command: b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "doubled key": lambda command: b"\x80\x02})" + b"2\x86" * 64 + b"Ns.",
    "deep": lambda command: b"\x80\x02" + b"(l" * 50_000 + b"." ,
}  # fmt: skip


@pytest.mark.parametrize("how", PICKLES)
@pytest.mark.parametrize("name", FILES)
def test_hostile_pickles(given, hostile, model, refused, name, how):
    path = given(name)
    path.write_bytes(PICKLES[how](hostile))
    assert refused(*model(path)).startswith("error: ")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_command_beside_sound_tensors(given, hostile, model, refused, zipped):
    path = given("released.pt")
    torch.save(torch.load(path) | {"more": hostile}, path, _use_new_zipfile_serialization=zipped)
    assert refused(*model(path)).startswith("error: ")


class Hiding(OrderedDict):
    """Pickled as an OrderedDict whose attribute hides its method of the same name."""

    def __reduce__(self):
        return OrderedDict, (), {"items": 5}


def test_a_dictionary_with_attributes_of_its_own(room, model, refused):
    path = room / "in" / "edm.pkl"
    inner = Persistent(
        "SongUNet", {"_parameters": Hiding()}, (), {"img_resolution": 8, "in_channels": 1, "out_channels": 1}
    )
    outer = {"img_resolution": 8, "img_channels": 1, "label_dim": 0}
    with edm_modules():
        dump(path, Persistent("EDMPrecond", module_state({}, {"model": inner}), (), outer))
    assert "its weights are not those of the network" in refused(*model(path))


def header(content, length=None):
    return struct.pack("<Q", len(content) if length is None else length) + content


def tensor(shape, end):
    return header(b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (shape, end)) + b"abcd"


HEADERS = {
    "longer than the file": header(b"{}", 2**40),
    "beyond any file": header(b"{}", 2**63),
    "nested": header(b"[" * 100_000),
    "nested objects": header(b'{"a":' * 12_000),
    "a tensor beyond the end": tensor(9, 36),
    "a tensor of any size": tensor(99_999_999, 4),
}


@pytest.mark.parametrize("how", HEADERS)
@pytest.mark.parametrize("name", ["own.safetensors", "diffusers"])
def test_hostile_safetensors_headers(given, model, refused, name, how):
    path = given(name)
    (path / WEIGHTS if path.is_dir() else path).write_bytes(HEADERS[how])
    assert refused(*model(path)).startswith("error: ")


DESCRIPTIONS = {
    "nested": {"network": "[" * 100_000},
    "no table": {"network": "5"},
    "endless training": {"T": "1000000000000"},
    "no number": {"T": "1e3"},
    "many digits": {"T": "9" * 5000},
    "schedule of many lines": {"schedule": "a\nb\x1b[2J" * 500},
    "prediction": {"prediction": "everything"},
    "endless network": {"network": json.dumps({"model_channels": 32, "num_res_blocks": 10**9})},
    "wide network": {"network": json.dumps({"model_channels": 32 * 30_000, "num_res_blocks": 1})},
    "wrong channels": {"network": json.dumps({"in_channels": "x", "model_channels": 32, "num_res_blocks": 1})},
    "wrong multiples": {"network": json.dumps({"channel_mult": 5, "model_channels": 32, "num_res_blocks": 1})},
    "infinite multiple": {"network": '{"channel_mult": [1e308], "model_channels": 32, "num_res_blocks": 1}'},
    "gamma": {"training": '{"gamma": "x"}'},
    "gamma nan": {"training": '{"gamma": NaN}'},
}


@pytest.mark.parametrize("how", DESCRIPTIONS)
def test_hostile_descriptions(given, model, refused, how):
    path = given("own.safetensors")
    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    save_file(load_file(path), path, metadata=metadata | DESCRIPTIONS[how])
    assert refused(*model(path)).startswith("error: ")
