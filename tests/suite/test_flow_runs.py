"""Runs of flows and of multistep solvers: what they record, and what does not go with them."""

from functools import partial

import pandas as pd
import pytest
from cases import at_first


@pytest.fixture
def tiny_flow(save_tiny, run_tiny):
    return partial(
        run_tiny, save_tiny("tiny-flow", description={"schedule": "flow(2)", "prediction": "flow"}, out_channels=1)
    )


@pytest.mark.parametrize("sampler", at_first(["sde", "heun", "unipc"], 1))
def test_every_measurement_is_finite_from_a_start_without_signal(tiny_flow, sampler):
    """Teacher forcing, probes and the exact samplers at alpha = 0 included."""
    outcome, out = tiny_flow("--sampler", sampler, "--steps", "4")
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


NOT_OF_FLOWS = [
    (("--sampler", "ddpm"), ("no chain of steps", "use --sampler euler, heun, sde, dpmpp-2m or unipc")),
    (("--sampler", "ddim"), ("DDIM's step is Euler's",)),
    (("--churn", "1"), ("--churn has no effect", "leave it out")),
    (("--spacing", "ddim"), ("--spacing has no effect",)),
    (("--variance", "fixed-small"), ("--variance has no effect", "leave it out")),
    (("--measure", "chains"), ("--measure chains needs models of a training index",)),
]


@pytest.mark.parametrize(("flags", "words"), NOT_OF_FLOWS)
def test_flags_that_do_not_go_with_a_flow(tiny_flow, flags, words):
    outcome, out = tiny_flow("--steps", "2", *flags)
    assert outcome.refused(*words)
    assert not out.exists()


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
