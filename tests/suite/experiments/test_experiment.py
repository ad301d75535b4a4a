"""The command with every measurement, those with network calls of their own included."""

import json
import re

import pytest


@pytest.fixture(scope="module")
def short_weights(save_tiny):
    """A tiny network of 8 training steps."""
    return save_tiny("short", description={"T": 8})


@pytest.fixture
def everything(tmp_path, short_weights, pictures):
    """The arguments of a run with two models of one network and every measurement."""
    config = tmp_path / "bench.toml"
    config.write_text(
        f'[models.tiny]\nweights = "{short_weights}"\n[models.tiny-es]\nbase = "tiny"\n'
        'corrections = [{ kind = "epsilon-scaling", b = 1.1 }]\n'
        f'[datasets.pictures]\npath = "{pictures}"\nheldout_every = 4\n'
    )
    flags = (
        "--dataset pictures --models tiny,tiny-es --steps 2,3 --seeds 0-1 --samples 5 --features none --batch-size 64"
    )
    return [*flags.split(), "--config", config, "--out", tmp_path / "out"]


def total_of(text):
    return int(re.search(r"total +([\d,]+) network calls", text)[1].replace(",", ""))


def files(out):
    return {path: path.read_bytes() for kind in ("chains", "response") for path in (out / kind).rglob("*.*")}


def test_everything_is_measured_counted_resumed_and_not_repeated(everything, command, tmp_path, interrupting):
    out = tmp_path / "out"
    planned = command(*everything, "--measure", "all", "--dry-run")
    assert planned.code == 0
    assert not out.exists()
    with interrupting(-1) as counting:
        outcome = command(*everything, "--measure", "all")
    assert outcome.code == 0, outcome.err
    # Every unit, chain and response is one batch, so that no row is padding.
    total = total_of(planned.out)
    assert total == counting.rows == json.loads((out / "run.json").read_text())["network_calls"]
    chains = {f"tiny{es}-{method}-{length}-seed{seed}" for es in ("", "-es") for method in ("mean", "ddim", "ancestral")
              for length in (1, 2, 5, 7, 8) for seed in (0, 1)}  # fmt: skip
    assert {path.name for path in (out / "chains").iterdir()} == chains | {"data-cosine-8-seed0", "data-cosine-8-seed1"}
    assert {path.name for path in (out / "response").iterdir()} == {"tiny-2", "tiny-3", "tiny-es-2", "tiny-es-3"}
    done = command(*everything, "--measure", "all", "--dry-run").out
    assert "to do" not in done
    assert total_of(done) == total
    # A second time nothing is computed, and nothing printed.
    before = files(out)
    with interrupting(0):
        again = command(*everything, "--measure", "all")
    assert (again.code, again.out, files(out)) == (0, "", before)


@pytest.mark.ci
def test_chains_alone_leave_cells_without_instruments(everything, command, tmp_path):
    out = tmp_path / "out"
    assert command(*everything, "--seeds", "0", "--measure", "chains", "--quiet").code == 0
    assert not (out / "response").exists()
    cells = list((out / "cells").iterdir())
    assert len(cells) == 4
    assert all({path.name for path in cell.iterdir()} == {"samples.npz", "metrics.json"} for cell in cells)
    before = {path: path.stat().st_mtime_ns for path in (out / "chains").rglob("*")}
    assert command(*everything, "--seeds", "0", "--measure", "all", "--quiet").code == 0  # adds what is missing
    assert {path: path.stat().st_mtime_ns for path in (out / "chains").rglob("*")} == before
    assert (cells[0] / "steps.csv").exists()


def test_scaling_that_ends_within_the_chains_is_one_line(everything, command, tmp_path):
    flags = ("--eps-scale", "1", "--eps-slope", "-0.2")
    assert command(*everything, *flags, "--dry-run").code == 0  # 1 - .2 at 2 steps, 1 - .4 at 3
    outcome = command(*everything, *flags, "--measure", "chains")
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        "error: model 'tiny-es': epsilon scaling by 1.0 + -0.2*i reaches -0.4; it must stay positive and finite,"
        " over the 8 steps of its chains; leave chains out of --measure"
    ]
    assert not (tmp_path / "out").exists()
