"""The table at the end of a run, on terminals of several widths."""

import pandas as pd
import pytest

from analysis.comparison.pairs import pairs_table
from analysis.quality.main_table import QualityTable
from analysis.report.terminal import terminal_summary

REASON = "a covariance of 64 features needs 65 images, not 16"


class Stand:
    """Stands in for results: two models at two step counts, the last of which has no distance."""

    metrics = pd.DataFrame(
        [["fd", model, "ddpm", steps, value, reason] for model in ("adm", "adm-ip")
         for steps, value, reason in ((10, 0.5, ""), (100, None, REASON))],
        columns=["metric", "model", "sampler", "steps", "value", "reason"],
    )  # fmt: skip

    def once(self, make):
        if make is pairs_table:
            return pd.DataFrame()
        columns = {"model": ["adm", "adm-ip"], "sampler": "ddpm"}
        for steps, value, spread in ((10, 0.5, 0.1), (100, float("nan"), float("nan"))):
            columns |= {f"{steps}": value, f"{steps}_sd": spread, f"{steps}_error": float("nan")}
            columns[f"{steps}_best"] = [steps == 10, False]
        nfe = {("ddpm", 10): "10", ("ddpm", 100): "100"}
        return QualityTable("fd", "fd against digits. Bold: best.", pd.DataFrame(columns), (10, 100), nfe)


def test_columns_are_aligned_and_every_dash_has_its_reason():
    caption, table, reason = terminal_summary(Stand(), 80).split("\n\n")
    assert caption == "fd against digits. *: best."
    assert table.splitlines() == [
        "model   sampler        10 steps  100 steps",
        "adm     ddpm     0.500 ± 0.100*         -",
        "adm-ip  ddpm     0.500 ± 0.100          -",
        "NFE                          10        100",
    ]
    assert reason == f"-: {REASON}"
    lost = Stand()
    lost.metrics = Stand.metrics[:3]  # a damaged cell's scores are not among them
    assert terminal_summary(lost, 80).split("\n\n")[3] == "-: not run at these steps, or left out as damaged"


@pytest.mark.parametrize("width", [20, 40])
def test_columns_that_do_not_fit_follow_below(width):
    blocks = [text for text in terminal_summary(Stand(), width).split("\n\n") if text.startswith("model")]
    columns = [block.splitlines()[0].split("sampler")[1].split() for block in blocks]
    assert columns == [["10", "steps"], ["100", "steps"]]
    assert all(len(line) <= max(width, 32) for block in blocks for line in block.splitlines())


def test_without_scores_there_is_no_table(monkeypatch):
    monkeypatch.setattr(Stand, "once", lambda self, make: None)
    assert terminal_summary(Stand(), 80) == ""
