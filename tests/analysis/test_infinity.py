import json

import pytest

from analysis.infinity import analyse, infinity_table
from analysis.output.entries import Output
from analysis.quality.fid_vs_steps import main_metric
from analysis.records.load import load_results


def extrapolate(cell, value):
    """Add the extrapolated score to a cell."""
    path = cell / "metrics.json"
    facts = json.loads(path.read_text())
    facts["scores"].append(facts["scores"][-1] | {"metric": "fd_toy_inf", "value": value, "reason": ""})
    path.write_text(json.dumps(facts))


def test_means_spreads_and_ranks(folder):
    for seed in (0, 1):
        extrapolate(folder.cell("a", 10, seed, 1.0 + seed, probes=False), 0.5)
        extrapolate(folder.cell("b", 10, seed, 1.2 + seed, probes=False), 0.4 - 0.2 * seed)
    results = load_results(folder.root)
    table = infinity_table(results).set_index("model")
    assert table.loc["a", ["fd", "fd_sd", "fd_inf", "fd_inf_sd"]].tolist() == pytest.approx([1.5, 0.5**0.5, 0.5, 0])
    assert table.loc["b", ["fd", "fd_inf", "seeds"]].tolist() == pytest.approx([1.7, 0.3, 2])
    assert table.loc["a", ["rank", "rank_inf"]].tolist() == [1, 2]  # the bias decided the order
    assert main_metric(results.metrics()) == "fd_toy"


@pytest.mark.parametrize("refused", [True, False])
def test_nothing_is_written_where_it_was_refused_or_never_tried(folder, refused):
    cell = folder.cell(probes=False)
    if refused:
        extrapolate(cell, None)
    out = Output(folder.root)
    results = load_results(folder.root)
    analyse(results, out)
    assert out.entries == []
    assert main_metric(results.metrics()) == "fd_toy"
