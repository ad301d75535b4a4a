"""Both sides of a comparison compute the same: one noise, one network, the same images."""

from dataclasses import replace
from functools import partial
from multiprocessing import Pipe, active_children

import numpy as np
import pytest
import torch

from bench.diffusion.noise import Noise, Purpose
from bench.models.acceleration import CompileError
from bench.models.train.recipes import RECIPES
from benchmarks.speed import instruments, peers, sampling, walks
from benchmarks.speed.isolated import _serve, contestant
from benchmarks.speed.network_share import share
from benchmarks.speed.processes import processes
from benchmarks.speed.training import training

STEPS, BATCH, SIZE = 2, 2, 8  # of the tiny setting
# Images of 8 bits: float32 sums in another order may round to the next grey level.
ONE_LEVEL = 1


@pytest.fixture
def subject(tiny):
    (subject,) = walks.images(tiny)
    return subject


@pytest.fixture
def shared_noise(monkeypatch, subject):
    """Make torch.randn, which all peers draw from, return what our walk draws: the start, then each step's noise."""

    def share(start_factor):
        samples, noise = torch.arange(BATCH), Noise(0)
        draws = [noise.normal(samples, Purpose.ANCESTRAL, i, subject.shape) for i in range(STEPS)]
        draws.append(start_factor * noise.normal(samples, Purpose.START, 0, subject.shape))
        monkeypatch.setattr(torch, "randn", lambda *_, **__: draws.pop())

    return share


def pixels(unit):
    return np.rint(255 * unit)


@pytest.mark.parametrize(
    ("solver", "peer"), [("ddpm", peers.ddpm_pipeline), ("ddim", peers.ddim_pipeline), ("ddpm", peers.by_hand)]
)
def test_peers_make_our_images(subject, shared_noise, solver, peer):
    ours = walks.Walk(subject, solver)()
    shared_noise(subject.path[0].sigma)
    theirs = peer(subject)()
    theirs = theirs if theirs.dtype == np.uint8 else pixels(theirs)
    assert ours.shape == theirs.shape == (BATCH, SIZE, SIZE, 3)
    assert ours.std() > 1  # not one grey
    assert np.abs(ours - theirs.astype(float)).max() <= ONE_LEVEL


@pytest.mark.skipif(not peers.has_k_diffusion(), reason="k-diffusion is optional")
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_k_diffusion_makes_our_images(subject, shared_noise, solver):
    ours = walks.Walk(subject, solver, clip=False)()
    shared_noise(1.0)
    states = peers.k_sampler(subject, f"sample_{solver}")()
    theirs = pixels((states.clamp(-1, 1).permute(0, 2, 3, 1).numpy() + 1) / 2)
    assert np.abs(ours - theirs).max() <= ONE_LEVEL


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler", "heun"])
def test_both_sides_ask_the_network_equally_often(subject, sampler):
    asked, calls = [], 2 * STEPS - 1 if sampler == "heun" else STEPS
    subject.network.register_forward_pre_hook(lambda network, given: asked.append(len(given[0])))
    makers = {"ddpm": [peers.ddpm_pipeline], "ddim": [peers.ddim_pipeline]}
    if peers.has_k_diffusion():
        makers |= {name: [partial(peers.k_sampler, name=f"sample_{name}")] for name in ("euler", "heun")}
    for make in (partial(walks.Walk, sampler=sampler), *makers.get(sampler, [])):
        asked.clear()
        make(subject)()
        assert asked == [BATCH] * calls


def test_instruments_are_the_suites_and_change_no_image(subject):
    watched, plain = walks.Walk(subject), walks.Walk(subject, instruments=False)
    assert [bool(walk.arms._probes(paired=False)) for walk in (watched, plain)] == [True, False]
    assert np.array_equal(watched(), plain())


def test_every_sampler_gives_a_row(tiny):
    rows = list(sampling.sampling(tiny))
    assert [row.peer for row in rows][:3] == ["diffusers.DDPMPipeline", "diffusers.DDIMPipeline", "a loop by hand"]
    assert len(rows) == (5 if peers.has_k_diffusion() else 3)
    assert all(row.low <= row.ratio <= row.high and row.low > 0 for row in rows)


def test_without_k_diffusion_the_others_are_measured(tiny, monkeypatch, capsys):
    monkeypatch.setattr(sampling, "has_k_diffusion", lambda: False)
    assert len(list(sampling.sampling(tiny))) == 3
    assert "left out" in capsys.readouterr().err


def test_without_a_compiler_bf16_is_measured(tiny, monkeypatch, capsys):
    monkeypatch.setattr("bench.models.acceleration.Accelerated.compile", refuse)
    rows = list(sampling.modes(tiny))
    assert [row.name.split(",")[0] for row in rows] == ["ddpm bf16"]
    assert rows[0].ratio > 0
    assert capsys.readouterr().err.count("no compiler") == 3


@pytest.mark.slow
def test_compiled_modes_give_rows(tiny):
    rows = list(sampling.modes(tiny))
    assert [row.name.split(",")[0] for row in rows] == ["ddpm compiled", "ddpm bf16", *["ddpm bf16 compiled"] * 2]
    assert all(row.ratio > 0 for row in rows)


@pytest.mark.ci
def test_instruments_give_a_row_each(tiny):
    rows = list(instruments.instruments(tiny))
    assert [row.peer for row in rows] == ["no instruments", "network calls alone"] * 2
    assert all(row.ratio > 0 for row in rows)


@pytest.mark.slow
def test_a_process_of_its_own_makes_the_call(tiny, subject):
    with contestant(partial(walks.ours, subject, "ddpm"), replace(tiny, isolated=True)) as call:
        call()
        call()
        (process,) = active_children()
    assert not process.is_alive()


def refuse(*_):
    raise CompileError("no compiler")


def test_what_a_process_of_its_own_cannot_build_is_its_answer():
    here, there = Pipe()
    for more in (True, False):
        here.send(more)
    _serve(there, refuse, torch.get_num_threads(), "cpu")
    assert here.recv() == "no compiler"


@pytest.mark.ci
def test_the_networks_share_is_a_share(tiny, capsys):
    rows = list(share(tiny))
    assert len(rows) == 2
    assert all(0 < row.low <= row.high < 1 for row in rows)
    assert "outside the network" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_give_a_row(tiny):
    (row,) = processes(tiny)
    assert row.ratio > 0


@pytest.mark.ci
def test_training_compares_recipes_with_the_baseline(tiny, monkeypatch):
    recipes = {name: replace(RECIPES[name], batch=8) for name in ("adm", "adm-gp")}
    monkeypatch.setattr("benchmarks.speed.training.RECIPES", recipes)
    rows = list(training(tiny))
    assert [row.name for row in rows] == ["adm, ddpm", "adm-gp, ddpm"]
    assert all(row.peer == "adm" and row.pairs == 5 for row in rows)
