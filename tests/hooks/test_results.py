"""Recorded loops in a results folder, which the analysis draws beside exact denoisers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch
from exact_loops import Pipeline, gaussian_data

from analysis.comparison.pairs import pairs_table
from analysis.records.arrays import cell_terms
from analysis.records.load import load_results
from analysis.regenerate import regenerate
from analysis.report.terminal import terminal_summary
from bench.data import load
from bench.hooks import HookError, record
from bench.measure.features.extractors import open_extractor

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers under numpy 2
LOOPS = {
    "DDIM": ("DDIMScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
}


def recorded(out, name, noise=0, count=32, forced=32, **options):
    pipe = Pipeline(*LOOPS[name], 5)
    with record(pipe, real=gaussian_data(), out=out, forced=forced, **options) as log:
        pipe(pipe.start(count, noise), steps=5)
    return log


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "mine"
    for name in LOOPS:
        recorded(out, name)
    return out


def test_every_loop_is_a_whole_cell(folder):
    results = load_results(folder)
    assert not results.problems
    assert {record.cell["model"]: record.facts["nfe"] for record in results.cells} == {"DDIM": 5, "Heun": 9, "PNDM": 6}
    for record_ in results.cells:
        written = pd.read_csv(record_.folder / "steps.csv")
        assert set(written["arm"]) == {"free", "forced-train"}


def test_the_exact_denoiser_is_its_own_floor(folder):
    """The network is exact for independent pixels; in its own loop so is the floor, within the spread of the walks.

    1024 walks of 16 pixels: a variance ratio is off by sqrt(2 / 16384) = 1.1 %, of 32 images by 6 %. The floor has the
    covariance of 200 images, whose eigenvalues are spread; 30 % bounds all of it at these levels.
    """
    steps = load_results(folder).steps
    ratio = steps[steps["quantity"] == "variance_ratio"].pivot_table(
        index=["model", "i"], columns="arm", values="value", observed=True
    )
    assert {"free", "gaussian", "empirical", "gaussian-forced", "forced-train"} <= set(ratio.columns)
    np.testing.assert_allclose(ratio["free"], ratio["gaussian"], rtol=0.3)


@pytest.mark.slow
def test_the_analysis_draws_it(folder):
    results = regenerate(folder)
    assert not results.problems
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"eps_norm", "x0_error", "variance_parts", "spectrum_ratio"} <= drawn
    table = pd.read_csv(folder / "tables" / "variance.csv")
    assert set(table["model"]) == set(LOOPS)
    assert table["few_steps"].notna().all()  # of each loop's own exact denoiser
    assert (folder / "report.html").exists()


def test_a_second_loop_of_the_same_name_and_settings_replaces_the_first_and_others_are_refused(tmp_path):
    for _ in range(2):
        log = recorded(tmp_path / "out", "DDIM", exact=False)
    assert log.notes == ["this loop takes the place of another called DDIM-loop-5-seed0; name= keeps both"]
    with pytest.raises(HookError, match=r"made with another forced .* give this loop a name= of its own"):
        recorded(tmp_path / "out", "DDIM", exact=False, forced=8)
    with pytest.raises(HookError, match=r"made with another samples .* choose another out="):  # no table can hold both
        recorded(tmp_path / "out", "Heun", count=16)
    assert len(load_results(tmp_path / "out").cells) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cells"]  # without exact denoisers


def test_two_schedulers_from_the_same_noise_are_a_pair_and_others_are_not(tmp_path):
    """A pair has the variance of its differences, independent samples have the sum of both variances."""
    for name, noise in (("DDIM", 0), ("Heun", 0), ("PNDM", 1)):
        recorded(tmp_path / "out", name, noise, 64, exact=False)
    results = load_results(tmp_path / "out")
    pairs = pairs_table(results).set_index(["model", "other"])
    assert pairs["noise"].to_dict() == {("Heun", "DDIM"): "same", ("PNDM", "DDIM"): "other", ("PNDM", "Heun"): "other"}
    terms = {name: cells for (name, _), cells in cell_terms(results)[5].items()}
    for (model, other), error in pairs["error"].items():
        ours, theirs = terms[model][0], terms[other][0]
        same = pairs.loc[(model, other), "noise"] == "same"
        (phi, own), (other_phi, other_own) = ((one.frechet, one.frechet_self[:, None]) for one in (ours, theirs))
        sides = [(phi - other_phi, own - other_own)] if same else [(phi, own), (other_phi, other_own)]
        psi = ours.frechet_reference - theirs.frechet_reference
        samples = sum(side.mean(1).var(ddof=1) for side, _ in sides) / 64
        common = sum(max(np.cov((side - part).T)[0, 1], 0) for side, part in sides) / 64
        shared = max(common, np.diff(psi).var(ddof=1) / (4 * 200))
        variance = (samples + shared) / 2 + max(np.cov(psi.T)[0, 1], 0) / 200
        assert error == pytest.approx(variance**0.5)
    printed = " ".join(terminal_summary(results, 100).split())
    assert "2 of 3 comparisons are not paired (noise: other)" in printed
    assert "paired: the same noise" in printed
    assert "fd_pixel_moments against real images" in printed
    assert "moments of the pixels themselves, no FID" in printed


def test_the_embedded_classifier_reads_the_very_images_that_the_pipeline_returns(small_unet, tmp_path):
    pipe = diffusers.DDIMPipeline(small_unet, diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    digits = load("digits").part("train")[:120]
    with record(pipe, real=digits, out=tmp_path, forced=2, exact=False, samples=True, name="d"):
        images = [pipe(8, torch.Generator().manual_seed(k), 0.0, 2, output_type="np").images for k in range(2)]
    expected = torch.from_numpy(np.concatenate(images) * 255).round().to(torch.uint8).movedim(3, 1)
    cell = load_results(tmp_path).cells[0]
    assert np.array_equal(cell.arrays("samples.npz")["arr_0"], expected.movedim(1, 3).expand(-1, -1, -1, 3))
    pooled, _ = open_extractor("digits").extract(expected)
    np.testing.assert_allclose(cell.arrays("features.npz")["pooled"], pooled, rtol=1e-5, atol=1e-6)
    reasons = {score["metric"]: score["reason"] for score in cell.facts["scores"]}
    assert "a covariance of 64 features needs 65 images, not 16" in reasons["fd_digits"]
    noise = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(cell.arrays("influence.npz")["start"][8:], noise.flatten(1)[:, :4])


def test_without_real_images_the_folder_has_a_table_alone(tmp_path):
    pipe = Pipeline(*LOOPS["DDIM"], 5)
    with record(pipe, out=tmp_path / "out", name="bare") as log:
        pipe(pipe.start(8), steps=5)
    cell = tmp_path / "out" / "cells" / "bare-loop-5-seed0"
    assert sorted(path.name for path in cell.iterdir()) == ["metrics.json", "steps.csv"]
    assert json.loads((cell / "metrics.json").read_text())["notes"] == log.notes
    regenerate(tmp_path / "out")


WEIGHT = 2.5


class Guided:
    """A pipeline that asks for both predictions at once, as Stable Diffusion's does, or the other way round."""

    def __init__(self, unet, scheduler, condition, first):
        self.unet, self.scheduler, self.condition, self.first = unet, scheduler, condition, first
        self.plain = []

    @torch.no_grad()
    def __call__(self, x):
        self.scheduler.set_timesteps(4)
        none = torch.zeros_like(self.condition)
        pair = [none, self.condition] if self.first == "without" else [self.condition, none]
        for t in self.scheduler.timesteps:
            halves = self.unet(torch.cat([x, x]), t, encoder_hidden_states=torch.cat(pair)).sample.chunk(2)
            without, plain = halves if self.first == "without" else halves[::-1]
            self.plain.append(plain)
            x = self.scheduler.step(without + WEIGHT * (plain - without), t, x).prev_sample
        return x


@pytest.mark.parametrize("first", ["without", "with"])
def test_guided_and_plain_predictions_are_told_apart(first):
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, attention_head_dim=(2, 4),
    ).eval()  # fmt: skip
    pipe = Guided(unet, diffusers.DDIMScheduler(clip_sample=False), torch.randn(3, 5, 12), first)
    start, latents = torch.randn(3, 4, 8, 8), torch.randn(6, 4, 8, 8)
    given = {"encoder_hidden_states": torch.randn(6, 5, 12)}
    with record(pipe, real=(latents, given, {"encoder_hidden_states": torch.zeros(1, 5, 12)})) as log:
        pipe(start)
    assert log.guidance == pytest.approx(WEIGHT, rel=1e-3)
    table = log.table()
    norms = table[(table["arm"] == "free") & (table["quantity"] == "plain_eps_norm")].sort_values("i", ascending=False)
    np.testing.assert_allclose(norms["value"], [x.flatten(1).norm(dim=1).mean() for x in pipe.plain], rtol=1e-4)
    assert {"guidance_norm", "plain_x0_rmse"} <= set(table.loc[table["arm"] == "forced-train", "quantity"])
    with record(pipe, real=(latents, given)) as log:
        pipe(start)
    assert "give real=(latents, conditions, conditions for none)" in log.notes[0]
    with record(SimpleNamespace(unet=unet, scheduler=pipe.scheduler), real=latents) as log:
        pipe(start)
    assert "forced-train" not in set(log.table()["arm"])
