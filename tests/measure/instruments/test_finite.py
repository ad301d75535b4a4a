"""NaN and infinity in what a network says: found without waiting for the device, and named."""

import json
import math

import pytest
import torch
from suite_ranks import command as suite_command
from suite_ranks import launch

from bench.diffusion.types import Level, Prediction, Step
from bench.measure.instruments.probes import FiniteWatch

BAD = [math.nan, math.inf, -math.inf]


def step(i):
    x = torch.zeros(3, 1, 2, 2)
    return Step(i, 0, Level(10.0 * i, 1.0, 1.0), Level(0.0, 1.0, 0.0), x, x, Prediction(x, x), x, x, None)


def values(bad=None, dtype=torch.float32):
    found = torch.full((3, 1, 2, 2), 2.0, dtype=dtype)
    if bad is not None:
        found[1, 0, 1, 0] = bad
    return found


def test_finite_values_are_silent():
    watch = FiniteWatch()
    assert watch.first() is None
    for i in range(4):
        watch.update(step(i), values())
    assert watch.first() is None


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_first_bad_call_is_named(bad, dtype):
    watch = FiniteWatch()
    for i, said in ((3, None), (2, bad), (1, bad), (0, None)):
        watch.update(step(i), values(said, dtype))
    assert watch.first() == (2, 20.0)
    assert watch.first() is None  # and forgotten


def test_infinities_do_not_cancel():
    watch, said = FiniteWatch(), values(math.inf)
    said[0, 0, 0, 0] = -math.inf
    watch.update(step(1), said)
    assert watch.first() == (1, 10.0)


def test_large_values_are_finite():
    watch = FiniteWatch()
    watch.update(step(1), torch.full((3, 1, 2, 2), 1e30))
    assert watch.first() is None


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cell_that_is_not_finite_is_given_up_and_no_other(tmp_path, processes):
    """Dividing by 1e-300 makes infinity, and its difference from itself NaN."""
    args = ("--models", "adm-es,adm", "--eps-scale", "1e-300", "--no-clip", "--spacing", "ddim", "--steps", "2")
    args += ("--samples", "16", "--quiet", "--compile", "off", "--out", str(tmp_path / "out"))
    for _ in range(3 - processes):  # the same command tries again
        found = launch(processes, suite_command, *args) if processes > 1 else [suite_command(*args)]
        assert [out for _, out, _ in found] == [""] * processes
        assert found[0][0] == 2
        lines = "".join(err for _, _, err in found).splitlines()
        assert len(lines) == 1  # though several ranks may have met it
        assert lines[0].startswith(
            "error: model 'adm-es' at 2 steps, seed 0, gave values that are not finite, first at"
        )
        cells = {path.parent.name for path in (tmp_path / "out").glob("cells/*/metrics.json")}
        assert cells == {"adm-ddpm-2-seed0"}
    logs = [line for path in (tmp_path / "out").glob("log*.jsonl") for line in path.read_text().splitlines()]
    failed = [event for event in map(json.loads, logs) if event["event"] == "failed"]
    assert {event["name"] for event in failed} == {"adm-es-ddpm-2-seed0"}
    assert all("not finite" in event["why"] for event in failed)
