"""Python files as a user might write them, right and wrong."""

import json
import sys
from functools import partial

import pytest
import refusals
import torch
from torch import nn

from bench.diffusion.types import Level
from bench.models.checkpoints.adapter import adapter_file, describe_adapter, hash_adapter, load_adapter, read_adapter
from bench.models.checkpoints.formats import denoiser_of
from bench.runtime.errors import CheckpointError

PLAIN = """
def load():
    return lambda x, t, labels: 0.5 * x + t.reshape(-1, 1, 1, 1)
"""
WITH_WEIGHTS = """
import torch

def load(weights):
    network = torch.nn.Conv2d(3, 6, 1)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.dropout = torch.nn.Dropout()
    forward = network.forward
    network.forward = lambda x, t, labels: network.dropout(forward(x))
    return network
"""
ENTRY = {"adapter": "model.py:load", "image_size": 4}


def written(folder, code, name="model.py"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(code)
    return folder


def opened(entry, base):
    return load_adapter(adapter_file(entry["adapter"], base), describe_adapter(entry, base))


refusal = partial(refusals.refusal, CheckpointError)


def test_a_plain_function_serves(tmp_path):
    network = opened(ENTRY, written(tmp_path, PLAIN)).to("cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]  # nothing is written beside it
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([0, 7])
    assert torch.equal(network(x, t).sample, 0.5 * x + t.reshape(-1, 1, 1, 1))
    assert torch.equal(network(x, t, torch.tensor([1, 2])).sample, network(x, t, None).sample)


DROPOUT = """
import torch

def load():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), torch.nn.Dropout(0.1), torch.nn.Conv2d(16, 3, 1)){}
    return lambda x, t, labels: network(x)
"""


@pytest.mark.parametrize("size", [{"image_size": 4}, {}])
def test_dropout_that_is_on_is_refused_at_the_first_call(tmp_path, size):
    entry = {"adapter": "model.py:load", **size}

    def asked(code):
        network, x = opened(entry, written(tmp_path, code)), torch.randn(2, 3, 4, 4)
        return [network(x, torch.tensor([0, 7])).sample for _ in range(2)]

    assert torch.equal(*asked(DROPOUT.format(".eval()")))
    assert "answers differently when asked twice" in refusal(asked, DROPOUT.format(""))


def test_batch_normalisation_that_is_on_is_refused_at_the_first_call(tmp_path):
    code = DROPOUT.replace("torch.nn.Dropout(0.1)", "torch.nn.BatchNorm2d(16)")
    assert opened(ENTRY, written(tmp_path, code.format(".eval()")))
    assert "answers differently beside other images" in refusal(opened, ENTRY, written(tmp_path, code.format("")))


def test_code_that_changes_x_does_not_change_the_walk(tmp_path):
    code = "def load():\n    return lambda x, t, labels: x.mul_(2)\n"
    network, x = opened(ENTRY, written(tmp_path, code)), torch.ones(2, 3, 4, 4)
    assert torch.equal(network(x, torch.tensor([0, 7])).sample, 2 * x)
    assert torch.equal(x, torch.ones(2, 3, 4, 4))


def test_the_defaults_of_an_entry(tmp_path):
    description = describe_adapter({"adapter": "model.py:load"}, written(tmp_path, PLAIN))
    assert (description.schedule, description.T, description.prediction) == ("cosine", 1000, "eps")
    assert (description.format, description.channels, description.classes) == ("python", 3, None)
    assert not description.learns_variance


@pytest.mark.parametrize(("T", "told"), [(1000, 250.0), (1, 0.25)])
def test_a_flow_is_told_its_time_in_thousandths_or_from_0_to_1(tmp_path, T, told):
    code = "def load():\n    return lambda x, t, labels: x * 0 + t.reshape(-1, 1, 1, 1)\n"
    entry = ENTRY | {"prediction": "flow", "schedule": "flow(2)", "T": T}
    folder = written(tmp_path, code)
    description = describe_adapter(entry, folder)
    denoiser = denoiser_of(opened(entry, folder), description, torch.device("cpu"))
    pred = denoiser(torch.zeros(2, 3, 4, 4), Level(250.0, 0.75, 0.25))
    assert (pred.eps - pred.x0).flatten().tolist() == pytest.approx([told] * 96)


def test_an_entry_is_described_without_being_run(tmp_path):
    entry = {
        "adapter": "sub/model.py:load", "schedule": "scaled_linear(0.00085,0.012)", "T": 500, "prediction": "v",
        "in_channels": 1, "image_size": 8, "learn_sigma": True, "num_classes": 10,
    }  # fmt: skip
    description = describe_adapter(entry, written(tmp_path, "raise SystemExit", "sub/model.py"))
    assert (description.schedule, description.T, description.prediction) == (entry["schedule"], 500, "v")
    assert (description.channels, description.classes, description.learns_variance) == (1, 10, True)
    assert description.network["image_size"] == 8
    text = json.dumps(dict(description.network))  # it becomes part of records
    assert str(tmp_path) not in text
    assert "sub/model.py:load" in text


def test_a_module_is_loaded_from_its_weights_and_set_to_evaluation(tmp_path):
    torch.manual_seed(0)
    weights = nn.Conv2d(3, 6, 1).state_dict()
    torch.save(weights, written(tmp_path, WITH_WEIGHTS) / "weights.pt")
    entry = ENTRY | {"weights": "weights.pt", "learn_sigma": True}
    network = opened(entry, tmp_path)
    x = torch.randn(2, 3, 4, 4)
    expected = nn.functional.conv2d(x, weights["weight"], weights["bias"])
    assert torch.equal(network(x, torch.zeros(2)).sample, expected)  # no dropout
    assert not any(parameter.requires_grad for parameter in network.network.parameters())


def test_labels_reach_the_network(tmp_path):
    """And the output comes back in the input's dtype."""
    code = "def load():\n    return lambda x, t, labels: (x + labels.reshape(-1, 1, 1, 1)).double()"
    network = opened(ENTRY | {"num_classes": 3}, written(tmp_path, code))
    x = torch.zeros(2, 3, 4, 4)
    sample = network(x, torch.zeros(2), torch.tensor([1, 2])).sample
    assert (sample[:, 0, 0, 0].tolist(), sample.dtype) == ([1, 2], torch.float32)


def test_a_file_may_import_its_neighbours_and_hold_dataclasses(tmp_path):
    written(tmp_path, "FACTOR = 3.0", "my_neighbour_of_an_adapter.py")
    code = """
from __future__ import annotations
from dataclasses import dataclass
from my_neighbour_of_an_adapter import FACTOR

@dataclass
class Network:
    factor: float

    def __call__(self, x, t, labels):
        return self.factor * x

def load():
    return Network(FACTOR)
"""
    path = list(sys.path)
    network = opened(ENTRY, written(tmp_path, code))
    assert network(torch.ones(1, 3, 4, 4), torch.zeros(1)).sample[0, 0, 0, 0] == 3
    assert sys.path == path


def test_two_files_of_one_name_are_two(tmp_path):
    one, two = (written(tmp_path / name, f"def load():\n    return {name!r}.upper") for name in ("one", "two"))
    assert (read_adapter("model.py:load", one)()(), read_adapter("model.py:load", two)()()) == ("ONE", "TWO")


@pytest.mark.parametrize("place", ["model.py", "sub/model.py", "./model.py", "../model.py"])
def test_paths_are_relative_to_the_config_file(tmp_path, place):
    folder = tmp_path / "configs"
    folder.mkdir()
    torch.save(nn.Conv2d(3, 3, 1).state_dict(), folder / "weights.pt")
    written(folder, WITH_WEIGHTS.replace("3, 6", "3, 3"), place)
    entry = ENTRY | {"adapter": f"{place}:load", "weights": "weights.pt"}
    assert opened(entry, folder)(torch.zeros(2, 3, 8, 8), torch.zeros(2)).sample.shape == (2, 3, 8, 8)


def test_absolute_paths_serve_together(tmp_path):
    torch.save(nn.Conv2d(3, 3, 1).state_dict(), tmp_path / "weights.pt")
    spec = f"{written(tmp_path, WITH_WEIGHTS.replace('3, 6', '3, 3')) / 'model.py'}:load"
    opened(ENTRY | {"adapter": spec, "weights": str(tmp_path / "weights.pt")}, tmp_path / "elsewhere")
    message = refusal(describe_adapter, ENTRY | {"adapter": spec, "weights": "weights.pt"}, tmp_path)
    assert "absolute too" in message


def test_the_hash_is_of_code_and_weights(tmp_path):
    written(tmp_path, WITH_WEIGHTS)
    (tmp_path / "weights.pt").write_bytes(b"one")
    path = tmp_path / "model.py"

    def hashed(**entry):
        return hash_adapter(path, describe_adapter(ENTRY | entry, tmp_path))

    hashes = [hashed(), hashed(weights="weights.pt")]
    (tmp_path / "weights.pt").write_bytes(b"two")
    hashes.append(hashed(weights="weights.pt"))
    path.write_text(PLAIN)
    hashes += [hashed(), hashed(weights="weights.pt")]
    assert len(set(hashes)) == 5
    assert hashed() == hashes[3]


BROKEN = {
    "syntax": ("def load(:", "SyntaxError"),
    "no text": ("a = 1\0", "raised"),
    "file raises": ("raise KeyError('first\\nsecond')", "model.py raised KeyError"),
    "file exits": ("raise SystemExit(3)", "raised SystemExit: 3"),
    "no function": ("x = 1", "no function 'load'"),
    "no callable": ("load = 1", "no function 'load'"),
    "function raises": ("def load():\n    raise ValueError('one\\ntwo')", "model.py:load raised ValueError: one"),
    "function wants more": ("def load(weights): ...", "raised TypeError"),
    "returns nothing": ("def load(): ...", "returned NoneType; return a callable"),
    "network raises": ("def load():\n    return lambda x, t, labels: 1 / 0", "raised ZeroDivisionError"),
    "network of two": ("def load():\n    return lambda x, t: x", "raised TypeError"),
    "no tensor": ("def load():\n    return lambda x, t, labels: [x]", "list; return a tensor of shape (2, 3, 4, 4)"),
    "wrong shape": ("def load():\n    return lambda x, t, labels: x[:, :1]", "(2, 1, 4, 4); return (2, 3, 4, 4)"),
    "wrong device": ("def load():\n    return lambda x, t, labels: x.to('meta')", "on meta; return it on"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_a_file_can_do_wrong(tmp_path, case):
    code, message = BROKEN[case]
    assert message in refusal(opened, ENTRY, written(tmp_path, code))


def test_a_wrong_shape_is_found_in_use_where_the_size_is_unknown(tmp_path):
    base = written(tmp_path, "def load():\n    return lambda x, t, labels: x[:, :1]")
    network = opened({"adapter": "model.py:load"}, base)
    assert "return (1, 3, 4, 4)" in refusal(network, torch.zeros(1, 3, 4, 4), torch.zeros(1))


@pytest.mark.parametrize("error", ["torch.OutOfMemoryError", "MemoryError"])
def test_running_out_of_memory_is_not_the_files_fault(tmp_path, error):
    code = f"import torch\n\ndef load():\n    raise {error}"
    with pytest.raises((MemoryError, torch.OutOfMemoryError)):
        opened(ENTRY, written(tmp_path, code))


@pytest.mark.parametrize("spec", ["model.py", "model:load", "model.py:", "model.py:a.b", ":load", "", "model.py:1"])
def test_what_names_no_file_and_function(tmp_path, spec):
    assert "as in 'my_model.py:load'" in refusal(describe_adapter, {"adapter": spec}, written(tmp_path, PLAIN))


IMPOSSIBLE = [
    ({"adapter": "absent.py:load"}, "absent.py: no such file"), ({"prediction": "score"}, "unknown prediction 'score'"),
    ({"schedule": "sigmoid"}, "unknown noise schedule 'sigmoid'"),
    ({"schedule": "flow"}, "takes the prediction flow or x0"), ({"prediction": "flow"}, "needs the schedule flow"),
    ({"schedule": "linear", "T": 20}, "T of at least 21"), ({"T": 0}, "'T' must be"), ({"T": True}, "'T' must be"),
    ({"in_channels": -1}, "'in_channels' must be"), ({"image_size": 8.5}, "'image_size' must be"),
    ({"num_classes": "ten"}, "'num_classes' must be"), ({"learn_sigma": 1}, "'learn_sigma' must be"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "message"), IMPOSSIBLE)
def test_entries_that_cannot_be(tmp_path, entry, message):
    assert message in refusal(describe_adapter, ENTRY | entry, written(tmp_path, PLAIN))


def test_missing_weights_are_named(tmp_path):
    entry = ENTRY | {"weights": "absent.pt"}
    assert "absent.pt: no such file" in refusal(opened, entry, written(tmp_path, WITH_WEIGHTS))
