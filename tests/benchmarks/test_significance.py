"""The paired tests reject as often as they say where there is no difference, and find one that is there."""

import pytest

from benchmarks.significance import Setting, main, rejection, z_values

REPEATS = 300  # a share of .05 is known to .0126: three of them are .04


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize(("case", "low", "high"), [("perfect", 0, 0.05), ("same", 0, 0.09), ("different", 0.01, 0.09)])
def test_the_level_is_held(case, low, high, correlation):
    """Perfect samplers may be rejected less often: first-order terms vanish there."""
    for z in z_values(Setting(case, 16, 100, 2, 200, correlation), REPEATS):
        assert low <= rejection(z) <= high


@pytest.mark.slow
def test_a_difference_is_found():
    """At a correlation of .9 the pairing makes half the distance again visible in nearly every repeat."""
    assert all(rejection(z) > 0.5 for z in z_values(Setting("farther", 16, 400, 2, 1000, 0.9), 60))


def test_the_table_has_a_line_a_setting(capsys):
    few = ["--repeats", "2", "--features", "4", "--samples", "20", "--reference", "30", "--seeds", "1"]
    assert main([*few, "--correlation", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4
