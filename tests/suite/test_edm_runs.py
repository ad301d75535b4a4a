"""Runs of models on EDM levels: samplers, network calls, records, and flags that do not go with them."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from bench.suite.settings import SamplerConfig


@pytest.fixture
def tiny_edm(save_tiny, run_tiny):
    """Run a tiny random network under EDM's preconditioning, in our own format."""
    return partial(
        run_tiny, save_tiny("tiny-edm", description={"schedule": "edm", "prediction": "edm"}, out_channels=1)
    )


def facts(out, cell):
    return json.loads((out / "cells" / cell / "metrics.json").read_text())


@pytest.mark.parametrize(("sampler", "nfe"), [("heun", {7: 13, 11: 21, 18: 35}), ("euler", {7: 7, 11: 11, 18: 18})])
def test_network_calls_are_counted(tiny_edm, sampler, nfe):
    outcome, out = tiny_edm("--sampler", sampler, "--steps", "7,11,18", "--no-probes")
    assert outcome.code == 0, outcome.err
    found = {steps: facts(out, f"mine-{sampler}-{steps}-seed0") for steps in nfe}
    assert {steps: fact["nfe"] for steps, fact in found.items()} == nfe
    assert {steps: fact["network_calls"] for steps, fact in found.items()} == {s: 6 * n for s, n in nfe.items()}


def test_heun_is_the_default_and_does_not_clip_and_its_calls_are_as_planned(tiny_edm):
    plan, _ = tiny_edm("--steps", "3", "--dry-run")
    outcome, out = tiny_edm("--steps", "3")
    assert outcome.code == 0, outcome.err
    calls, cell = (facts(out, "mine-heun-3-seed0")[name] for name in ("network_calls", "cell"))
    assert (cell["sampler"], cell["clip"], cell["variance"], cell["schedule"]) == ("heun", False, None, "edm")
    assert cell["prediction"] == "edm"
    assert f"{calls:,} network calls" in plan.out
    assert json.loads((out / "run.json").read_text())["network_calls"] == calls
    table = pd.read_csv(out / "cells" / "mine-heun-3-seed0" / "steps.csv")
    assert set(table["alpha"]) == {1.0}
    free = table[(table["arm"] == "free") & (table["quantity"] == "eps_norm")]
    assert free[["i", "stage"]].to_numpy().tolist() == [[2, 0], [2, 1], [1, 0], [1, 1], [0, 0]]
    assert free["sigma"].iloc[0] == pytest.approx(80)
    # x_T keeps alpha / sigma = 1 / 80 of x0, so the walk from noised data is measured too.
    assert {"paired", "forced-train"} <= set(table["arm"])
    (floors,) = (out / "exact").glob("edm-1000-*-heun-3/record.csv")
    floors = pd.read_csv(floors)
    assert {"gaussian", "gaussian-paired", "gaussian-forced", "empirical", "empirical-forced"} <= set(floors["arm"])
    exact = floors[(floors["arm"] == "gaussian") & (floors["quantity"] == "variance_ratio")]
    assert exact["i"].tolist() == [1, 0, -1]
    with np.load(out / "cells" / "mine-heun-3-seed0" / "errors.npz") as errors:
        assert errors["errors"].shape[0] == 3


def test_churn_is_recorded_and_cells_of_one_folder_share_it(tiny_edm):
    flags = ("--churn", "40", "--S-min", ".05", "--S-max", "50", "--S-noise", "1.003")
    outcome, out = tiny_edm("--steps", "3", "--no-probes", *flags)
    assert outcome.code == 0, outcome.err
    cell = facts(out, "mine-heun-3-seed0")["cell"]
    assert [cell[name] for name in ("churn", "s_min", "s_max", "s_noise")] == [40.0, 0.05, 50.0, 1.003]
    for name in ("mine", "other"):
        assert tiny_edm("--steps", "3", "--no-probes", name=name)[0].refused("made with another churn (40.0, now 0.0)")
    assert not {"churn", "s_min", "s_max", "s_noise"} & set(SamplerConfig().description())  # keys of before


NOT_OF_EDM = [
    (("--sampler", "ddpm"), ("model 'mine'", "use --sampler euler, heun, dpmpp-2m or unipc")),
    (("--sampler", "ddim"), ("model 'mine'", "use --sampler euler, heun, dpmpp-2m or unipc")),
    (("--variance", "fixed-small"), ("--variance has no effect with --sampler heun; leave it out",)),
    (("--eta", "0.5"), ("--eta has no effect with --sampler heun; leave it out",)),
    (("--spacing", "ddim"), ("--spacing has no effect with --sampler heun",)),
    (("--churn", "-1"), ("--churn must be a finite number of at least 0",)),
    (("--churn", "nan"), ("--churn must be a finite number",)),
    (("--churn", "1", "--S-min", "-1"), ("--S-min must be a finite number of at least 0",)),
    (("--churn", "1", "--S-min", "2", "--S-max", "1"), ("--S-max must be a finite number of at least --S-min, 2",)),
    (("--churn", "1", "--S-max", "0"), ("--S-max 0 churns no level; leave out --churn",)),
    (("--churn", "1", "--S-noise", "0"), ("--S-noise must be positive",)),
    (("--S-noise", "1.003"), ("have no effect without --churn",)),
    (("--measure", "chains"), ("--measure chains", "leave it out")),
    (("--measure", "response"), ("--measure response", "leave it out")),
]


@pytest.mark.parametrize(("flags", "words"), NOT_OF_EDM)
def test_flags_that_do_not_go_with_edm(tiny_edm, flags, words):
    outcome, out = tiny_edm("--steps", "2", *flags)
    assert outcome.refused(*words)
    assert not out.exists()


@pytest.mark.parametrize("sampler", ["heun", "euler"])
def test_edm_samplers_do_not_go_with_other_models(command, tmp_path, sampler):
    out = tmp_path / "out"
    assert command("--models", "adm", "--sampler", sampler, "--steps", "2", "--out", out).refused(
        "model 'adm' walks on variance-preserving levels; use --sampler ddpm, ddim, dpmpp-2m or unipc"
    )
    mixed = command("--models", "adm,edm", "--steps", "2", "--out", out)
    assert mixed.refused("'edm' walks on EDM levels", "run them apart")
    churned = command("--models", "adm", "--churn", "1", "--steps", "2", "--out", out)
    assert churned.refused("--churn has no effect with --sampler ddpm; leave it out")
    assert not out.exists()


def test_a_slope_goes_with_churn(command, tmp_path):
    args = ("--models", "edm-es", "--steps", "3", "--churn", "1", "--samples", "2", "--no-probes", "--features", "none")
    assert command(*args, "--eps-scale", "1", "--eps-slope", "0.01", "--quiet", "--out", tmp_path / "out").code == 0


def test_the_embedded_pair_has_tuned_constants(command, tmp_path):
    args = ("--models", "edm,edm-es", "--samples", "4", "--dry-run", "--out", tmp_path / "out")
    for sampler, steps in (("heun", "7,11,18"), ("euler", "13,21,35")):
        outcome = command(*args, "--sampler", sampler, "--steps", steps)
        assert outcome.code == 0, outcome.err
        assert outcome.out.count("eps / (") == 3
