"""Both sides of the comparison of distances compute the same number."""

import pytest

from benchmarks import distances


def test_all_distances_agree_at_full_rank():
    a, b = (distances.features(200, 16, seed) for seed in (1, 2))
    exact = distances.exact_distance(a, b)
    assert exact > 0
    # The others take the mean in float32: 6e-8 of the mean's square, which is some times the distance.
    assert all(distance(a, b) == pytest.approx(exact, rel=1e-4) for distance in distances.peers().values())
    assert distances.ours(a, b) == pytest.approx(exact, rel=1e-12)


def test_frechet_rows(tiny):
    rows = list(distances.frechet(tiny))
    errors = [row for row in rows if row.unit == "relative error"]
    assert (len(rows), len(errors)) == (3 * len(distances.peers()), len(distances.peers()))
    assert all(row.ratio > 0 for row in rows)
    assert all(row.ratio > 1 for row in errors)  # fewer images than features: ours is the more exact


def test_clean_fid_is_left_out_where_scipy_broke_it(monkeypatch):
    monkeypatch.setattr(distances.scipy.linalg, "sqrtm", lambda A: A)
    assert list(distances.peers()) == ["torch-fidelity"]
