"""Runs on a dataset whose images are not at hand, of which the package keeps statistics."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from suite_ranks import command as suite_command

from analysis.regenerate import regenerate
from bench.data import load
from bench.measure.features.extractors import open_extractor
from bench.measure.quality import embedded_statistics
from bench.measure.quality.embedded_statistics import write_embedded

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Write 20 noisy images a class in CIFAR-10's shape, four of them in its test part."""
    root = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    np.savez(root / "cifar10.npz", arr_0=pixels, arr_1=np.arange(200) % 10)
    return root


@pytest.fixture(scope="module")
def statistics(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded_statistics, "_covariance", lambda data: {})  # half a minute at this size
        write_embedded(load("cifar10", images), open_extractor("cifar10"), folder / "cifar10-statistics.npz")
    return folder


@pytest.fixture(autouse=True, scope="module")
def kept(statistics):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded_statistics, "_FOLDER", statistics)
        yield


@pytest.fixture(scope="module")
def network(save_tiny):
    return save_tiny(name="colour", image_size=32, in_channels=3, out_channels=6)


GRID = ("--dataset", "cifar10", "--steps", "2", "--samples", "130")


@pytest.fixture
def run(command, network, tmp_path):
    def call(*flags, name="out"):
        out = tmp_path / name
        return command("--models", f"tiny={network}", *GRID, *flags, "--out", out), out

    return call


@pytest.fixture(scope="module")
def without(kept, network, tmp_path_factory):
    """What a run without the images says, and its folder."""
    out = tmp_path_factory.mktemp("without") / "out"
    code, _, said = suite_command("--models", f"tiny={network}", *GRID, "--out", str(out))
    assert code == 0, said
    return said, out


def facts(out):
    (path,) = Path(out).glob("cells/*/metrics.json")
    return json.loads(path.read_text())


def scores(out):
    return {score["metric"]: (score["value"], score["reason"]) for score in facts(out)["scores"]}


def test_it_samples_scores_and_measures_what_needs_no_images(without):
    _, out = without
    found = scores(out)
    assert all(found[name][0] is not None for name in ("fd_cifar10", "kid_cifar10", "fd_cifar10_exact"))
    assert found["nn_ratio"] == (None, "the training images are not at hand")
    steps = pd.read_csv(next(Path(out).glob("cells/*/steps.csv")))
    assert set(steps["arm"]) == {"free"}
    assert {"eps_norm", "variance_ratio", "x0_norm"} <= set(steps["quantity"])
    assert facts(out)["cell"]["measure"] == ["steps"]


def test_it_says_what_it_left_out(without, run):
    said, out = without
    (line,) = [line for line in said.splitlines() if line.startswith("note: ")]
    assert "compared with the kept statistics of cifar10-all (200)" in line
    named = json.loads((out / "run.json").read_text())["left_out"]
    assert len(named) == 4
    assert all(text in line for text in named)
    assert [text.split(" ")[0] for text in named] == ["the", "normality", "nn_ratio", "slopes"]
    said = run("--dry-run", "--samples", "4", "--features", "none", name="dry")[0].out
    assert all(f"left out  {text}" in said for text in named)


@pytest.mark.ci
def test_scores_are_those_of_a_run_with_the_images(without, run, images):
    _, with_images = run("--quiet", "--data-dir", images, "--features", "cifar10")
    ours, theirs = scores(without[1]), scores(with_images)
    assert {name: ours[name] for name in ours if name != "nn_ratio"} == {
        name: theirs[name] for name in theirs if name != "nn_ratio"
    }
    assert theirs["nn_ratio"][1] == "the dataset has no held-out part"
    arms = [set(pd.read_csv(next(out.glob("cells/*/steps.csv")))["arm"]) for out in (without[1], with_images)]
    assert arms == [{"free"}, {"free", "forced-train"}]


def test_the_two_do_not_mix_in_one_folder(without, command, network, images):
    more = ("--quiet", "--data-dir", images, "--features", "cifar10", "--out", without[1])
    assert command("--models", f"tiny={network}", *GRID, *more).refused()


@pytest.mark.ci
@pytest.mark.usefixtures("unrendered")
def test_tables_figures_and_report_can_be_made_of_it(without):
    _, out = without
    assert regenerate(out).problems == []
    report = (out / "report.html").read_text()
    assert "left_out" in report
    assert "no real images were at hand to compare it with" in report
    assert "eacher forced at the same t" not in report  # where nothing was
    assert not list(out.glob("figures/*x0_*"))


WITHOUT_IMAGES = [
    (("--features", "inception"), "--features inception needs the images, of which the package keeps statistics"),
    (("--features", "digits"), "--features digits needs the images"),
    (("--resize", "32"), "needs --data-dir DIR"),
]


@pytest.mark.parametrize(("flags", "words"), WITHOUT_IMAGES)
def test_what_cannot_be_done_without_images_is_refused(run, flags, words):
    outcome, out = run(*flags)
    assert outcome.refused(words)
    assert not out.exists()


def test_constants_that_are_measured_on_images_cannot_be_fitted(command, network, tmp_path):
    (tmp_path / "c.toml").write_text(
        f'[models.m]\nbase = "adm"\nweights = "{network}"\n'
        'corrections = [{ kind = "variance-normalisation", variant = "final" }]\n'
    )
    models = ("--config", tmp_path / "c.toml", "--models", "m")
    outcome = command(*models, "--dataset", "cifar10", "--steps", "2", "--tune", "std=fit")
    assert outcome.refused("--tune std=fit needs the images; give the images' folder with --data-dir")


@pytest.mark.parametrize(
    "measure",
    [*(pytest.param(name, marks=pytest.mark.ci) for name in ("chains", "response")), "steps,normality,chains,response"],
)
def test_measurements_that_need_images_are_left_out_by_name(run, measure):
    outcome, out = run("--measure", measure, "--features", "none", "--samples", "4")
    assert outcome.code == 0, outcome.err
    for name in set(measure.split(",")) - {"steps"}:
        assert f"{name} (" in outcome.err
    assert not any((out / name).exists() for name in ("chains", "response"))
