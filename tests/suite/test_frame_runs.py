"""Runs on EDM levels, of flows and of multistep solvers: what they record, and flags that do not go with them."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from cases import at_first

from bench.suite.settings import SamplerConfig


@pytest.fixture
def tiny_of(save_tiny, run_tiny):
    """Return a function that runs a tiny random network of a frame, in our own format."""

    def run(frame, *flags, **how):
        description = {"schedule": {"edm": "edm", "flow": "flow(2)"}[frame], "prediction": frame}
        return run_tiny(save_tiny(f"tiny-{frame}", description=description, out_channels=1), *flags, **how)

    return run


@pytest.fixture
def tiny_edm(tiny_of):
    return partial(tiny_of, "edm")


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


@pytest.mark.parametrize("sampler", at_first(["sde", "heun", "unipc"], 1))
def test_every_measurement_is_finite_from_a_start_without_signal(tiny_of, sampler):
    """Teacher forcing, probes and the exact samplers at alpha = 0 included."""
    outcome, out = tiny_of("flow", "--sampler", sampler, "--steps", "4")
    assert outcome.code == 0, outcome.err
    tables = [
        pd.read_csv(out / "cells" / f"mine-{sampler}-4-seed0" / "steps.csv"),
        pd.read_csv(out / "exact" / f"flow(2)-1000-{sampler}-4" / "record.csv").dropna(subset="quantity"),
    ]
    for table in tables:
        assert {0.0, 1.0} < set(table["alpha"])
        assert table["value"].notna().all()
        assert ((table["alpha"] + table["sigma"]) - 1).abs().max() < 1e-12
    assert {"gaussian", "gaussian-forced", "empirical"} <= set(tables[1]["arm"])


UNSUITED = [
    ("adm-ts", ("--sampler", "unipc"), ("time-shift moves states", "use ddpm or ddim")),
    ("edm-dcw", ("--sampler", "dpmpp-2m"), ("dcw moves states", "use euler or heun")),
    ("adm-noise", ("--sampler", "ddim"), ("this walk draws none; give --eta",)),
    ("adm-noise", ("--measure", "chains"), ("this walk draws none, over the 1000 steps of its chains",)),
    ("adm", ("--sampler", "unipc", "--eta", "1"), ("--eta has no effect with --sampler unipc; use --sampler ddim",)),
    ("adm", ("--sampler", "dpm"), ("unknown --sampler 'dpm'; did you mean",)),
]


@pytest.mark.parametrize(("models", "flags", "words"), UNSUITED)
def test_what_does_not_go_with_a_solver(command, tmp_path, models, flags, words):
    outcome = command("--models", models, "--steps", "3", *flags, "--out", tmp_path / "out")
    assert outcome.refused(*words)


WARNED = [
    (("ddim", "--no-clip"), "multiplied by 20,291; use --clip or --spacing ddim"),
    (("unipc", "--no-clip", "--spacing", "trailing"), "use --clip or --spacing ddim"),
    (("ddim", "--no-clip", "--spacing", "ddim"), ""),
    (("dpmpp-2m",), ""),
]


@pytest.mark.parametrize(("flags", "text"), WARNED)
def test_a_start_of_next_to_no_signal_is_warned_of(command, tmp_path, flags, text):
    args = ("--models", "adm", "--steps", "10", "--samples", "2", "--dry-run", "--features", "none", "--no-probes")
    outcome = command(*args, "--out", tmp_path / "out", "--sampler", *flags)
    assert outcome.code == 0
    assert text in outcome.err
    assert outcome.err.count("warning: ") == bool(text)


NOT_OF_FRAMES = [
    ("edm", ("--sampler", "ddpm"), ("model 'mine'", "use --sampler euler, heun, dpmpp-2m or unipc")),
    ("edm", ("--sampler", "ddim"), ("model 'mine'", "use --sampler euler, heun, dpmpp-2m or unipc")),
    ("edm", ("--variance", "fixed-small"), ("--variance has no effect with --sampler heun; leave it out",)),
    ("edm", ("--eta", "0.5"), ("--eta has no effect with --sampler heun; leave it out",)),
    ("edm", ("--spacing", "ddim"), ("--spacing has no effect with --sampler heun",)),
    ("edm", ("--churn", "-1"), ("--churn must be a finite number of at least 0",)),
    ("edm", ("--churn", "nan"), ("--churn must be a finite number",)),
    ("edm", ("--churn", "1", "--S-min", "-1"), ("--S-min must be a finite number of at least 0",)),
    ("edm", ("--churn=1", "--S-min=2", "--S-max=1"), ("--S-max must be a finite number of at least --S-min, 2",)),
    ("edm", ("--churn", "1", "--S-max", "0"), ("--S-max 0 churns no level; leave out --churn",)),
    ("edm", ("--churn", "1", "--S-noise", "0"), ("--S-noise must be positive",)),
    ("edm", ("--S-noise", "1.003"), ("have no effect without --churn",)),
    ("edm", ("--measure", "chains"), ("--measure chains", "leave it out")),
    ("edm", ("--measure", "response"), ("--measure response", "leave it out")),
    ("flow", ("--sampler", "ddpm"), ("no chain of steps", "use --sampler euler, heun, sde, dpmpp-2m or unipc")),
    ("flow", ("--sampler", "ddim"), ("DDIM's step is Euler's",)),
    ("flow", ("--churn", "1"), ("--churn has no effect", "leave it out")),
    ("flow", ("--spacing", "ddim"), ("--spacing has no effect",)),
    ("flow", ("--variance", "fixed-small"), ("--variance has no effect", "leave it out")),
    ("flow", ("--measure", "chains"), ("--measure chains needs models of a training index",)),
]


@pytest.mark.parametrize(("frame", "flags", "words"), NOT_OF_FRAMES)
def test_flags_that_do_not_go_with_a_frame(tiny_of, frame, flags, words):
    outcome, out = tiny_of(frame, "--steps", "2", *flags)
    assert outcome.refused(*words)
    assert not out.exists()
