import pandas as pd
import pytest

from analysis.output.entries import Output
from analysis.quality.acceleration import acceleration_table, analyse
from analysis.records.load import load_results


def table_of(folder):
    return acceleration_table(load_results(folder.root)).set_index("model")


@pytest.fixture
def grid(folder):
    """The baseline is best at 100 steps with 1.0; ip reaches it at 20, gp never."""
    values = {"adm": (3.0, 2.0, 1.0), "ip": (1.5, 1.0, 0.8), "gp": (4.0, 3.0, 2.0)}
    for model, found in values.items():
        for steps, value in zip((10, 20, 100), found, strict=True):
            for seed in (0, 1):  # a mean of the value, off it by seed
                folder.cell(model, steps, seed, value + (-0.1, 0.1)[seed], probes=False)
    return folder


def test_steps_by_mean(grid):
    table = table_of(grid)
    assert (table["target"].tolist(), set(table["target_steps"])) == (pytest.approx([1.0] * 3), {100})
    assert (table.loc["adm", "steps_mean"], table.loc["adm", "speed_up_mean"]) == (100, 1)
    assert (table.loc["ip", "steps_mean"], table.loc["ip", "speed_up_mean"]) == (20, 5)
    assert table.loc["ip", "fd_mean"] == pytest.approx(1.0)
    assert pd.isna(table.loc["gp", ["steps_mean", "fd_mean", "speed_up_mean"]]).all()
    # Without terms there is no interval.
    columns = ["steps_possible", "steps_certain", "delta", "speed_up_low", "speed_up_high"]
    assert table[columns].isna().all(axis=None)


def test_steps_by_the_interval(folder, terms):
    # Squared kernel distances; the spread of 200 terms of std .1 makes an error of about 2 * .2 / sqrt(200) = .03.
    levels = {("adm", 10): 2.0, ("adm", 20): 1.01, ("adm", 100): 1.0, ("ip", 10): 0.5, ("gp", 10): 5.0}
    for seed, ((model, steps), level) in enumerate(levels.items()):
        distance = 2.0 if model == "ip" else level  # ip: worse by its distance, better by the test
        folder.cell(model, steps, 0, distance, terms=terms(level, seed=seed), probes=False)
    table = table_of(folder)
    assert table["steps_mean"].isna().to_dict() == {"adm": False, "ip": True, "gp": True}
    adm, ip, gp = (table.loc[name] for name in ("adm", "ip", "gp"))
    # 20 steps are not told from 100, which are themselves the target.
    assert (adm["steps_possible"], adm["steps_certain"], adm["speed_up_low"], adm["speed_up_high"]) == (20, 100, 1, 5)
    assert adm["delta_low"] < 0 < adm["delta_high"]
    assert adm["delta"] == pytest.approx((adm["delta_low"] + adm["delta_high"]) / 2)
    assert (ip["steps_possible"], ip["steps_certain"], ip["speed_up_low"]) == (10, 10, 10)
    assert ip["delta_high"] < 0
    assert pd.isna(gp[["steps_possible", "steps_certain"]]).all()


def test_samplers_have_targets_of_their_own(grid):
    grid.cell("adm", 10, sampler="ddim", value=0.5, probes=False)
    grid.cell("ip", 10, sampler="ddim", value=0.6, probes=False)
    table = acceleration_table(load_results(grid.root)).set_index(["sampler", "model"])
    assert (table.loc[("ddim", "ip"), "target"], table.loc[("ddpm", "ip"), "target"]) == (0.5, pytest.approx(1.0))
    assert pd.isna(table.loc[("ddim", "ip"), "steps_mean"])


def test_scores_that_are_empty_are_passed_over(folder):
    folder.cell("adm", 10, value=None, probes=False)
    assert len(acceleration_table(load_results(folder.root))) == 0
    folder.cell("adm", 20, value=2.0, probes=False)
    folder.cell("gone", 10, value=None, probes=False)
    table = table_of(folder)
    assert (list(table.index), table.loc["adm", "steps_mean"]) == (["adm"], 20)


def test_a_baseline_without_the_sampler_gives_way_to_the_first(folder):
    for model, sampler in (("a", "ddim"), ("adm", "ddim"), ("ip", "ddpm"), ("wd", "ddpm")):
        folder.cell(model, 10, sampler=sampler, probes=False)
    table = acceleration_table(load_results(folder.root))
    assert table["baseline"].tolist() == ["ip", "ip", "adm", "adm"]


@pytest.mark.parametrize(("counts", "written"), [((10,), 0), ((10, 20), 1)])
def test_written_where_there_is_something_to_compare(folder, counts, written):
    for steps in counts:
        folder.cell("adm", steps, value=1.0, probes=False)
    out = Output(folder.root)
    analyse(load_results(folder.root), out)
    assert len(out.entries) == written
