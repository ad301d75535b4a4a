"""The whole command on the embedded checkpoints, against committed tables, and its promise not to disturb itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import run_bench
from analysis.output import style
from bench.suite import cli

GOLDEN = Path(__file__).parent / "golden"
SIZE = ["--samples", "80", "--quiet", "--batch-size", "80"]
COMMANDS = {
    "ddpm": ["--models", "adm,adm-ip", "--steps", "3,6", *SIZE],
    "heun": ["--models", "edm,edm-es", "--sampler", "heun", "--steps", "4", *SIZE],
}


@pytest.fixture(scope="module", params=["ddpm", pytest.param("heun", marks=pytest.mark.ci)])
def run(request, tmp_path_factory):
    """Run a command once and return its name and its results folder."""
    out = tmp_path_factory.mktemp("regression") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(style._SETTINGS, "figure.dpi", 40)  # figures of few pixels
        assert run_bench.main([*COMMANDS[request.param], "--out", str(out)]) == 0
    return request.param, out


def close(found: pd.DataFrame, wanted: pd.DataFrame, keys: list[str], tolerance: float) -> None:
    joined = wanted.merge(found, on=keys, how="left", suffixes=("_wanted", ""), indicator=True)
    assert (joined["_merge"] == "both").all()
    assert (joined["value"].isna() == joined["value_wanted"].isna()).all()  # N = 80 cannot support sfd
    difference = (joined["value"] - joined["value_wanted"]).abs().fillna(0)
    limit = (tolerance * (joined["value_wanted"].abs() + 0.05)).fillna(1)
    assert (difference <= limit).all(), joined.loc[(difference / limit).idxmax()].to_dict()


def test_metrics_are_those_committed(run):
    # Thread counts and kernels move images by one grey level (1/127.5 of the half range) on at most 1e-3 of the
    # pixels; the features are smooth, so that distances move by far less than 1 %. Precision and recall move in
    # steps of 1/80 = .0125 where one image crosses a ball's edge, so they are compared to .03 + 5 %.
    sampler, results = run
    found = pd.read_csv(results / "tables" / "metrics.csv")
    columns = ["model", "sampler", "steps", "nfe", "seed", "n", "reference", "metric", "value"]
    assert list(found.columns)[: len(columns)] == columns
    wanted = pd.read_csv(GOLDEN / "regression_metrics.csv")
    wanted = wanted[wanted["sampler"] == sampler]
    keys = ["model", "sampler", "steps", "nfe", "seed", "n", "reference", "metric"]
    coarse = wanted["metric"].str.contains("precision|recall")
    close(found[~found["metric"].str.contains("precision|recall")], wanted[~coarse], keys, tolerance=0.02)
    joined = wanted[coarse].merge(found, on=keys, suffixes=("_wanted", ""))
    assert len(joined) == coarse.sum()
    assert np.allclose(joined["value"], joined["value_wanted"], atol=0.03, rtol=0.05)


def test_steps_are_those_committed(run):
    # Means over images and pixels of float32 network outputs that differ by about 1e-6; clipping turns that into a
    # difference of whole counts, 1 / (64 pixels x 32 images) = 5e-4 in the clipped share. 1 % of value + .05 is 5e-4.
    sampler, results = run
    wanted = pd.read_csv(GOLDEN / "regression_steps.csv")
    wanted = wanted[wanted["cell"].str.contains(sampler)]
    folders = sorted((results / "cells").iterdir())
    found = pd.concat([pd.read_csv(folder / "steps.csv").assign(cell=folder.name) for folder in folders])
    quantities = wanted["quantity"].unique()
    found = found[found["quantity"].isin(quantities)][["cell", "arm", "i", "stage", "quantity", "value"]]
    assert len(found) == len(wanted)
    close(found, wanted, ["cell", "arm", "i", "stage", "quantity"], tolerance=0.01)


@pytest.mark.ci
def test_probes_change_no_image(run, tmp_path):
    sampler, results = run
    assert cli.run([*COMMANDS[sampler], "--no-probes", "--out", str(tmp_path)])[0] == 0
    for cell in sorted((results / "cells").iterdir()):
        with np.load(cell / "samples.npz") as watched, np.load(tmp_path / "cells" / cell.name / "samples.npz") as alone:
            assert np.array_equal(watched["arr_0"], alone["arr_0"])


def test_every_table_and_figure_is_there(run):
    _, results = run
    tables = {path.name for path in (results / "tables").iterdir()}
    assert tables >= {"metrics.csv", "fid_vs_steps.csv", "fid_vs_steps.md", "fid_vs_steps.tex"}
    assert tables >= {"normality.csv", "normality_power.csv", "spectra.csv", "pairs.csv"}
    figures = {path.name for path in (results / "figures").iterdir()}
    drawn = [
        "fid_vs_steps",
        "eps_norm",
        "variance_gap",
        "x0_error",
        "error_normality",
        "spectrum_ratio",
        "win_tie_loss",
    ]
    assert figures >= {f"{name}.png" for name in (*drawn, "samples")}
