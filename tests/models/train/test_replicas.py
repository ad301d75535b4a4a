"""Several processes train the model that one trains."""

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_ranks import command, exchange, fail, launch, train_all

from bench.models.train.__main__ import main
from bench.models.train.recipes import RECIPES
from bench.models.train.replicas import ALONE, Replicas
from bench.models.train.trainer import Trainer, _description

ROOT = Path(__file__).parents[3]


def short(name, iterations=4, batch=10, **changes):
    return dataclasses.replace(RECIPES[name], iterations=iterations, batch=batch, **changes)


# Ten images, or seventeen: uneven for three processes. Their first eighth is two, so that only the first process has a
# part in the penalty, whose weight is large enough to be seen. Of the own states there are 0, 3, 7 and 10.
TOGETHER = [
    short("adm"),
    short("adm-ip"),
    short("adm-gp", batch=17, gradient_penalty=1.0),
    short("adm-mdss", scheduled_sampling=1.0),
    short("edm"),
]


@pytest.fixture(scope="module")
def images():
    return torch.rand(13, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def alone(tmp_path_factory, images):
    """The folder of trainings of one process."""
    folder = tmp_path_factory.mktemp("alone")
    train_all(ALONE, TOGETHER, folder, images)
    return folder


def rows(folder):
    with (folder / "loss.csv").open(newline="") as file:
        return [[float(number) for number in row] for row in list(csv.reader(file))[1:]]


def flat(tensors):
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def beginning(recipe):
    network = dict(_description(recipe, 1, {}, None).network)
    return flat(Trainer(recipe, network, torch.device("cpu")).network.state_dict().values())


def assert_same_training(found, expected, recipe):
    """Compare what two processes left.

    An entry of a gradient is a float32 sum over images and pixels, in another order: its error is a few 2**-24 of what
    is summed, about 1e-6 of the gradients' norm as some cancel, and Adam's moments are linear and quadratic in them:
    2e-5. Its step divides each entry by its own size, so that one that is nothing but rounding moves its weight by up
    to the rate in either direction: a part of the way that the weights went, and small since few are so. With another
    image or another weight of a loss both differ by as much as they are. Losses are means of float32 numbers, of
    networks that differ where it matters least: 1e-5.
    """
    ours, theirs = (torch.load(folder / recipe.name / "resume.pt") for folder in (found, expected))
    assert ours["iteration"] == theirs["iteration"] == recipe.iterations
    for moment in ("exp_avg", "exp_avg_sq"):
        a, b = (flat(moments[moment] for moments in state["optimizer"]["state"].values()) for state in (ours, theirs))
        assert (a - b).norm() < 2e-5 * b.norm()
    for weights, way in (("network", 0.05), ("average", 0.05)):
        a, b = (flat(state[weights].values()) for state in (ours, theirs))
        assert (a - b).norm() < way * (b - beginning(recipe)).norm()
    for row, other in zip(rows(found / recipe.name), rows(expected / recipe.name), strict=True):
        assert row == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_processes_train_what_one_trains(tmp_path, images, alone, size):
    digests = launch(size, train_all, TOGETHER, tmp_path, images)
    assert len(digests[0]) == len(TOGETHER)
    assert all(one == digests[0] for one in digests)  # the replicas are one, bit for bit
    for recipe in TOGETHER:
        assert_same_training(tmp_path, alone, recipe)
    written = {path.relative_to(alone) for path in alone.rglob("*")}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == written


@pytest.mark.ci
def test_a_training_goes_on_with_another_number_of_processes(tmp_path, images, alone):
    """Stopped by a signal within a window of the log each time."""
    recipe = TOGETHER[0]
    launch(2, train_all, [recipe], tmp_path, images, 1)
    assert torch.load(tmp_path / recipe.name / "resume.pt")["window"].shape == (1, 3)
    train_all(ALONE, [recipe], tmp_path, images, 2)
    assert torch.load(tmp_path / recipe.name / "resume.pt")["iteration"] == 3
    assert not (tmp_path / recipe.name / "adm.safetensors").exists()
    launch(3, train_all, [recipe], tmp_path, images)
    assert_same_training(tmp_path, alone, recipe)
    assert (tmp_path / recipe.name / "adm.safetensors").exists()


def test_a_signal_leaves_what_an_undisturbed_training_goes_through(tmp_path, images, alone):
    recipe = TOGETHER[0]
    train_all(ALONE, [recipe], tmp_path, images, 3)
    train_all(ALONE, [recipe], tmp_path, images)
    for name in ("adm.safetensors", "loss.csv"):
        assert (tmp_path / recipe.name / name).read_bytes() == (alone / recipe.name / name).read_bytes()


def test_what_processes_exchange():
    parts = [(1, 2, 42), (1, 2, 43), (1, 3, 43)]
    assert launch(3, exchange) == [([3.0, 3.0], 4, 0, part) for part in parts]


MISTAKES = [
    ("data", "AgreedError: the data are gone"),
    ("log", "AgreedError: [Errno 28] No space left on device"),
    ("resume", "cannot be resumed ("),
    ("batch", "AgreedError: 2 processes cannot share batches of 1; start at most 1"),
]


@pytest.mark.parametrize(("how", "said"), MISTAKES)
def test_the_mistake_of_one_process_ends_all(tmp_path, images, how, said):
    (tmp_path / "resume.pt").write_bytes(b"damaged") if how == "resume" else None
    found = launch(2, fail, how, short("adm", 3, 1 if how == "batch" else 10), tmp_path, images)
    assert found[0] == found[1]
    assert said in found[0]


def test_a_full_disk_leaves_what_was_saved(tmp_path, images):
    recipe = short("adm", 2)
    launch(2, train_all, [recipe], tmp_path, images, 1)
    out = tmp_path / recipe.name
    saved = (out / "resume.pt").read_bytes()
    found = launch(2, fail, "disk", recipe, out, images)
    said = f"{out / 'resume.pt'} cannot be saved (No space left on device); the same command goes on from the last save"
    assert found == [f"AgreedError: {said}"] * 2
    assert (out / "resume.pt").read_bytes() == saved
    assert not list(out.glob(".*"))


def test_a_process_that_dies_ends_all(tmp_path, images):
    found, code = launch(2, fail, "death", short("adm", 3), tmp_path, images)
    assert "another process ended" in found
    assert "\n" not in found
    assert code == 1


SAID = [
    (["--recipe", "amd"], 2, "", "unknown recipe 'amd'; did you mean 'adm'?"),
    (["--recipe", "adm", "--quiet"], 2, "", "cannot be resumed ("),
    (["--help"], 0, "usage: python -m bench.models.train", ""),
    pytest.param(["--recipe", "adm", "--device", "meta"], 2, "", "'meta' cannot be used here", marks=pytest.mark.ci),
]


@pytest.mark.parametrize(("arguments", "code", "printed", "complained"), SAID)
def test_the_first_process_alone_speaks(tmp_path, arguments, code, printed, complained):
    (tmp_path / "resume.pt").write_bytes(b"damaged")
    first, second = launch(2, command, [*arguments, "--out", str(tmp_path)])
    assert (first[0], second) == (code, (code, "", ""))
    assert printed in first[1]
    assert complained in first[2]
    assert first[2].count("\n") == (1 if complained else 0)
    assert [path.name for path in tmp_path.iterdir()] == ["resume.pt"]


@pytest.mark.slow
def test_torchrun(tmp_path, capsys):
    """The real one, on the digits; float32 means as above."""
    words = ["--recipe", "adm", "--iterations", "2", "--quiet", "--out"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "bench.models.train", *words, str(tmp_path / "two")],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'two' / 'adm.safetensors'}\n")
    assert main([*words, str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one' / 'adm.safetensors'}\n"
    assert rows(tmp_path / "two") == [pytest.approx(row, rel=1e-5) for row in rows(tmp_path / "one")]


def test_parts_cover_a_batch():
    for size in (1, 2, 3, 7):
        for batch in (7, 8, 128):
            parts = [Replicas(rank, size).part(batch) for rank in range(size)]
            assert [k for part in parts for k in range(part.start, part.stop)] == list(range(batch))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            for count in range(batch + 1):
                assert sum(part.of_first(count) for part in parts) == count
