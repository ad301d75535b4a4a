"""What ``python -m bench.models.train`` finds in its folder when it goes on."""

import pickle
import random
from dataclasses import asdict, replace

import pytest
import torch
from cases import at_first

from bench.models.train.recipes import RECIPES


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a training of one step."""
    from bench.models.train.__main__ import main

    out = tmp_path_factory.mktemp("begun") / "adm"
    assert main(["--recipe", "adm", "--iterations", "1", "--quiet", "--out", str(out)]) == 0
    return out


@pytest.fixture
def refuses(room, refused):
    """A function of the bytes of ``resume.pt``, or what to save in it, that asserts that a training refuses them."""
    folder = room / "training"
    folder.mkdir()

    def refusal(content):
        if isinstance(content, bytes):
            (folder / "resume.pt").write_bytes(content)
        else:
            torch.save(content, folder / "resume.pt")
        return refused("train", "--recipe", "adm", "--iterations", "1", "--quiet", "--out", folder)

    return refusal


def test_what_is_no_training(refuses, hostile):
    recipe = asdict(replace(RECIPES["adm"], iterations=1))
    written = (b"", random.Random(0).randbytes(3000), pickle.dumps({"recipe": hostile}), b"PK\x03\x04" + bytes(99))
    for content in (*written, {"recipe": hostile, "iteration": 0}, [1], {"a": 1}, {"recipe": recipe}):
        assert "cannot be resumed" in refuses(content)
    assert "another recipe" in refuses({"recipe": {}, "iteration": 0})
    assert "another network" in refuses({"recipe": recipe, "iteration": 0})


def times(factor):
    return lambda weights: {name: tensor * factor for name, tensor in weights.items()}


def stepping(optimizer, **changes):
    return optimizer | {"state": {k: moments | changes for k, moments in optimizer["state"].items()}}


SPOILED = {
    "nan": ("network", times(float("nan"))),
    "beyond the end": ("iteration", lambda iteration: 10**18),
    "moments": ("optimizer", lambda optimizer: stepping(optimizer, exp_avg=torch.zeros(7))),
    "fewer weights": ("network", lambda weights: dict(list(weights.items())[1:])),
    "before the start": ("iteration", lambda iteration: -5),
    "average nan": ("average", times(float("nan"))),
    "no iteration": ("iteration", lambda iteration: float("nan")),
    "optimiser": ("optimizer", lambda optimizer: 5),
    "text": ("optimizer", lambda optimizer: stepping(optimizer, step="x")),
    "settings": ("optimizer", lambda old: old | {"param_groups": [g | {"betas": "x"} for g in old["param_groups"]]}),
}


@pytest.mark.parametrize("how", at_first(SPOILED, 4))
def test_a_training_that_was_spoiled(begun, refuses, how):
    part, change = SPOILED[how]
    state = torch.load(begun / "resume.pt")
    assert refuses(state | {part: change(state[part])}).startswith("error: ")


@pytest.mark.parametrize("kept", [0, 1, 0.01, 0.5, -1])
def test_a_training_that_was_cut_off(begun, refuses, kept):
    data = (begun / "resume.pt").read_bytes()
    assert "cannot be resumed" in refuses(data[: int(kept * len(data)) if isinstance(kept, float) else kept])


@pytest.mark.parametrize("log", [b"a\nb\nc", b"a\n\xff,1\n", b"\n,\n"])
def test_a_log_that_is_none(room, refused, log):
    (room / "training").mkdir()
    (room / "training" / "loss.csv").write_bytes(log)
    arguments = ("--recipe", "adm", "--iterations", "1", "--quiet", "--out", room / "training")
    assert "loss.csv is no log of a training" in refused("train", *arguments)
