"""The paired tests reject as often as they say where there is no difference, and find one that is there."""

import pytest

from benchmarks.significance import Setting, main, rejection, z_values

REPEATS = 300  # a share of .05 is known to .0126: .09 and .01 are three of them away


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "correlation"), [(80, 0.9), (128, 0.0)])  # 2.5 and 4 times the features
def test_the_level_is_held(samples, correlation):
    """Nor is the distance's test too careful, not even of perfect samplers; the kernel's may be there."""
    setting = Setting(("perfect", "same", "different"), 32, samples, (1, 2), 720, (correlation,))
    for frechet, kernel in z_values(setting, REPEATS).reshape(-1, 2, REPEATS):
        assert 0.01 <= rejection(frechet) <= 0.09
        assert rejection(kernel) <= 0.09


@pytest.mark.slow
def test_a_difference_is_found():
    """At a correlation of .9 the pairing makes half the distance again visible in nearly every repeat."""
    assert all(rejection(z) > 0.5 for z in z_values(Setting(("farther",), 16, 400, (2,), 1000, (0.9,)), 60)[0, 0, 0])


def test_the_table_has_a_line_a_setting(capsys):
    few = ["--repeats", "2", "--features", "4", "--samples", "20", "--reference", "30", "--seeds", "1", "2"]
    assert main([*few, "--correlation", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 8
