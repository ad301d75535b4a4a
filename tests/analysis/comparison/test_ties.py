import pandas as pd
import pytest

from analysis.comparison.ties import exact_distances, untested, verdicts

NAN = float("nan")


VERDICTS = [
    (-2.0, 0.04, 1.0, 3.0, "win"),
    (2.0, 0.04, 1.0, 3.0, "loss"),
    (2.0, 0.05, 1.0, 3.0, "tie"),
    (-2.0, 0.9, 3.1, 3.0, "not testable"),
    (-2.0, 0.04, 3.1, 3.0, "win"),  # what was seen was testable
    (0.0, 0.9, 1.0, -0.1, "not testable"),  # nothing to gain: closer than an exact sampler's mean
    (0.0, 0.9, 1.0, NAN, "tie"),  # no exact sampler was scored
]


@pytest.mark.parametrize(("delta", "p_holm", "detectable", "excess", "verdict"), VERDICTS)
def test_verdicts(delta, p_holm, detectable, excess, verdict):
    row = {"delta": delta, "p_holm": p_holm, "detectable": detectable, "excess": excess}
    assert verdicts(pd.DataFrame([row])).tolist() == [verdict]


def test_what_is_not_testable_is_counted():
    assert untested(pd.DataFrame({"verdict": ["tie", "win"]})) == ""
    assert untested(pd.DataFrame({"verdict": ["not testable", "win"]})).startswith("1 is not testable at this N")
    assert untested(pd.DataFrame({"verdict": ["not testable"] * 2})).startswith("2 are not")


def test_an_exact_sampler_of_one_n():
    """Machines round differently."""
    rows = [(10, "fd_exact", 0.2), (10, "fd_exact", 0.2 + 1e-9), (10, "fd_exact_sd", 0.1), (10, "fd", 0.9)]
    rows += [(20, "fd_exact", 0.2), (20, "fd_exact", 0.3), (20, "fd_exact_sd", 0.1)]  # cells of two N
    metrics = pd.DataFrame(rows, columns=["steps", "metric", "value"])
    assert exact_distances(metrics, "fd") == {10: (0.2, 0.1)}
