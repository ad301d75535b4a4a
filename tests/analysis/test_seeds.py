import json
import math

import numpy as np
import pandas as pd
import pytest
from made import score
from scipy import stats

from analysis.output.entries import Output
from analysis.records.load import load_results
from analysis.seeds import analyse, paired_t, seeds_table


def table_of(folder):
    return seeds_table(load_results(folder.root))


def test_by_hand():
    # Differences 1, 2, 3, 4, 5: mean 3, s = sqrt(2.5), standard error sqrt(.5), t = 3 sqrt 2 with 4 degrees of freedom.
    second = np.array([0.3, 0.1, 0.4, 0.1, 0.5])
    found = paired_t(second + np.arange(1.0, 6.0), second)
    assert found["difference"] == pytest.approx(3)
    assert found["t"] == pytest.approx(3 * math.sqrt(2))
    half = 2.7764451 * math.sqrt(0.5)  # the tabulated 97.5 % point of t with 4 degrees of freedom
    assert (found["low"], found["high"]) == pytest.approx((3 - half, 3 + half), abs=1e-6)
    assert found["p"] == pytest.approx(2 * stats.t.sf(3 * math.sqrt(2), 4))
    assert (found["seeds"], found["reason"]) == (5, "")


@pytest.mark.parametrize("seeds", [0, 1, 4])
def test_few_seeds_are_refused(seeds):
    found = paired_t(np.arange(float(seeds)), np.zeros(seeds))
    assert found["reason"] == f"5 shared seeds are needed, not {seeds}"
    assert math.isnan(found["p"])
    assert math.isnan(found["difference"])


def test_a_constant_difference_is_refused():
    found = paired_t(np.full(5, 2.0), np.full(5, 1.5))
    assert (found["difference"], found["reason"]) == (0.5, "the difference is the same under every seed")
    assert math.isnan(found["t"])


def test_the_interval_covers_the_truth():
    # Of 1000 intervals at 95 %, 950 +- 6.9 (binomial) hold the true difference; five standard deviations are 35.
    rng = np.random.default_rng(0)
    common = rng.normal(0, 5, (1000, 1))  # the seeds' own effect, which pairing removes
    first, second = common + rng.normal(0.3, 1, (1000, 6)), common + rng.normal(0, 1, (1000, 6))
    found = pd.DataFrame([paired_t(a, b) for a, b in zip(first, second, strict=True)])
    assert ((found["low"] < 0.3) & (found["high"] > 0.3)).sum() == pytest.approx(950, abs=35)


@pytest.fixture
def five(folder):
    for seed in range(5):
        for steps in (10, 20):
            folder.cell("adm", steps, seed, 2.0 + seed, probes=False)
            folder.cell("ip", steps, seed, 1.0 + 0.9 * seed, probes=False)
    return folder


def test_every_pair_at_every_step_count(five):
    five.cell("third", 10, 0, 3.0, probes=False)
    five.order("adm", "ip", "third")
    table = table_of(five)
    found = table[["steps", "model", "other", "seeds"]].to_numpy().tolist()
    assert found == [[10, "adm", "ip", 5], [10, "adm", "third", 1], [10, "ip", "third", 1], [20, "adm", "ip", 5]]
    assert table["difference"].iloc[0] == pytest.approx(1 + 0.1 * 2)  # mean of 1 + .1 seed
    assert table["reason"].tolist() == ["", *["5 shared seeds are needed, not 1"] * 2, ""]


def test_only_shared_seeds_count(five):
    five.cell("adm", 10, 7, 100.0, probes=False)
    five.cell("ip", 10, 8, None, probes=False)
    assert table_of(five)["seeds"].tolist() == [5, 5]


def test_samplers_are_not_mixed(five):
    for seed in range(5):
        five.cell("ip", 10, seed, 9.0 + seed**2, sampler="ddim", probes=False)
    assert set(table_of(five)["sampler"]) == {"ddpm"}


def test_written_with_its_caption(five):
    results = load_results(five.root)
    out = Output(five.root)
    analyse(results, out)
    [entry] = out.entries
    assert (entry.name, entry.section) == ("seeds", "Comparison")
    assert "fd_toy" in entry.caption
    assert "The 2 p values are not corrected: 0.1 of them" in entry.caption


def test_nothing_is_written_below_five_seeds(folder):
    for seed in range(4):
        folder.cell("adm", 10, seed, 1.0 + seed, probes=False)
        folder.cell("ip", 10, seed, 2.0, probes=False)
    out = Output(folder.root)
    analyse(load_results(folder.root), out)
    assert out.entries == []
    assert len(table_of(folder)) == 1


def test_precision_and_recall_are_tested_beside_the_distance(folder):
    rng = np.random.default_rng(0)
    for model, level in (("adm", 0.9), ("ip", 0.8)):
        for seed in range(5):
            cell = folder.cell(model, 10, seed, value=1.0 + 0.01 * rng.random())
            facts = json.loads((cell / "metrics.json").read_text())
            facts["scores"].append(score("precision_toy", level + 0.001 * rng.random(), 20))
            (cell / "metrics.json").write_text(json.dumps(facts))
    table = table_of(folder).set_index("metric")
    assert set(table.index) == {"fd_toy", "precision_toy"}
    row = table.loc["precision_toy"]
    # adm leads by .1; each value is off by at most .001, so that the mean difference is off by less than that too.
    assert row["difference"] == pytest.approx(0.1, abs=0.001)
    assert row["low"] < row["difference"] < row["high"]
    assert row["p"] < 0.001
