"""``--compile``: when it happens, that it changes nothing but speed, and that the decision stands."""

import json

import numpy as np
import pytest
import torch

from bench.suite import cli, compiling
from bench.suite.compiling import settle_compiling
from bench.suite.config.flags import make_parser
from bench.suite.processes.ranks import Team

RUN = ("--features", "none", "--no-probes", "--quiet", "--steps", "3", "--samples", "20", "--batch-size", "8")


@pytest.fixture
def no_compiler(monkeypatch):
    def failing(*asked):
        raise RuntimeError("InvalidCxxCompiler: no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", lambda network, **how: failing)


@pytest.fixture
def long_run(monkeypatch):
    """Take any run for one that repays compiling, and compiled code for faster."""
    monkeypatch.setattr(compiling, "_FEWEST", 1)
    monkeypatch.setattr(compiling, "repays_compiling", lambda seconds, layers: True)
    monkeypatch.setattr(compiling, "_gains", lambda run: True)


@pytest.fixture
def tiny(command, toml, tmp_path):
    def call(*flags, out="out"):
        args = ("--config", toml, "--dataset", "pictures", "--models", "tiny")
        return command(*args, *RUN, "--out", tmp_path / out, *flags)

    return call


def samples(folder):
    with np.load(folder / "cells" / "tiny-ddpm-3-seed0" / "samples.npz") as file:
        return file["arr_0"]


def compiled(folder):
    return json.loads((folder / "run.json").read_text())["compiled"]


def test_compiled_runs_make_the_same_images(tiny, tmp_path, traced):
    assert tiny("--compile", "off", out="off").code == 0
    assert traced() == 0
    assert tiny("--compile", "on", out="on").code == 0
    assert traced() == 1
    assert (samples(tmp_path / "off") == samples(tmp_path / "on")).all()
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("off", "on")]
    assert [record["compiled"] for record in records] == [False, True]
    assert records[0]["hash"] == records[1]["hash"]  # like the batch size, it is no part of the configuration


def test_models_of_one_architecture_compile_once(command, toml, tmp_path, traced, save_tiny):
    other = save_tiny(name="other", edit=lambda unet: torch.nn.init.normal_(unet.conv_out.weight, std=0.01))
    args = ("--config", toml, "--dataset", "pictures", "--models", f"tiny,tiny-es,other={other}", "--eps-scale", "1.01")
    assert command(*args, *RUN, "--compile", "on", "--out", tmp_path / "out").code == 0
    assert traced() == 1


def test_a_short_run_is_not_compiled(tiny, tmp_path, traced):
    assert tiny().code == 0
    assert (traced(), compiled(tmp_path / "out")) == (0, False)


def test_a_long_run_is_compiled(tiny, tmp_path, traced, long_run):
    assert tiny().code == 0
    assert (traced(), compiled(tmp_path / "out")) == (1, True)


def test_the_decision_outlives_an_interruption(tiny, tmp_path, traced, long_run, monkeypatch):
    assert tiny().code == 0
    for file in ("metrics.json", "samples.npz"):
        (tmp_path / "out" / "cells" / "tiny-ddpm-3-seed0" / file).unlink()
    monkeypatch.setattr(compiling, "repays_compiling", lambda seconds, layers: False)
    monkeypatch.setattr(compiling, "_gains", lambda run: False)
    assert tiny().code == 0
    assert compiled(tmp_path / "out")
    (tmp_path / "out" / "cells" / "tiny-ddpm-3-seed0" / "metrics.json").unlink()
    assert tiny("--compile", "off").code == 0
    assert not compiled(tmp_path / "out")


def test_scores_made_anew_need_no_compiler(tiny, tmp_path, no_compiler):
    assert tiny("--compile", "off").code == 0
    assert tiny("--compile", "on", "--features", "digits").code == 0
    assert not compiled(tmp_path / "out")


class Second(Team):
    """A rank that does not lead, beside one that wants to compile."""

    rank, size = 1, 2

    def __init__(self, first=("walks", "compile")):
        super().__init__()
        self.first = list(first)

    def gather(self, lines):
        return [*([self.first.pop(0)] if self.first else []), *lines]


@pytest.fixture
def resolved(toml, tmp_path):
    args = ["--config", str(toml), "--dataset", "pictures", "--models", "tiny", *RUN, "--out", str(tmp_path / "out")]
    _, run = cli.resolve(make_parser().parse_args(args), args, Team())
    return run


def test_ranks_do_as_the_first(resolved, traced):
    assert settle_compiling(resolved, Second())
    assert traced() == 1


def test_a_rank_without_a_compiler_stops_all(resolved, traced, capsys):
    assert not settle_compiling(resolved, Second(["walks", "compile", "no compiler on the first"]))
    assert not any(network.is_compiled for network in resolved.networks.values())
    assert capsys.readouterr().err == ""  # the first rank speaks


def test_a_longer_plan_is_decided_anew(tiny, tmp_path, traced, long_run, monkeypatch):
    assert tiny().code == 0
    monkeypatch.setattr(compiling, "repays_compiling", lambda seconds, layers: False)
    assert tiny("--seeds", "0,1").code == 0
    assert not compiled(tmp_path / "out")


def test_compiled_code_must_be_faster(tiny, tmp_path, traced, long_run, monkeypatch):
    monkeypatch.setattr(compiling, "_gains", lambda run: False)
    outcome = tiny()
    assert outcome.code == 0
    assert "note: networks are not compiled (compiled code is not faster here)" in outcome.err
    assert not compiled(tmp_path / "out")


def test_gains_are_measured(tiny, traced, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(compiling, "_FEWEST", 1)
    monkeypatch.setattr(compiling, "repays_compiling", lambda *plan: not seen.append(plan))
    monkeypatch.setattr(compiling, "seconds_a_call", lambda call, device: 1.0)
    assert tiny().code == 0
    [(seconds, layers)] = seen
    assert seconds == 3 * 3  # 20 images in 3 batches of 8, at 3 steps
    assert len(layers) == 1
    assert layers[0] > 10
    assert not compiled(tmp_path / "out")  # equal times are no gain


def test_without_a_compiler_on_is_a_mistake(tiny, tmp_path, no_compiler):
    outcome = tiny("--compile", "on")
    assert outcome.code == 2
    assert outcome.err == "error: --compile on: InvalidCxxCompiler: no compiler here; use --compile off\n"
    assert not (tmp_path / "out").exists()


def test_without_a_compiler_auto_goes_on(tiny, tmp_path, no_compiler, long_run):
    outcome = tiny()
    assert outcome.code == 0
    assert outcome.err == "note: networks are not compiled (InvalidCxxCompiler: no compiler here)\n"
    assert not compiled(tmp_path / "out")


def test_unknown_ways_are_refused(tiny):
    outcome = tiny("--compile", "yes")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "--compile" in outcome.err
