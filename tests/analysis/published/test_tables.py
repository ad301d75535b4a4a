import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made import assert_figures

from analysis.output.entries import Output
from analysis.published import delta_t as published_delta
from analysis.published.delta_t import cosine_alpha_bar, delta_table, draw_published_delta, floor_of_mean
from analysis.published.tables import TABLES, Protocol, analyse, comparable, load_published, overlay, wide_table
from analysis.quality.fid_vs_steps import draw_quality, quality_table
from analysis.records.load import load_results
from bench.diffusion.schedules import alpha_bars, levels
from bench.suite.settings import short_hash

CIFAR = Protocol("cifar10-train (50000)", "fid", 50_000, "ddpm", "learned", "floor", True, "plain")
NAMES = [*TABLES, "ts_dpm", "dcw_tables", "fid_vs_iterations", "delta_t_cifar10_20step", "delta_t_floor_cifar10_20step"]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_its_source(name):
    table = load_published(name)
    assert len(table)
    assert table["source"].str.len().gt(10).all()
    assert table.drop(columns="source").duplicated().sum() == 0


def test_numbers_are_kept_as_printed():
    table = load_published("edm_es", as_printed=True)
    assert {"1.0005", "0.9985", "2.80"} <= set(table["b"]) | set(table["value"])
    assert table["b"].isna().sum() == load_published("edm_es")["b"].isna().sum() > 0


# --- what may stand beside ours ------------------------------------------------------------------------------------


def test_the_same_protocol_is_comparable():
    assert comparable(CIFAR, replace(CIFAR))


@pytest.mark.parametrize(
    "change",
    [
        {"reference": "digits-train (1442)"}, {"reference": "cifar10-train (40000)"}, {"metric": "fd_digits"},
        {"metric": "fid_inf"}, {"metric": "clean_fid"}, {"n": 10_000}, {"sampler": "ddim"}, {"variance": "fixed-small"},
        {"quantize": "round"}, {"clip": False}, {"spacing": "ddim"}, {"conditional": True}, {"conditional": None},
        {"guidance": 0.5},
    ],
)  # fmt: skip
def test_anything_else_is_not(change):
    assert not comparable(replace(CIFAR, **change), CIFAR)


def test_what_has_no_protocol_of_ours_is_not():
    assert not comparable(CIFAR, None)


@pytest.fixture
def cifar(folder):
    """Return a function that makes a cell scored as the papers score, with changes to configuration and score."""

    def make(steps=100, labels=False, **changes):
        cell_folder = folder.cell("mine", steps, probes=False, n=50)
        if labels:
            images = np.load(cell_folder / "samples.npz")["arr_0"]
            np.savez(cell_folder / "samples.npz", arr_0=images, arr_1=np.arange(len(images)))
        path = cell_folder / "metrics.json"
        facts = json.loads(path.read_text())
        score = {"reference": "cifar10-all (50000)", "metric": "fid", "n": 50_000, "value": 3.0, "reason": ""}
        cell = {"variance": "learned", "quantize": "floor"}
        for name, value in changes.items():
            (score if name in score else cell)[name] = value
        facts["scores"] = [score]
        facts["cell"] |= cell
        path.write_text(json.dumps(facts | {"key": short_hash(facts["cell"])}))
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


@pytest.mark.parametrize(
    ("changes", "values"),
    [
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
    ],
)
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


@pytest.mark.parametrize("change", [{"n": 5000}, {"quantize": "round"}, {"variance": "fixed-large"}])
def test_no_overlay_of_another_protocol(cifar, change):
    assert len(overlay(cifar(**change), "fid")) == 0


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


# --- tables of the papers --------------------------------------------------------------------------------------------


def test_a_table_as_papers_print_it():
    table = wide_table(load_published("ddpm_ip_table3", as_printed=True))
    assert [name for name in table.columns if name.endswith("steps")] == [f"{n} steps" for n in (80, 100, 300, 1000)]
    assert len(table) == 5 * 2 * 2  # datasets, models, metrics
    row = table[(table["dataset"] == "FFHQ-128") & (table["model"] == "ADM-IP") & (table["metric"] == "FID")].iloc[0]
    assert row[["80 steps", "100 steps", "300 steps", "1000 steps"]].tolist() == ["6.89", "5.94", "3.74", "2.98"]
    assert "Table 3" in row["source"]


@pytest.mark.parametrize("name", [name for name in TABLES if name != "edm_es"])
def test_no_number_is_lost(name):
    table = load_published(name, as_printed=True)
    wide = wide_table(table)
    printed = wide.filter(regex=r"^\d+ steps$").to_numpy().ravel()
    assert sorted(value for value in printed if isinstance(value, str)) == sorted(table["value"])


def test_tables_are_written_in_every_folder(folder):
    folder.cell(probes=False)
    out = Output(folder.root)
    analyse(load_results(folder.root), out)
    assert [entry.name for entry in out.entries] == [f"published_{name}" for name in TABLES]
    assert {entry.section for entry in out.entries} == {"Published numbers"}
    names = {path.name for path in (folder.root / "tables").iterdir()}
    assert {"published_adm_es.md", "published_ts_dpm.csv", "published_dcw_tables.csv"} <= names
    assert "published_ts_dpm.md" not in names  # long ones as CSV alone


# --- the published delta_t -------------------------------------------------------------------------------------------


def test_cosine_schedule_is_the_suites():
    t = np.arange(999)  # the last index is capped there
    np.testing.assert_allclose(cosine_alpha_bar(t), alpha_bars("cosine", 1000)[:-1], rtol=1e-10)


def test_levels_are_those_of_20_respaced_steps():
    table = delta_table()
    visited = [level.t for level in levels("cosine", 1000, "20")][1:-1]  # all but the start and the clean one
    assert table["t"].tolist() == visited
    assert table["timestep"].tolist() == list(range(19, 0, -1))
    # The carried alpha_bar has eight digits.
    carried = load_published("delta_t_floor_cifar10_20step")["alpha_bar"]
    np.testing.assert_allclose(1 - table["sigma"] ** 2, carried, atol=1e-8)


def test_the_floor_is_that_of_the_mean_pixel_but_for_jensens_gap():
    # floor = mean of f(s), f(s) = sqrt(a + b s^2) with a = 1 - alpha_bar, b = 2 alpha_bar, is convex in the pixel's std
    # s, so it lies above f(mean s) by f'' Var(s) / 2 + ..., f'' = a b / (a + b s^2)^1.5. Var(s) is one number for all
    # levels; from the widest gap it is .00136 (pixels' stds .49 +- .04). Its higher orders scale with the spread over
    # s, (.04 / .49) of the gap. The mean std is known to 5e-5, which moves f by at most sqrt(2) 5e-5.
    table = delta_table()
    alpha_bar = 1 - table["sigma"] ** 2
    a, b, s = 1 - alpha_bar, 2 * alpha_bar, published_delta.MEAN_PIXEL_STD
    gap = table["floor_std"] - floor_of_mean(alpha_bar.to_numpy())
    curvature = a * b / (a + b * s**2) ** 1.5
    variance = 2 * gap.max() / curvature[gap.idxmax()]
    assert 0.03 < np.sqrt(variance) < 0.05
    rounding = np.sqrt(2) * 5e-5
    assert (gap > -rounding).all()
    predicted = curvature * variance / 2
    assert (abs(gap - predicted) < rounding + np.sqrt(variance) / s * predicted).all()


def test_published_minus_floor_is_as_computed_before():
    # The design's own table, six digits: std of the published curve minus the floor's.
    excess = delta_table().set_index("timestep")["excess_std"]
    assert excess[[19, 12, 8, 5]].tolist() == pytest.approx([0.002753, 0.002146, -0.000343, -0.004128], abs=1e-6)
    assert excess[[4, 3, 2, 1]].isna().all()  # the published series is cut


def test_the_published_curve_is_nearly_all_floor():
    table = delta_table().dropna(subset="delta_t")
    large = table[table["delta_t"] > 0.001]
    assert len(large) == 11
    assert (large["delta_t_floor"] / large["delta_t"]).between(0.9, 1.03).all()


def test_a_perfect_sampler_shows_the_floor(exact_steps):
    # Images of an exact sampler (variance mode exact): their published delta_t is the floor of the same levels.
    steps = exact_steps("exact")
    free = steps[(steps["arm"] == "free") & steps["quantity"].isin(["pred_std", "floor_std"])]
    wide = free.pivot(index="i", columns="quantity", values="value")
    # A pixel's std from 4000 images is off by a share of 1 / sqrt(2 * 4000) = .011, and pixels may move together.
    assert (abs(wide["pred_std"] / wide["floor_std"] - 1) < 4 * 0.011).all()


def test_delta_figure(tmp_path):
    assert_figures(draw_published_delta(delta_table(), tmp_path), "published_delta_t")


def test_the_caption_gives_the_share(folder):
    folder.cell(probes=False)
    out = Output(folder.root)
    published_delta.analyse(load_results(folder.root), out)
    table, figure = out.entries
    assert (table.name, figure.name, figure.section) == ("published_delta_t", "published_delta_t", "Variance")
    assert "the floor is 90 to 102 % of it" in figure.caption
    assert "-0.0041 to +0.0028" in figure.caption


def test_tables_load_as_numbers():
    assert pd.api.types.is_float_dtype(load_published("ddpm_ip_table3")["value"])
