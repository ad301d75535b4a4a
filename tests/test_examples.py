"""The examples run as they stand."""

import importlib.util
import json
import sys
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import run_bench
from analysis.records.load import load_results
from bench.check.__main__ import main as check_correction
from bench.data import load, to_unit
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM
from bench.models.checkpoints.adapter import adapter_file, describe_adapter, load_adapter
from bench.models.checkpoints.native import read_description
from bench.models.denoisers.parameterization import NetworkDenoiser
from bench.suite.registry.registry import load_registry

EXAMPLES = Path(__file__).parent.parent / "examples"


def program(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def adapted(name):
    """Return the description and the denoiser of an entry of ``adapter.toml``."""
    entry = tomllib.loads((EXAMPLES / "adapter.toml").read_text())["models"][name]
    description = describe_adapter(entry, EXAMPLES)
    network = load_adapter(adapter_file(entry["adapter"], EXAMPLES), description)
    return description, NetworkDenoiser(network, description.prediction)


def test_the_adapter_draws_pixels_of_the_digits_mean_and_variance():
    """A hundred DDIM steps of the exact denoiser of independent Gaussian pixels; the steps alone lose below 5 %.

    Of 2000 samples the mean over 64 pixels is off by .6 / sqrt(2000) / 8 = .002, the variance's by
    sqrt(2 / 2000) / 8 = 0.4 % for equal pixels, about twice that for these; 7 % and .01 are allowed.
    """
    description, denoiser = adapted("pixelwise")
    path, draws = levels(description.schedule, description.T, 100), Draws(Noise(0), torch.arange(2000))
    steps = list(walk(denoiser, path, prior(path[0], draws, (1, 8, 8)), DDIM(), draws, clip=False))
    drawn, real = steps[-1].x_next, to_unit(load("digits").part("train"))
    assert abs(drawn.mean() - real.mean()) < 0.01
    assert abs(drawn.var(0).mean() / real.var(0).mean() - 1) < 0.07


def test_a_denoiser_that_is_told_sigma_is_asked_at_the_walks_levels():
    """Both are the posterior mean of the same pixels, one by alpha_bar, one by sigma; float32 differs by 1e-5."""
    pixels = to_unit(load("digits").part("train"))
    mean, variance = pixels.mean(0), pixels.var(0)
    noise = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    description, denoiser = adapted("karras")
    for level in levels(description.schedule, description.T, 7)[:-1]:
        x = level.alpha * pixels[:16] + level.sigma * noise
        gain = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
        expected = mean + gain * (x - level.alpha * mean)
        assert torch.allclose(denoiser(x, level).x0, expected, atol=1e-5)


@pytest.mark.ci
def test_a_latent_model_runs_by_the_main_command(tmp_path):
    assert program("latent_diffusion").main(tmp_path, steps=2, images=70) == 0
    results = load_results(tmp_path / "results")
    assert not results.problems
    assert {cell.cell["model"] for cell in results.cells} == {"sd", "sd-guided"}
    assert {"free", "forced-train"} <= set(results.steps["arm"])


def test_the_scales_of_guidance_are_those_of_the_docs():
    registry = load_registry((EXAMPLES / "guidance.toml",), "digits")
    assert {name: registry.model(name).guidance_keys for name in ("adm-cond", "adm-cond-w1.5", "adm-cond-w3")} == {
        "adm-cond": {}, "adm-cond-w1.5": {"guidance": 1.5}, "adm-cond-w3": {"guidance": 3},
    }  # fmt: skip


RUNS = ("pipeline_schedulers", "k_diffusion_loop", "custom_loop", "latent_pipeline", "custom_correction")
LONGEST = 60  # lines of an example


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Each example of a recorded loop, run at few steps; the folder of results of each."""
    root = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        few_walks(patch)
        for name in RUNS:
            program(name).main(root / name, steps=4, images=16)
    return root


def few_walks(patch):
    """Let exact denoisers walk 64 images, of 64 pixels each here, in place of 1024."""
    for name in ("_MANY", "_FEW"):
        patch.setattr(f"bench.hooks.loops.{name}", 64)


@pytest.mark.parametrize("name", RUNS)
def test_recorded_loops_are_sound_results(recorded, name):
    results = load_results(recorded / name)
    assert not results.problems
    assert set(results.steps["quantity"]) >= {"eps_norm", "variance_ratio"}
    assert len(results.cells) == (2 if name in ("pipeline_schedulers", "custom_correction") else 1)


def test_a_model_of_own_images_is_sampled_as_the_example_says(tmp_path, capsys):
    program("dead_leaves").main(tmp_path, count=154, iterations=1)
    assert read_description(tmp_path / "adm-ip.safetensors").training["dataset"] == "dead-leaves"
    images = np.load(tmp_path / "dead-leaves.npz")["arr_0"]
    assert (images.shape, images.dtype) == ((154, 8, 8, 1), np.uint8)
    assert 0 < images.min() < images.max() <= 255
    models = ",".join(f"{name}={tmp_path / name}.safetensors" for name in ("adm", "adm-ip"))
    flags = ["--config", f"{tmp_path / 'dead-leaves.toml'}", "--dataset", "dead-leaves", "--features", "digits"]
    assert run_bench.main([*flags, "--models", models, "--steps", "2", "--samples", "2", "--dry-run"]) == 0
    assert "dead-leaves (154 images, 14 held out" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*RUNS, "read_results", "latent_diffusion", "dead_leaves", "noise_awareness"])
def test_examples_are_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < LONGEST


def test_an_exact_denoiser_in_a_k_diffusion_loop_sees_what_it_saw_in_training(recorded):
    """Its norms free running are near those on real noised data: the Gaussian has the digits' moments.

    16 images of 64 pixels and 4 steps: 20 % bounds discretisation and noise.
    """
    steps = load_results(recorded / "k_diffusion_loop").steps
    norms = steps[steps["quantity"] == "eps_norm"].pivot_table(index="i", columns="arm", values="value", observed=True)
    np.testing.assert_allclose(norms["free"].iloc[1:], norms["forced-train"].iloc[1:], rtol=0.2)


def test_a_results_folder_is_read_with_pandas(recorded, capsys):
    program("read_results").main(recorded / "pipeline_schedulers")
    printed = capsys.readouterr().out
    assert {"DDIM", "DPMSolverMultistep", "exact"} <= set(printed.split())


@pytest.mark.ci
def test_the_correction_of_the_example_keeps_its_contract(capsys):
    assert check_correction([f"{EXAMPLES / 'custom_correction.py'}:Widened"]) == 0
    assert "BROKEN" not in capsys.readouterr().out


def test_the_tour_runs_from_a_record_to_its_figure(monkeypatch):
    """The cells of the notebook in their order, in one namespace; its figure has the network and the exact denoiser."""
    few_walks(monkeypatch)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]).replace("256", "64"), "tour.ipynb", "exec"), names)
    plt.close("all")  # a notebook leaves its figures open
    assert [text.get_text() for text in names["left"].get_legend().get_texts()] == ["exact denoiser", "this network"]
    assert set(names["steps"]["arm"]) == {"free", "forced-train"}
    exact = names["exact"].query("arm == 'gaussian' and quantity == 'variance_ratio'")["value"]
    assert ((exact > 0.5) & (exact < 1.1)).all()
