import numpy as np
import pytest
from records import edited
from synthetic_results import assert_figures

from analysis.published.protocol import overlay
from analysis.published.tables import TABLES
from analysis.quality.main_table import draw_quality, quality_table
from analysis.records.load import load_results
from bench.suite.settings import short_hash


@pytest.fixture
def cifar(folder):
    """Return a function that makes a cell scored as the papers score, with changes to configuration and score."""

    def make(steps=100, labels=False, **changes):
        cell_folder = folder.cell("mine", steps, probes=False, n=50)
        if labels:
            images = np.load(cell_folder / "samples.npz")["arr_0"]
            np.savez(cell_folder / "samples.npz", arr_0=images, arr_1=np.arange(len(images)))
        with edited(cell_folder / "metrics.json") as facts:
            score = {"reference": "cifar10-all (50000)", "metric": "fid", "n": 50_000, "value": 3.0, "reason": ""}
            cell = {"variance": "learned", "quantize": "floor"}
            for name, value in changes.items():
                (score if name in score else cell)[name] = value
            facts["scores"] = [score]
            facts["cell"] |= cell
            facts |= {"key": short_hash(facts["cell"])}
        return load_results(folder.root)

    return make


def test_overlay_of_the_papers_protocol(cifar):
    for steps in (20, 80, 1000):
        cifar(steps)
    found = overlay(cifar(100), "fid").set_index(["model", "steps"])["value"]
    assert (found["ADM", 1000], found["ADM-IP", 100], found["DDPM-y", 80]) == (2.99, 2.70, 4.24)
    assert (found["ADM-ES", 20], found["ADM-GP", 1000]) == (5.15, 2.80)
    assert found.index.is_unique  # numbers that the papers repeat are drawn once
    assert "DDPM" not in found.index.get_level_values("model")
    assert set(found.index.get_level_values("steps")) == {20, 80, 100, 1000}  # those of the folder


@pytest.mark.parametrize("reference", ["cifar10-all (50000)", "cifar10-train (50000)"])
def test_the_training_set_under_both_names(cifar, reference):
    # An archive of CIFAR-10 has a test part, which is held out; a folder of the training images alone has none.
    assert set(overlay(cifar(reference=reference), "fid")["value"]) == {3.37, 2.70, 2.17, 3.90}


REFERENCES = [
    ({"reference": "imagenet32-all (1281167)"}, {4.26, 3.24}),
    ({"reference": "ffhq128-all (70000)"}, {14.52, 5.94, 6.77}),
    ({"reference": "VIRTUAL_imagenet64_labeled.npz", "labels": True}, {2.71, 2.39}),
    ({"reference": "VIRTUAL_imagenet128_labeled.npz", "labels": True, "classifier_scale": 0.5}, {3.55, 3.37}),
    ({"reference": "VIRTUAL_imagenet128_labeled.npz", "labels": True, "classifier_scale": 1.0}, set()),
    ({"reference": "VIRTUAL_imagenet128_labeled.npz", "labels": True}, set()),
    ({"reference": "VIRTUAL_imagenet64_labeled.npz"}, set()),
    ({"reference": "lsun-tower64-all (50000)"}, set()),  # 50,000 random images, and which is not known
    ({"reference": "celeba64-all (50000)"}, set()),
    ({"labels": True}, set()),
]


@pytest.mark.parametrize(("changes", "values"), REFERENCES)
def test_other_datasets_whose_reference_is_one_set(cifar, changes, values):
    assert set(overlay(cifar(**changes), "fid")["value"]) == values


def test_without_samples_nobody_knows_whether_labels_were_given(cifar):
    results = cifar()
    (results.cells[0].folder / "samples.npz").unlink()
    assert len(overlay(results, "fid")) == 0


def test_edm_is_never_drawn_beside_ours(cifar):
    results = cifar(reference="cifar10-32x32.npz", quantize="round", clip=False)
    assert len(overlay(results, "fid")) == 0
    assert "never drawn" in TABLES["edm_es"][1]


@pytest.mark.parametrize(
    "change",
    [
        {"n": 5000}, {"quantize": "round"}, {"variance": "fixed-large"}, {"reference": "digits-train (1442)"},
        {"reference": "cifar10-train (40000)"}, {"metric": "fd_digits"}, {"clip": False}, {"spacing": "ddim"},
        {"classifier_scale": 0.5}, {"precision": "fp16"},
    ],
)  # fmt: skip
def test_no_overlay_of_another_protocol(cifar, change):
    assert len(overlay(cifar(**change), change.get("metric", "fid"))) == 0


def test_only_the_metric_that_is_drawn(cifar):
    results = cifar(metric="sfid")
    assert set(overlay(results, "sfid")["value"]) == {5.66, 4.51, 6.23}  # at 100 steps: ADM, ADM-IP, DDPM-y
    assert len(overlay(results, "fid")) == 0


def test_digits_have_no_overlay(folder):
    folder.cell(probes=False)
    assert len(overlay(load_results(folder.root), "fd_toy")) == 0


def test_the_overlay_is_drawn(cifar, tmp_path):
    results = cifar()
    paths = draw_quality(quality_table(results), tmp_path / "with", overlay(results, "fid"))
    assert_figures(paths, "fid_vs_steps")
    bare = draw_quality(quality_table(results), tmp_path / "bare")
    assert paths[0].read_bytes() != bare[0].read_bytes()
